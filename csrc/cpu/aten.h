// PyTorch's own convolution and its gradients, for calls where PyTorch is faster (torch_is_faster in plan.h). The
// results are dense: in channels_last if `channels_last` is set, otherwise contiguous.
#pragma once

#include "convolution.h"

namespace fastconv::cpu {

Tensor aten_conv2d(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool channels_last);
// Returns undefined tensors for gradients that are not needed. `call` must have neither gradients nor an argmax.
Gradients aten_conv2d_backward(const Backward& call, bool needs_input, bool needs_weight);

}  // namespace fastconv::cpu
