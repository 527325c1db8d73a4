// The calls that PyTorch computes faster than fastconv's kernels do, by measurement.
#pragma once

#include "plan.h"

namespace fastconv::cpu {

// Nothing here is fused with ReLU or pooling: fusion gains more than these calls lose.
bool is_slower_than_torch(const Conv2dShape& s, Pass pass, ScalarType type);

}  // namespace fastconv::cpu
