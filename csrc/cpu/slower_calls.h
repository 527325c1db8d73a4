// The calls that PyTorch computes faster than fastconv's kernels do, by measurement.
// docs/reference/pytorch_calls.md lists the rules for users.
#pragma once

#include <vector>

#include "plan.h"

namespace fastconv::cpu {

// Returns whether PyTorch's kernels can compute the shape. They cut sizes to 32 bits without an error.
bool torch_can_compute(const Conv2dShape& s);

// The number of products in all results.
double products(const Conv2dShape& s);

// Returns whether a call multiplies mostly zeros of the padding.
bool is_mostly_padding(const Conv2dShape& s);

// Returns whether PyTorch computes bfloat16 faster than pairs.
bool is_slow_in_pairs(const Conv2dShape& s, Pass pass);

// Returns the name of the rule that leaves a call to PyTorch, or null if fastconv computes it. Most rules are for a
// convolution alone, because fusion gains more than PyTorch's convolution would save. `nhwc`: the activations are NHWC.
const char* rule_for_torch(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc, bool fused = false);

// The names of all rules.
std::vector<const char*> rules_for_torch();

}  // namespace fastconv::cpu
