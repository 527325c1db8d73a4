// The algorithms that a test forces or forbids in this process (set_algorithms in plan.h).
#pragma once

#include <cstdint>

namespace fastconv::cpu {

// The decisions that a test may force or forbid.
enum Option {
  torch_itself,
  winograd,
  small_output,
  sparse_gradient,
  few_channels,
  pool_in_registers,
  weight_as_patches,
  thin_groups,
  gemm,
  pairs,
  image_filter,
  options
};

bool always(Option option);
bool never(Option option);

// Returns whether PyTorch's own operators may compute a call. FASTCONV_ALGORITHM=own and tests can forbid them.
bool torch_is_allowed();

// Returns whether any algorithm is forced or forbidden. Then nothing is tuned.
bool algorithms_are_forced();

// The largest side of Winograd's tiles: FASTCONV_WINOGRAD, unless a test replaces it.
int most_winograd_side();

// The size of a band, or 0 for the default.
int64_t forced_band();

}  // namespace fastconv::cpu
