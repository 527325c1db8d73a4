#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_backward_data.cuh"
#include "kernels/conv2d_backward_weight.cuh"
#include "ops.h"

namespace fastconv::cuda {

Tensor conv2d_relu_max_pool2d_backward_data(const Tensor& grad_output, const Tensor& argmax, const Tensor& weight,
                                            const Ints& input_size, const Ints& stride, const Ints& padding,
                                            const Ints& dilation, int64_t groups, const Ints& pool_kernel_size,
                                            const Ints& pool_stride, const Ints& pool_padding,
                                            const Ints& pool_dilation, bool channels_last) {
  const Conv2dShape conv =
      check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const FusedShape f = check_conv2d_relu_max_pool2d_backward(grad_output, argmax, conv, pool_kernel_size, pool_stride,
                                                             pool_padding, pool_dilation);
  check_coordinates(conv);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  launch_on(grad_output, "conv2d_relu_max_pool2d_backward_data", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor g = dense(grad_output), at = ordered(argmax, true), w = weight_beside(g, weight);
    launch_conv2d_relu_max_pool2d_backward_data<T>(f, read<T>(g), data<uint8_t>(at), read<T>(w), written<T>(grad_input),
                                                   stream);
  });
  return grad_input;
}

std::tuple<Tensor, Tensor> conv2d_relu_max_pool2d_backward_weight(
    const Tensor& grad_output, const Tensor& argmax, const Tensor& input, const Ints& kernel_size, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const Ints& pool_kernel_size, const Ints& pool_stride,
    const Ints& pool_padding, const Ints& pool_dilation, bool channels_last) {
  const Conv2dShape conv =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const FusedShape f = check_conv2d_relu_max_pool2d_backward(grad_output, argmax, conv, pool_kernel_size, pool_stride,
                                                             pool_padding, pool_dilation);
  check_coordinates(conv);
  const Tensor grad_weight = empty({conv.K, conv.group_C(), conv.R, conv.S}, input, channels_last);
  const Tensor grad_bias = empty({conv.K}, input, false);
  launch_on(input, "conv2d_relu_max_pool2d_backward_weight", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor g = dense(grad_output), at = ordered(argmax, true), x = dense(input);
    const Tensor workspace = empty({backward_weight_workspace(conv)}, input, false, sums_type(input));
    launch_conv2d_relu_max_pool2d_backward_weight<T>(f, read<T>(g), data<uint8_t>(at), read<T>(x),
                                                     written<T>(grad_weight), mutable_data<T>(grad_bias),
                                                     mutable_data<Accumulator<T>>(workspace), stream);
  });
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cuda
