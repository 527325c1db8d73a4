#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_forward.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

FC_FORWARD_KERNELS(extern template)

Fused run_fused(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_coordinates(f.conv);
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, fused_is_channels_last(f.conv, input, weight));
  const Tensor argmax = empty(sizes, input, true, ScalarType::Byte);
  if (output.numel() == 0) return {output, argmax};
  launch_on(input, "conv2d_relu_max_pool2d", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor x = dense(input), w = weight_beside(x, weight);
    const Tensor b = bias ? as_contiguous(*bias) : w;
    const Tensor workspace = empty({forward_workspace(f)}, input, false);
    launch_conv2d_relu_max_pool2d<T>(f, read<T>(x), read<T>(w), bias ? data<T>(b) : nullptr, written<T>(output),
                                     mutable_data<uint8_t>(argmax), mutable_data<T>(workspace), tile_choice<T>(),
                                     stream);
  });
  return {output, argmax};
}

}  // namespace fastconv::cuda
