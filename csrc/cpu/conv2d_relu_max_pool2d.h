// Convolution, ReLU and max-pooling as one, on the CPU. argmax: kernels/pooling_epilogue.h.
#pragma once

#include "../fused.h"

namespace fastconv::cpu {

FusedForward fused_forward;
FusedBackward fused_backward;

}  // namespace fastconv::cpu
