#include "relu.h"

#include "capability.h"

namespace fastconv::cpu {
namespace {

// Elements that are worth a thread of their own; PyTorch's grain.
constexpr int64_t grain = 32768;

void apply(const Tensor& from, const Tensor& to) {
  dispatch_real(from, "relu", [&](auto type) {
    using T = decltype(type);
    const T* x = data<T>(from);
    T* y = mutable_data<T>(to);
    torch::stable::parallel_for(0, from.numel(), grain, [&](int64_t begin, int64_t end) {
      kernels().relu<T>().forward(x + begin, y + begin, end - begin);
    });
  });
}

}  // namespace

Tensor relu(const Tensor& input) {
  const Tensor output = empty_as(input);
  apply(ordered_as(input, output), output);
  return output;
}

void relu_(const Tensor& input) {
  if (fills_memory(input)) return apply(input, input);
  check_no_overlap(input);
  Tensor target = input;
  torch::stable::copy_(target, relu(input));
}

Tensor relu_backward(const Tensor& grad_output, const Tensor& output) {
  check_relu_backward(grad_output, output);
  const Tensor grad_input = empty_as(grad_output);
  const Tensor g = ordered_as(grad_output, grad_input), y = ordered_as(output, grad_input);
  dispatch_floating(grad_output, "relu_backward", [&](auto type) {
    using T = decltype(type);
    const T *from = data<T>(g), *at = data<T>(y);
    T* to = mutable_data<T>(grad_input);
    torch::stable::parallel_for(0, grad_output.numel(), grain, [&](int64_t begin, int64_t end) {
      kernels().relu<T>().backward(from + begin, at + begin, to + begin, end - begin);
    });
  });
  return grad_input;
}

}  // namespace fastconv::cpu
