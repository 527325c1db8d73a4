// The types of the operators' functions, for every device. Schemas: ops.cpp.
#pragma once

#include <tuple>

#include "checks.h"

namespace fastconv {

using Conv2dOperator = Tensor(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
using Conv2dBackwardOperator = Gradients(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                         bool needs_input, bool needs_weight, const Ints& stride, const Ints& padding,
                                         const Ints& dilation, int64_t groups);
using Conv2dBackwardDataOperator = Tensor(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                          const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                          bool channels_last);
using Conv2dBackwardWeightOperator = std::tuple<Tensor, Tensor>(const Tensor& grad_output, const Tensor& input,
                                                                const Ints& kernel_size, const Ints& stride,
                                                                const Ints& padding, const Ints& dilation,
                                                                int64_t groups, bool channels_last);

using Fused = std::tuple<Tensor, Tensor>;  // output and argmax
using Conv2dReluOperator = Fused(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
using Conv2dReluBackwardOperator = Gradients(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                             const Tensor& weight, bool needs_input, bool needs_weight,
                                             const Ints& stride, const Ints& padding, const Ints& dilation,
                                             int64_t groups);
using Conv2dReluMaxPool2dOperator = Fused(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                          const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation, bool pool_ceil_mode);
using Conv2dReluMaxPool2dBackwardOperator = Gradients(const Tensor& grad_output, const Tensor& argmax,
                                                      const Tensor& input, const Tensor& weight, bool needs_input,
                                                      bool needs_weight, const Ints& stride, const Ints& padding,
                                                      const Ints& dilation, int64_t groups,
                                                      const Ints& pool_kernel_size, const Ints& pool_stride,
                                                      const Ints& pool_padding, const Ints& pool_dilation);

using MaxPool2dOperator = std::tuple<Tensor, Tensor>(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                                     const Ints& padding, const Ints& dilation, bool ceil_mode);
using MaxPool2dBackwardOperator = Tensor(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                                         const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                         const Ints& dilation, bool channels_last);

using ReluOperator = Tensor(const Tensor& input);
using ReluInPlaceOperator = void(const Tensor& input);
using ReluBackwardOperator = Tensor(const Tensor& grad_output, const Tensor& output);

}  // namespace fastconv
