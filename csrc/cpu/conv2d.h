// The CPU's convolution. Schemas: csrc/ops.cpp.
#pragma once

#include <tuple>

#include "../checks.h"

namespace fastconv::cpu {

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups);

Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                          bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups);

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last);

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last);

}  // namespace fastconv::cpu
