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

void write_relu_backward(const Tensor& grad_output, const Tensor& output, const Tensor& grad_input) {
  const Tensor g = ordered_as(grad_output, grad_input);
  launch_on(g, "relu_backward", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_relu_backward(data<T>(g), data<T>(output), mutable_data<T>(grad_input), g.numel(), stream);
  });
}

}  // namespace fastconv::cuda
