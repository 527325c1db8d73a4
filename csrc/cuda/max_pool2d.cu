#include "device.h"
#include "kernels/max_pool2d.cuh"
#include "ops.h"

namespace fastconv::cuda {

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const Pool2dShape s = check_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const bool nhwc = suggests_channels_last(input);
  const Tensor x = ordered(input, nhwc);
  const Tensor output = empty({s.N, s.C, s.P, s.Q}, input, nhwc);
  const Tensor indices = empty({s.N, s.C, s.P, s.Q}, input, nhwc, ScalarType::Long);
  launch_on(input, "max_pool2d", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_max_pool2d(s, data<T>(x), mutable_data<T>(output), mutable_data<int64_t>(indices), nhwc, stream);
  });
  return {output, indices};
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last) {
  const Pool2dShape s =
      check_max_pool2d_backward(grad_output, indices, input_size, kernel_size, stride, padding, dilation);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  const Tensor g = ordered(grad_output, channels_last), at = ordered(indices, channels_last);
  launch_on(grad_output, "max_pool2d_backward", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_max_pool2d_backward(s, data<T>(g), data<int64_t>(at), mutable_data<T>(grad_input), channels_last, stream);
  });
  return grad_input;
}

}  // namespace fastconv::cuda
