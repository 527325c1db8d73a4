#include "reduced.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t grain = 32768;

Tensor without_gaps(const Tensor& tensor) {
  using torch::headeronly::MemoryFormat;
  if (fills_memory(tensor)) return tensor;
  const bool channels_last = suggests_channels_last(tensor);
  return torch::stable::contiguous(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace

const ReducedKernels& reduced_kernels(ScalarType type) {
  return type == ScalarType::BFloat16 ? kernels().bfloat16 : kernels().half;
}

Tensor widened(const Tensor& tensor, Scratch use) {
  const Tensor from = without_gaps(tensor);
  const auto widen = reduced_kernels(tensor.scalar_type()).widen;
  const uint16_t* values = data<uint16_t>(from);
  float* results = scratch<float>(use, from.numel());
  torch::stable::parallel_for(0, from.numel(), grain,
                              [&](int64_t begin, int64_t end) { widen(values + begin, results + begin, end - begin); });
  return torch::stable::from_blob(results, from.sizes(), from.strides(), tensor.device(), ScalarType::Float);
}

std::optional<Tensor> widened(const std::optional<Tensor>& tensor, Scratch use) {
  return tensor ? std::optional<Tensor>(widened(*tensor, use)) : std::nullopt;
}

Tensor rounded(const Tensor& tensor, ScalarType type) {
  const Tensor to = empty_at_strides(tensor, type);
  const auto round = reduced_kernels(type).round;
  const float* values = data<float>(tensor);
  uint16_t* results = mutable_data<uint16_t>(to);
  torch::stable::parallel_for(0, tensor.numel(), grain,
                              [&](int64_t begin, int64_t end) { round(values + begin, results + begin, end - begin); });
  return to;
}

}  // namespace fastconv::cpu
