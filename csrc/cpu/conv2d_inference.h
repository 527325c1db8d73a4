// A convolution with what follows it in inference: activation(batch_norm(conv2d(x)) + residual). Schema: ops.cpp.
#pragma once

#include "../checks.h"

namespace fastconv::cpu {

// `running_mean` and `running_var` are both there, or none is: then there is no batch norm.
Tensor conv2d_inference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
                        const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                        const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                        const Ints& dilation, int64_t groups, double eps, int64_t activation, double slope);

}  // namespace fastconv::cpu
