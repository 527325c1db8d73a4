// The CPU's ReLU. Schemas: ops.cpp.
#pragma once

#include "../checks.h"

namespace fastconv::cpu {

Tensor relu(const Tensor& input);
void relu_(const Tensor& input);
Tensor relu_backward(const Tensor& grad_output, const Tensor& output);

}  // namespace fastconv::cpu
