#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_backward_data.cuh"
#include "kernels/conv2d_backward_weight.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation) {
  const FusedShape f =
      check_conv2d_relu_max_pool2d_backward(grad_output, argmax, input, weight, stride, padding, dilation, groups,
                                            pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  check_coordinates(f.conv);
  const Gradients gradients =
      empty_gradients(f.conv, input, {needs_input, needs_weight}, {is_channels_last(input), is_channels_last(weight)});
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  launch_on(input, "conv2d_relu_max_pool2d_backward", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor g = dense(grad_output), at = ordered(argmax, true);
    const TileChoice choice = tile_choice<T>();
    const PooledGradient<T> gradient(f, read<T>(g), data<uint8_t>(at));
    if (grad_input.numel() > 0) {
      const Tensor w = weight_beside(g, weight);
      launch_backward_data<T>(f.conv, gradient, read<T>(w), written<T>(grad_input), choice, stream);
    }
    if (needs_weight) {
      const Tensor x = dense(input);
      const Tensor workspace = empty({backward_weight_workspace(f.conv)}, input, false, sums_type(input));
      launch_backward_weight<T>(f.conv, gradient, read<T>(x), written<T>(grad_weight), mutable_data<T>(grad_bias),
                                mutable_data<Accumulator<T>>(workspace), choice, stream);
    }
  });
  return gradients;
}

}  // namespace fastconv::cuda
