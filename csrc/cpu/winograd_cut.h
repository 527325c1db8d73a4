// How the plan cuts images for Winograd's algorithm.
#pragma once

#include <optional>

#include "plan.h"

namespace fastconv::cpu {

// Each returns the cheapest cut into tiles of at most `side` outputs on a side. FASTCONV_WINOGRAD and the limit on the
// rounding error may reduce `side`. Returns nothing if Winograd cannot compute the shape or, with `must_pay`, if the
// direct kernel is faster.
std::optional<WinogradCut> winograd_cut_forward(const FusedShape& f, int side = 4, bool must_pay = true);
std::optional<WinogradCut> winograd_cut_backward_data(const Conv2dShape& s, int side = 4, bool must_pay = true);
// The cut has one kind of tiles.
std::optional<WinogradCut> winograd_cut_backward_weight(const Conv2dShape& s, int side = 4, bool must_pay = true);

}  // namespace fastconv::cpu
