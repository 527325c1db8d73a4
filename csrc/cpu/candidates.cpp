#include "candidates.h"

#include <algorithm>
#include <stdexcept>

namespace fastconv::cpu {
namespace {

Candidate winograd_candidate(const WinogradCut& cut) {
  int side = 2;
  for (const WinogradTileKind& kind : cut.kinds) {
    if (kind.per_image() > 0) side = std::max({side, static_cast<int>(kind.mh), static_cast<int>(kind.mw)});
  }
  return static_cast<Candidate>(static_cast<int>(Candidate::winograd_2) + side - 2);
}

}  // namespace

const char* name_of(Candidate candidate) {
  constexpr std::array<const char*, static_cast<size_t>(Candidate::candidates)> names{
      "none",       "torch",        "direct",       "pool_in_registers", "thin_groups",       "winograd_2",
      "winograd_3", "winograd_4",   "small_output", "sparse_gradient",   "weight_as_patches", "gemm",
      "pairs",      "few_channels", "image_filter"};
  return names[static_cast<size_t>(candidate)];
}

Candidate candidate_named(const std::string& name) {
  for (int i = 1; i < static_cast<int>(Candidate::candidates); ++i) {
    if (name == name_of(static_cast<Candidate>(i))) return static_cast<Candidate>(i);
  }
  throw std::invalid_argument("unknown algorithm '" + name + "'");
}

int winograd_side_of(Candidate candidate) {
  const int side = 2 + static_cast<int>(candidate) - static_cast<int>(Candidate::winograd_2);
  return side >= 2 && side <= 4 ? side : 0;
}

Candidate candidate_of(const ForwardPlan& plan, bool fused) {
  switch (plan.algorithm) {
    case Algorithm::winograd:
      return winograd_candidate(plan.cut);
    case Algorithm::direct:
      return fused && plan.pool_in_registers ? Candidate::pool_in_registers : Candidate::direct;
    default:
      return candidate_named(name_of(plan.algorithm));
  }
}

Candidate candidate_of(const BackwardPlan& plan) {
  if (plan.algorithm == Algorithm::winograd) return winograd_candidate(plan.cut);
  return plan.weight_as_patches ? Candidate::weight_as_patches : candidate_named(name_of(plan.algorithm));
}

}  // namespace fastconv::cpu
