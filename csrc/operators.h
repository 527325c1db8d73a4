// The types of the operators' functions, for every device. Schemas: ops.cpp.
#pragma once

#include <tuple>

#include "checks.h"

namespace fastconv {

using Conv2d = Tensor(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& dilation, int64_t groups);
using Conv2dBackward = Gradients(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                                 bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                                 int64_t groups);
using Conv2dBackwardData = Tensor(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                  const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                  bool channels_last);
using Conv2dBackwardWeight = std::tuple<Tensor, Tensor>(const Tensor& grad_output, const Tensor& input,
                                                        const Ints& kernel_size, const Ints& stride,
                                                        const Ints& padding, const Ints& dilation, int64_t groups,
                                                        bool channels_last);

using Fused = std::tuple<Tensor, Tensor>;  // output and argmax
using Conv2dRelu = Fused(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
using Conv2dReluBackward = Gradients(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                     const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                     const Ints& padding, const Ints& dilation, int64_t groups);
using Conv2dReluMaxPool2d = Fused(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                  const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                  const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                                  const Ints& pool_dilation, bool pool_ceil_mode);
using Conv2dReluMaxPool2dBackward = Gradients(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                              const Tensor& weight, bool needs_input, bool needs_weight,
                                              const Ints& stride, const Ints& padding, const Ints& dilation,
                                              int64_t groups, const Ints& pool_kernel_size, const Ints& pool_stride,
                                              const Ints& pool_padding, const Ints& pool_dilation);

using MaxPool2d = std::tuple<Tensor, Tensor>(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                             const Ints& padding, const Ints& dilation, bool ceil_mode);
using MaxPool2dBackward = Tensor(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                                 const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                                 bool channels_last);

using Relu = Tensor(const Tensor& input);
using ReluInPlace = void(const Tensor& input);
using ReluBackward = Tensor(const Tensor& grad_output, const Tensor& output);

}  // namespace fastconv
