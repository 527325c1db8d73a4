#include <algorithm>

#include "forced_choices.h"
#include "plan.h"

namespace fastconv::cpu {
namespace {

// A vector has 16 neighbouring pixels, so narrow images waste lanes. A tile of 8 rows copies all rows that it reads.
//
// Batches of 1 and 8, 2 threads of Zen 5, AVX-512, PyTorch's time / that of image_filter. In parentheses: PyTorch's
// time / that of the algorithm that the plan would choose otherwise.
//                            forward                 backward_data           backward_weight
//   3 3x3, 128x128, NCHW          8.5                     6.4                     6.2
//      channels_last              1.0 (0.9)               1.2 (1.3)               1.4 (1.1)
//   3 5x5, 512x512, NCHW     5.1                     5.6                     8.7
//      channels_last         1.4      (0.9)          12.7     (1.5)          3.1      (2.1)
//   3 11x11, 224x224, NCHW   3.2  4.9                4.1  4.8                17   24
//      channels_last         2.0  2.1  (0.8  0.8)    3.4  3.8  (1.4  1.5)    4.9  5.5  (0.6  0.6)
//   4 7x7, 64x64, NCHW            3.4                     3.8                     13
//      channels_last              1.4 (1.2)               2.3 (2.0)               3.7 (2.3)
//   1->1 15x15, 224x224      8.1  7.5  (0.9  1.1)    51   54   (0.2  0.2)    28   21   (3.1  3.0)
//   1->4 3x3, 128x128             4.8 (1.2)               14  (0.8)               4.3 (2.0)
// With several input channels, channels_last:
//   12->3 3x3, 256x256, forward         1.5 (1.7)         3->64 3x3, 224x224, backward_data     1.3 (2.1)
//   64->3 3x3, 64x64, forward           1.4 (1.6)         3->32 3x3, 64x64, backward_data       1.5 (2.6)
//   64->3 9x9, 64x64, forward           2.1 (2.3)         3->16 5x5, 224x224, backward_data     1.6 (6.3)
//   32->1 3x3, 256x256, forward         3.3 (3.9)         1->32 3x3, 28x28, backward_data       2.6 (4.0)
//   32->2 3x3, 32x32, forward           1.8 (1.9)         3->16 3x3, 32x32, backward_data       1.5 (3.4)
bool is_image_filter(const Conv2dShape& s, Pass pass) {
  constexpr int64_t most_outputs = 4, most_inputs = 64, least_taps = 9, least_columns = 24, most_rows = 64;
  if (s.R * s.S < least_taps || std::min(s.Q, s.W) < least_columns || s.R * s.dilation_h > most_rows) return false;
  if (pass == Pass::backward_weight) return s.group_C() == 1 && s.K <= most_outputs;
  const bool of_data = pass == Pass::backward_data;
  return (of_data ? s.C : s.K) <= most_outputs && (of_data ? s.group_K() : s.group_C()) <= most_inputs;
}

}  // namespace

// The driver copies rows of all channels, with their padding. The size of the copies must not overflow.
bool can_be_image_filter(const Conv2dShape& s) {
  constexpr int64_t most_channels = 64;
  constexpr double most_pixels = 1e9;
  const double rows = static_cast<double>(s.H) + 2 * static_cast<double>(s.pad_h);
  const double columns = static_cast<double>(s.W) + 2 * static_cast<double>(s.pad_w);
  return s.stride_h == 1 && s.stride_w == 1 && std::max(s.C, s.K) <= most_channels && rows * columns <= most_pixels &&
         !never(image_filter);
}

// If a test forces another algorithm, the plan does not choose image_filter.
bool chooses_image_filter(const Conv2dShape& s, Pass pass) {
  if (!can_be_image_filter(s)) return false;
  return always(image_filter) || (is_image_filter(s, pass) && !algorithms_are_forced());
}

// In 16 bits, whole tensors are converted, so only filters with many taps pay. bfloat16, 2 threads of Zen 5, NCHW
// (channels_last), PyTorch's time / that of image_filter:
//                                forward        backward_data    backward_weight
//   1->1 15x15, 224x224           6.2 (5.8)        49  (44)         30  (29)
//   3 11x11, 256x256              4.0 (2.1)        4.4 (3.6)        22  (8.0)
//   1->4 5x5, 256x256             1.6 (1.5)        7.7 (7.8)        4.5 (4.5)
//   3 3x3, 224x224                2.6 (0.44)       2.6 (0.63)       2.7 (0.62)
//   64->3 3x3, 128x128            1.1 (0.75)                        1.1 (0.91)
bool chooses_image_filter_in_bfloat16(const Conv2dShape& s, Pass pass) {
  constexpr int64_t most_outputs = 4, least_taps = 25;
  return s.group_C() == 1 && s.group_K() <= most_outputs && s.R * s.S >= least_taps && chooses_image_filter(s, pass);
}

}  // namespace fastconv::cpu
