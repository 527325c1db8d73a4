#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_forward.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

FC_FORWARD_KERNELS(template)

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups) {
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  check_coordinates(s);
  const Tensor output = empty({s.N, s.K, s.P, s.Q}, input, result_is_channels_last(input, weight));
  if (output.numel() == 0) return output;
  launch_on(input, "conv2d", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor x = dense(input), w = weight_beside(x, weight);
    const Tensor b = bias ? as_contiguous(*bias) : w;
    launch_conv2d<T>(s, read<T>(x), read<T>(w), bias ? data<T>(b) : nullptr, written<T>(output), tile_choice<T>(),
                     stream);
  });
  return output;
}

}  // namespace fastconv::cuda
