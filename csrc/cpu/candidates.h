// The candidates of fastconv.tune(): one or more for each algorithm.
#pragma once

#include <string>

#include "plan.h"

namespace fastconv::cpu {

// The ways to compute a pass that fastconv.tune() compares: the algorithms with their most important decision.
enum class Candidate : uint8_t {
  none,  // the plan decides by its rules
  torch,
  direct,
  pool_in_registers,  // direct, for fused operators
  thin_groups,
  winograd_2,  // with tiles of up to 2 x 2
  winograd_3,
  winograd_4,
  small_output,
  sparse_gradient,
  weight_as_patches,  // sparse_gradient
  gemm,
  pairs,
  few_channels,
  image_filter,
  candidates
};

const char* name_of(Candidate candidate);

// Throws std::invalid_argument for an unknown name. The names of the plan's algorithms are known, except winograd.
Candidate candidate_named(const std::string& name);

// The side of Winograd's tiles, or 0 for other candidates.
int winograd_side_of(Candidate candidate);

// The candidate that a plan uses. `fused`: a fused operator makes the call.
Candidate candidate_of(const ForwardPlan& plan, bool fused);
Candidate candidate_of(const BackwardPlan& plan);

}  // namespace fastconv::cpu
