#include "reduced.h"

namespace fastconv::cpu {
namespace {

Tensor without_gaps(const Tensor& tensor) {
  if (fills_memory(tensor)) return tensor;
  return suggests_channels_last(tensor) ? ordered(tensor, true) : as_contiguous(tensor);
}

}  // namespace

const ReducedKernels& reduced_kernels(ScalarType type) {
  return type == ScalarType::BFloat16 ? kernels().bfloat16 : kernels().half;
}

Tensor wide_like(const Tensor& tensor, Workspace use) {
  float* values = workspace<float>(use, tensor.numel());
  return torch::stable::from_blob(values, tensor.sizes(), tensor.strides(), tensor.device(), ScalarType::Float);
}

Tensor wide_contiguous(const Tensor& tensor, Workspace use) {
  const Ints sizes = sizes_of(tensor);
  Ints strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  float* values = workspace<float>(use, tensor.numel());
  return torch::stable::from_blob(values, sizes, strides, tensor.device(), ScalarType::Float);
}

Tensor widened(const Tensor& tensor, Workspace use) {
  const Tensor from = without_gaps(tensor), wide = wide_like(from, use);
  const auto widen = reduced_kernels(tensor.scalar_type()).widen;
  const uint16_t* values = data<uint16_t>(from);
  float* results = mutable_data<float>(wide);
  parallel_for(0, from.numel(), grain_size,
               [&](int64_t begin, int64_t end) { widen(values + begin, results + begin, end - begin); });
  return wide;
}

std::optional<Tensor> widened(const std::optional<Tensor>& tensor, Workspace use) {
  return tensor ? std::optional<Tensor>(widened(*tensor, use)) : std::nullopt;
}

void round_into(const Tensor& result, const Tensor& wide) {
  const auto round = reduced_kernels(result.scalar_type()).round;
  const float* values = data<float>(wide);
  uint16_t* results = mutable_data<uint16_t>(result);
  parallel_for(0, wide.numel(), grain_size,
               [&](int64_t begin, int64_t end) { round(values + begin, results + begin, end - begin); });
}

}  // namespace fastconv::cpu
