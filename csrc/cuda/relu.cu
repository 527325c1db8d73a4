#include "device.h"
#include "kernels/relu.cuh"
#include "ops.h"

namespace fastconv::cuda {

void write_relu(const Tensor& from, const Tensor& to) {
  launch_on(from, "relu", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_relu(data<T>(from), mutable_data<T>(to), from.numel(), stream);
  });
}

Tensor relu_backward(const Tensor& grad_output, const Tensor& output) {
  check_relu_backward(grad_output, output);
  const Tensor grad_input = empty_as(output);  // in the memory order of output, as on the CPU
  const Tensor g = ordered_as(grad_output, grad_input), y = ordered_as(output, grad_input);
  launch_on(grad_output, "relu_backward", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_relu_backward(data<T>(g), data<T>(y), mutable_data<T>(grad_input), g.numel(), stream);
  });
  return grad_input;
}

}  // namespace fastconv::cuda
