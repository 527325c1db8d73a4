// The fused operators, for every device. They check their arguments and build a FusedShape. Each device has a function
// for forward and one for backward. No pooling is represented as 1x1 pooling. Schemas: ops.cpp.
#pragma once

#include <tuple>

#include "checks.h"

namespace fastconv {

using Fused = std::tuple<Tensor, Tensor>;  // output and argmax
using FusedForward = Fused(const FusedShape& f, const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias);
using FusedBackward = Gradients(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax,
                                const Tensor& input, const Tensor& weight, bool needs_input, bool needs_weight);

template <FusedForward forward>
Fused conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                  const Ints& padding, const Ints& dilation, int64_t groups) {
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  return forward(without_pool(s), input, weight, bias);
}

template <FusedForward forward>
Fused conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                             const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                             const Ints& pool_dilation, bool pool_ceil_mode) {
  const FusedShape f =
      check_conv2d_relu_max_pool2d(input, weight, bias, stride, padding, dilation, groups, pool_kernel_size,
                                   pool_stride, pool_padding, pool_dilation, pool_ceil_mode);
  return forward(f, input, weight, bias);
}

template <FusedBackward backward>
Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation) {
  const FusedShape f =
      check_conv2d_relu_max_pool2d_backward(grad_output, argmax, input, weight, stride, padding, dilation, groups,
                                            pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  return backward(f, grad_output, argmax, input, weight, needs_input, needs_weight);
}

template <FusedBackward backward>
Gradients conv2d_relu_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                               const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                               const Ints& padding, const Ints& dilation, int64_t groups) {
  const Ints one{1, 1}, none{0, 0};
  return conv2d_relu_max_pool2d_backward<backward>(grad_output, argmax, input, weight, needs_input, needs_weight,
                                                   stride, padding, dilation, groups, one, one, none, one);
}

}  // namespace fastconv
