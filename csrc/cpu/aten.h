// PyTorch's own convolution and its gradients, for calls where PyTorch is faster (torch_is_faster in plan.h). The
// results are dense: in channels_last if `channels_last` is set, otherwise contiguous.
#pragma once

#include <optional>
#include <tuple>

#include "../shapes.h"
#include "../tensor.h"

namespace fastconv::cpu {

Tensor aten_conv2d(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool channels_last);
// Gradients that are not needed are undefined.
Gradients aten_conv2d_backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, bool needs_input, bool needs_weight);
Tensor aten_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                 bool channels_last);
// The gradients of the weight and of the bias.
std::tuple<Tensor, Tensor> aten_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                       const Tensor& input, bool channels_last);

}  // namespace fastconv::cpu
