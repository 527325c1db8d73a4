// Decides whether fastconv's kernels or PyTorch's own operator (cuDNN) compute a convolution on a GPU. plan.cpp has the
// measurements. fastconv/_ops/gpu.py asks here before each call, through fastconv._C.plan(..., cuda_capability=90).
//
// A plan needs no GPU and no CUDA: every build can answer for a GPU that it does not have.
#pragma once

#include <vector>

#include "../cpu/plan.h"
#include "../shapes.h"
#include "../tensor.h"

namespace fastconv::cuda {

using cpu::Pass;

struct Call {
  Pass pass;
  FusedShape shape;
  bool fused;  // a ReLU follows, and perhaps a pool. In backward: the gradient comes with an argmax
  ScalarType type;
  bool channels_last;  // input and weight
  bool tf32;           // PyTorch may compute float32 in TF32
  int capability;      // of the GPU: 90 for sm_90
};

// Returns whether PyTorch's own operators compute the call. They do, unless fastconv was measured as faster, or
// FASTCONV_ALGORITHM is own.
bool torch_is_faster(const Call& call);

// Returns the name of the rule that keeps a call for fastconv's kernels, or null if there is none.
const char* rule_for_fastconv(const Call& call);

// The names of all rules.
std::vector<const char*> rules_for_fastconv();

}  // namespace fastconv::cuda
