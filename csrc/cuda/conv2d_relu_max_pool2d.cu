#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_forward.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

FC_FORWARD_KERNELS(extern template)

namespace {

Fused forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_coordinates(f.conv);
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, result_is_channels_last(input, weight));
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

}  // namespace

Fused conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                  const Ints& padding, const Ints& dilation, int64_t groups) {
  return forward(without_pool(check_conv2d(input, weight, bias, stride, padding, dilation, groups)), input, weight,
                 bias);
}

Fused conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                             const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                             const Ints& pool_dilation, bool pool_ceil_mode) {
  const FusedShape f =
      check_conv2d_relu_max_pool2d(input, weight, bias, stride, padding, dilation, groups, pool_kernel_size,
                                   pool_stride, pool_padding, pool_dilation, pool_ceil_mode);
  return forward(f, input, weight, bias);
}

}  // namespace fastconv::cuda
