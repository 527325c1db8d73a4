#include "candidates.h"
#include "capability.h"
#include "forced_choices.h"
#include "plan.h"
#include "slower_calls.h"
#include "tuning.h"

namespace fastconv::cpu {

// PyTorch's time / that of pairs, in bfloat16. 2 threads of Zen 5, channels_last, medians of 15 alternating calls:
//                             forward   backward_data   backward_weight
//   64->64 3x3, 56x56            1.04        1.04            1.01         batch of 8
//   256->64 1x1, 56x56           0.92        0.96            1.19
//   64->256 1x1, 56x56           0.97        1.11            1.20
//   512->128 1x1, 28x28          1.05        0.98            1.13
//   1024->256 1x1, 14x14         1.14        1.00            1.02
//   1024->1024 1x1, 7x7          2.08        1.44            1.28
//   512->512 3x3, 7x7            1.35        1.15            1.49
//   128->256 3x3 /2, 28x28       1.06                        1.16
//   96->24 1x1, 56x56            1.20        0.96            1.50
//   512->512 3x3, 7x7            1.87        1.63            2.87         one image
//   3->64 11x11 /4, 224x224      1.25                        1.29         batch of 8
// Forward computes up to 970 GFLOP/s. For 1x1 kernels, float32 takes 1.8 to 3.6 times as long. For 3x3 kernels with a
// stride of 1, float32 has Winograd's algorithm and takes 0.7 to 2.1 times as long.
bool multiplies_pairs(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc) {
  if (type != ScalarType::BFloat16 || !nhwc || s.groups != 1 || pairs_kernels() == nullptr) return false;
  if (never(pairs)) return false;
  if (pass == Pass::backward_data) {
    const Conv2dShape turned = turned_around(s);
    if (s.stride_h != 1 || s.stride_w != 1 || turned.pad_h < 0 || turned.pad_w < 0) return false;
  }
  if (always(pairs)) return true;
  const Candidate tuned = tuned_choice(pass);
  if (tuned != Candidate::none) return tuned == Candidate::pairs;
  if (chooses_image_filter_in_bfloat16(s, pass)) return false;
  return !always(torch_itself) && !(torch_is_allowed() && is_slow_in_pairs(s, pass));
}

}  // namespace fastconv::cpu
