// Batch normalisation, with an optional residual and activation (schemas: ops.cpp). Mathematics: kernels/batch_norm.h.
#pragma once

#include "../checks.h"

namespace fastconv::cpu {

using Statistics = std::tuple<Tensor, Tensor>;  // in double: the mean of each channel, and 1 / sqrt(variance + eps)
using BatchNormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of input, weight, bias and residual

// Updates the running statistics, if there are any, as PyTorch does.
Statistics batch_norm_statistics(const Tensor& input, const std::optional<Tensor>& running_mean,
                                 const std::optional<Tensor>& running_var, double momentum, double eps);

// `spread`: with `training`, 1 / sqrt(variance + eps), else the variance.
Tensor batch_norm(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                  const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& residual, bool training,
                  double eps, int64_t activation);

// `output`: the result of batch_norm. It is needed if there was a residual and an activation.
BatchNormGradients batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                       const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                       const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& output,
                                       bool training, double eps, int64_t activation, bool needs_input,
                                       bool needs_residual);

}  // namespace fastconv::cpu
