#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_backward_data.cuh"
#include "kernels/conv2d_backward_weight.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

Gradients run_fused_backward(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                             const Tensor& weight, bool needs_input, bool needs_weight) {
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
