#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_backward_data.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

Tensor run_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                bool channels_last) {
  check_coordinates(s);
  const Tensor grad_input = empty({s.N, s.C, s.H, s.W}, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  launch_on(grad_output, "conv2d_backward_data", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor g = dense(grad_output), w = weight_beside(g, weight);
    launch_conv2d_backward_data<T>(s, read<T>(g), read<T>(w), written<T>(grad_input), tile_choice<T>(), stream);
  });
  return grad_input;
}

}  // namespace fastconv::cuda
