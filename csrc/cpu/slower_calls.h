// The calls that PyTorch computes faster than fastconv's kernels do, by measurement.
#pragma once

#include "plan.h"

namespace fastconv::cpu {

// Whether PyTorch's kernels can compute the shape. They cut sizes to 32 bits without an error.
bool torch_can_compute(const Conv2dShape& s);

// For a convolution alone. A fused operator never calls PyTorch's convolution: fusion gains more than it would save.
bool is_slower_than_torch(const Conv2dShape& s, Pass pass, ScalarType type);

}  // namespace fastconv::cpu
