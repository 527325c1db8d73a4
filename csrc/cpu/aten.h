// PyTorch's own convolution and its gradients, for the calls that it computes faster (plan.h, torch_is_faster). Results
// have the strides that fastconv's operators promise.
#pragma once

#include <optional>
#include <tuple>

#include "../shapes.h"
#include "../tensor.h"

namespace fastconv::cpu {

Tensor aten_conv2d(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool channels_last);
Tensor aten_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                 bool channels_last);
// The gradients of the weight and of the bias.
std::tuple<Tensor, Tensor> aten_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                       const Tensor& input, bool channels_last);

}  // namespace fastconv::cpu
