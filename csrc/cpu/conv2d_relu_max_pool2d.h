// Convolution, ReLU and max-pooling as one, on the CPU. Schemas: ops.cpp. argmax: kernels/window.h.
#pragma once

#include <tuple>

#include "../checks.h"

namespace fastconv::cpu {

std::tuple<Tensor, Tensor> conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);

std::tuple<Tensor, Tensor> conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight,
                                                  const std::optional<Tensor>& bias, const Ints& stride,
                                                  const Ints& padding, const Ints& dilation, int64_t groups,
                                                  const Ints& pool_kernel_size, const Ints& pool_stride,
                                                  const Ints& pool_padding, const Ints& pool_dilation,
                                                  bool pool_ceil_mode);

Gradients conv2d_relu_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                               const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                               const Ints& padding, const Ints& dilation, int64_t groups);

Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation);

}  // namespace fastconv::cpu
