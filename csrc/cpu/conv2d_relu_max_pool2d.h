// The CPU's fused convolution, ReLU and max-pooling. Schemas: ops.cpp. The argmax: shapes.h.
#pragma once

#include "../fused.h"

namespace fastconv::cpu {

FusedForward fused_forward;
FusedBackward fused_backward;

}  // namespace fastconv::cpu
