#include "plan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>

#include "../sizes.h"
#include "candidates.h"
#include "capability.h"
#include "forced_choices.h"
#include "memory/tiles.h"
#include "slower_calls.h"
#include "tuning.h"
#include "winograd_cut.h"

// Unless a table says otherwise, it was measured with one thread of Zen 4, AVX-512, batch 64, float32, 3 x 3 kernels.
namespace fastconv::cpu {
namespace {

// ---- what an algorithm can compute, and when it pays ------------------------------------------------------------

// PyTorch computes the number of outputs from the sizes. A band of a large call may have less padding below.
bool torch_can_compute_exactly(const Conv2dShape& s) {
  return torch_is_allowed() && torch_can_compute(s) &&
         s.P == output_size(s.H, s.R, s.pad_h, s.stride_h, s.dilation_h) &&
         s.Q == output_size(s.W, s.S, s.pad_w, s.stride_w, s.dilation_w);
}

template <class T>
bool has_thin_groups(const Conv2dShape& s) {
  return kernels().conv2d<T>().thin_groups.supports(s) && !never(thin_groups);
}

bool can_be_small_output(const Conv2dShape& s, bool krsc_weight) {
  return s.groups == 1 && s.C % 16 == 0 && krsc_weight && !never(small_output);
}

// Microseconds of the direct kernels / of small_output, one image, 2 threads of Zen 4, AVX-512:
//   512->512 3x3, 2x2 (4 outputs)    313 /  332        512->2048 1x1, 2x2 (4)    140 / 189
//   512->512 3x3, 3x3 (9)            469 /  331        256->256 3x3, 3x3 (9)     127 / 102
//   64->128 3x3, 5x5 (9)              26 /   25        960->160 1x1, 3x3 (9)      48 /  37
//   160->960 1x1, 3x3 (9)             42 /   59        160->960 1x1, 4x4 (16)     84 / 160
//   512->512 3x3, 4x4 (16)           525 /  714        960->160 1x1, 4x4 (16)     51 /  61
// On Zen 5 with AVX-512, the direct kernels are faster for 9 outputs:
//   512->512 336 / 440    256->256 69 / 103    960->160 26 / 36    160->960 25 / 68
// With AVX2, they are slower: 512->512 380 / 292, 256->256 102 / 83.
bool is_small_output(const Conv2dShape& s, bool krsc_weight) {
  if (!can_be_small_output(s, krsc_weight)) return false;
  if (always(small_output)) return true;
  if (has_wide_avx512()) return false;
  const int64_t outputs = s.N * s.P * s.Q;
  return s.taps() >= 512 && outputs > 4 && outputs <= 12;
}

// The kernels that pool in registers have windows of 1, 4 or 9 pixels. Other pools read the convolution's results from
// per-thread workspace.
bool pools_in_registers(const FusedShape& f) {
  const bool size = f.window() == 1 || f.window() == 4 || f.window() == 9;
  return size && f.windows_touch() && !never(pool_in_registers);
}

// Returns whether sparse_gradient can compute the shape. A vector holds a run of adjacent taps. Unless `partial` is
// true, a run must fill a vector.
template <class T>
bool can_be_sparse(const FusedShape& f, bool partial) {
  const Conv2dShape& s = f.conv;
  if (s.groups != 1 || !f.windows_inside() || never(sparse_gradient)) return false;
  const int64_t run = s.dilation_w == 1 ? s.S * s.C : s.C;
  if (run < kernels().conv2d<T>().direct.block_lanes && !partial) return false;
  // Offsets are 32 bits wide. They point into the weight, into a tile of x with its padding, or into the lists of a
  // tile. A tile has several images only if they are small.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t images_x = 1 + sparse_weight_pixels / (f.pool.P * f.pool.Q);
  const int64_t images_dx = 1 + sparse_data_pixels / std::max<int64_t>(1, s.H * s.W);
  const int64_t padded_pixels = reach(s.P, s.stride_h, s.R, s.dilation_h) * reach(s.Q, s.stride_w, s.S, s.dilation_w);
  const int64_t image = std::max(padded_pixels, s.H * s.W) * s.C;
  return s.K * s.taps() * 16 < most && image * images_x < most && s.P * s.Q * s.K * images_dx < most;
}

// Time of the dense kernel / time of sparse_gradient, by the share of non-zero values. The dense kernel is the direct
// one. In the rows "data", it is Winograd's, except for 5x5.
//                            0.80  0.60  0.49  0.40  0.30  0.20  0.12  0.05
//   32->64   13x13  weight   1.0   1.3   1.5   1.7   1.9   2.4   3.2   4.4
//                   data     0.6   0.8   0.9   1.2   1.6   2.1   3.1   4.9
//   64->128  5x5    weight   1.2   1.4   1.7   1.9   2.3   2.8   3.5   4.3
//                   data     1.3   1.7   2.0   2.4   3.1   4.5   7.0   13
//   16->32   13x13  weight   0.9   1.0   1.2   1.3   1.6   1.9   2.2   2.7
//                   data     0.9   1.1   1.2   1.3   1.7   2.0   2.4   3.1
//   128->128 14x14  weight   1.0   1.2   1.4   1.6   1.9   2.7   4.0   7.1    (batch 16)
//                   data     0.4   0.6   0.7   0.8   1.1   1.6   2.4   5.0
// AVX2 is within 10 % of that.
constexpr double at_any_share = 2;
// If Winograd can compute the gradient of the weight, sparse_gradient must beat it.
double sparse_weight_below(const std::optional<WinogradCut>& cut) {
  return always(sparse_gradient) ? at_any_share : cut ? 0.4 : 0.6;
}

double sparse_data_below(const Conv2dShape& s, const std::optional<WinogradCut>& cut) {
  if (always(sparse_gradient)) return at_any_share;
  // If Winograd is possible, sparse_gradient must beat it, and Winograd costs less than the direct kernel.
  return cut ? 0.6 * static_cast<double>(cut->cost) / static_cast<double>(s.N * s.P * s.Q * 9) : 0.55;
}

// Chooses sparse_gradient if the share of non-zero values is `below` a limit. The kernel skips zeros of the pool's
// gradient if it supports the pool. Otherwise, it skips zeros of the convolution's gradient.
template <class T>
bool chooses_sparse(const FusedShape& f, const GradientFacts& gradient, double below, int64_t least_windows,
                    BackwardPlan& plan) {
  const auto possible = [&](const FusedShape& shape) {
    return can_be_sparse<T>(shape, below == at_any_share) && shape.windows() >= least_windows;
  };
  const bool pooled = possible(f), unpooled = !pooled && possible(without_pool(f.conv));
  if (!pooled && !unpooled) return false;
  if (gradient.nonzero(below) >= below || !gradient.other_is_finite()) return false;
  plan.algorithm = Algorithm::sparse_gradient, plan.unpool = unpooled;
  return true;
}

// backward_weight: the lanes of gemm are taps, those of the direct kernel are output channels. So a gemm of few taps
// wastes lanes. Milliseconds of the direct kernel / of gemm, 2 threads, batch of 8, channels_last, cold caches:
//                             AVX-512        AVX2
//   4->64 3x3, 64x64         1.13 /  1.57    1.78 /  1.87
//   8->64 3x3, 64x64         1.95 /  2.31    2.37 /  1.97
//   24->144 1x1, 32x32       0.50 /  0.60    0.64 /  0.47
//   16->64 1x1, 64x64        0.76 /  0.70    1.05 /  0.69
//   64->64 3x3 /2, 56x56     4.11 /  3.33    4.35 /  2.83
//   512->128 1x1, 28x28     11.05 /  4.82   13.67 /  4.96
//   256->128 1x1, 56x56     14.85 /  9.64   26.38 / 10.42
//   1024->1024 1x1, 7x7      6.01 /  4.92    9.48 /  4.96
//   512->512 3x3 /2, 8x8     5.28 /  3.48    7.68 /  3.33
template <class T>
bool is_gemm(const Conv2dShape& s) {
  const int64_t lanes = kernels().conv2d<T>().gemm_weight.block_lanes / 2, taps = s.taps();
  if (always(gemm) || never(gemm)) return always(gemm);
  return s.group_C() >= lanes && (taps % lanes == 0 || taps >= 4 * lanes);
}

constexpr int64_t most_few_channels = 4;

template <class T>
bool can_have_few_channels(const FusedShape& f, const GradientFacts& gradient) {
  return !never(few_channels) && kernels().conv2d<T>().few_channels.supports(f) && gradient.other_is_finite();
}

// Returns whether PyTorch computes dx of a fused operator, from the gradient of the convolution.
template <class T>
bool torch_computes_fused_data(const FusedShape& f, const GradientFacts& gradient) {
  return std::is_same_v<T, float> && gradient.has_argmax && torch_can_compute_exactly(f.conv) &&
         rule_for_torch(f.conv, Pass::backward_data, ScalarType::Float, true, true);
}

// The first rows of grad_output that reach no input. Only a band of a large image has such rows.
int64_t unused_rows(const Conv2dShape& s) {
  return std::max<int64_t>(0, std::min((s.pad_h - (s.R - 1) * s.dilation_h) / s.stride_h, s.P - 1));
}

Conv2dShape without_rows(Conv2dShape s, int64_t rows) {
  s.P -= rows, s.pad_h -= rows * s.stride_h;
  return s;
}

BackwardPlan direct_plan(const GradientFacts& gradient) { return {Algorithm::direct, {}, gradient.has_argmax}; }

template <class T>
bool has_patches(const FusedShape& f, bool unpool) {
  const FusedShape computed = unpool ? without_pool(f.conv) : f;
  return kernels().conv2d<T>().sparse_gradient_3x3.supports(computed) && !never(weight_as_patches);
}

// ---- plans of one candidate: nothing if it cannot compute the call ----------------------------------------------

// torch, thin_groups or image_filter, if it is the candidate and supports the shape. image_filter supports no argmax.
// The caller checks that the weight is finite where backward_data needs it.
template <class T>
std::optional<Algorithm> simple_algorithm(Candidate candidate, const FusedShape& f, bool has_argmax) {
  if (candidate == Candidate::torch && torch_can_compute_exactly(f.conv)) return Algorithm::torch;
  if (candidate == Candidate::thin_groups && has_thin_groups<T>(f.conv)) return Algorithm::thin_groups;
  if (candidate == Candidate::image_filter && can_be_image_filter(f.conv) && !has_argmax)
    return Algorithm::image_filter;
  return {};
}

template <class T>
std::optional<ForwardPlan> forward_by(Candidate candidate, const FusedShape& f, bool krsc_weight, bool has_argmax) {
  if (const auto simple = simple_algorithm<T>(candidate, f, has_argmax)) return ForwardPlan{*simple};
  if (candidate == Candidate::direct) return ForwardPlan{Algorithm::direct};
  if (candidate == Candidate::pool_in_registers && pools_in_registers(f))
    return ForwardPlan{Algorithm::direct, {}, true};
  if (candidate == Candidate::small_output && can_be_small_output(f.conv, krsc_weight))
    return ForwardPlan{Algorithm::small_output};
  if (const int side = winograd_side_of(candidate)) {
    if (const auto cut = winograd_cut_forward(f, side, false)) return ForwardPlan{Algorithm::winograd, *cut, true};
  }
  return {};
}

template <class T>
std::optional<BackwardPlan> backward_data_by(Candidate candidate, const FusedShape& f, const GradientFacts& gradient) {
  BackwardPlan plan = direct_plan(gradient);
  if (const auto simple = simple_algorithm<T>(candidate, f, gradient.has_argmax)) {
    if (*simple != Algorithm::torch && !gradient.other_is_finite()) return {};
    plan.algorithm = *simple;
    return plan;
  }
  const bool patches = candidate == Candidate::weight_as_patches;
  if (patches || candidate == Candidate::sparse_gradient) {
    if (!chooses_sparse<T>(f, gradient, at_any_share, 0, plan)) return {};
    plan.weight_as_patches = patches && has_patches<T>(f, plan.unpool);
    return plan;
  }
  plan.unused_rows = unused_rows(f.conv);
  if (candidate == Candidate::direct) return plan;
  if (const int side = winograd_side_of(candidate)) {
    const auto cut = winograd_cut_backward_data(without_rows(f.conv, plan.unused_rows), side, false);
    if (!cut) return {};
    plan.algorithm = Algorithm::winograd, plan.cut = *cut;
    return plan;
  }
  return {};
}

template <class T>
std::optional<BackwardPlan> backward_weight_by(Candidate candidate, const FusedShape& f,
                                               const GradientFacts& gradient) {
  BackwardPlan plan = direct_plan(gradient);
  if (candidate == Candidate::direct) return plan;
  if (candidate == Candidate::sparse_gradient) {
    if (!chooses_sparse<T>(f, gradient, at_any_share, 0, plan)) return {};
  } else if (const auto simple = simple_algorithm<T>(candidate, f, gradient.has_argmax)) {
    plan.algorithm = *simple;
  } else if (candidate == Candidate::gemm) {
    plan.algorithm = Algorithm::gemm;
  } else if (const auto cut = winograd_cut_backward_weight(f.conv, winograd_side_of(candidate), false)) {
    plan.algorithm = Algorithm::winograd, plan.cut = *cut;
  } else if (candidate == Candidate::few_channels && f.conv.C <= 4 * most_few_channels &&
             can_have_few_channels<T>(f, gradient)) {
    plan.algorithm = Algorithm::few_channels, plan.unpool = false;
  } else {
    return {};
  }
  return plan;
}

}  // namespace

// ---- plans -------------------------------------------------------------------------------------------------------

const char* name_of(Algorithm algorithm) {
  constexpr std::array<const char*, 10> names{"direct",          "thin_groups", "winograd", "small_output",
                                              "sparse_gradient", "gemm",        "pairs",    "few_channels",
                                              "image_filter",    "torch"};
  return names[static_cast<size_t>(algorithm)];
}

bool torch_is_faster(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc) {
  if (multiplies_pairs(s, pass, type, nhwc)) return false;
  if (!torch_is_allowed() || !torch_can_compute(s)) return false;
  if (always(torch_itself)) return true;
  const Candidate tuned = tuned_choice(pass);
  const bool by_rules = tuned == Candidate::none || tuned == Candidate::pairs;
  return by_rules ? rule_for_torch(s, pass, type, nhwc) != nullptr : tuned == Candidate::torch;
}

bool has_large_weight(const Conv2dShape& s) { return s.K * s.taps() >= 256 * 1024; }

int64_t pixels_between_windows(const Pool2dShape& s) { return std::min(s.stride_h, s.H) * std::min(s.stride_w, s.W); }

Conv2dShape turned_around(const Conv2dShape& s) {
  Conv2dShape turned = s;
  turned.C = s.K, turned.K = s.C, turned.H = s.P, turned.P = s.H, turned.W = s.Q, turned.Q = s.W;
  turned.pad_h = (s.R - 1) * s.dilation_h - s.pad_h, turned.pad_w = (s.S - 1) * s.dilation_w - s.pad_w;
  return turned;
}

BandLimits band_limits(bool reduced) {
  if (const int64_t band = forced_band()) return {band, 0, 0};
  return reduced ? BandLimits{1 << 20, 4, 2 << 20} : BandLimits{4 << 20, 4, 16 << 20};
}

template <class T>
ForwardPlan plan_forward(const FusedShape& f, bool krsc_weight, bool has_argmax) {
  if (const auto tuned = forward_by<T>(tuned_choice(Pass::forward), f, krsc_weight, has_argmax)) return *tuned;
  if (!has_argmax && chooses_image_filter(f.conv, Pass::forward)) return {Algorithm::image_filter};
  if (has_thin_groups<T>(f.conv)) return {Algorithm::thin_groups};
  if (is_small_output(f.conv, krsc_weight)) return {Algorithm::small_output};
  if (const auto cut = winograd_cut_forward(f)) return {Algorithm::winograd, *cut, true};
  return {Algorithm::direct, {}, pools_in_registers(f)};
}

template <class T>
BackwardPlan plan_backward(Pass pass, const FusedShape& f, const GradientFacts& gradient) {
  const bool of_data = pass == Pass::backward_data;
  const Candidate choice = tuned_choice(pass);
  const auto tuned = of_data ? backward_data_by<T>(choice, f, gradient) : backward_weight_by<T>(choice, f, gradient);
  if (tuned) return *tuned;
  BackwardPlan plan = direct_plan(gradient);
  // In backward_data, image_filter and thin_groups multiply the weight by zeros outside of grad_output.
  const bool filter = !gradient.has_argmax && chooses_image_filter(f.conv, pass);
  if ((filter || has_thin_groups<T>(f.conv)) && (!of_data || gradient.other_is_finite())) {
    plan.algorithm = filter ? Algorithm::image_filter : Algorithm::thin_groups;
    return plan;
  }
  if (of_data) {
    plan.unused_rows = unused_rows(f.conv);  // They would rule out Winograd.
    const Conv2dShape s = without_rows(f.conv, plan.unused_rows);
    const auto cut = winograd_cut_backward_data(s);
    if (chooses_sparse<T>(f, gradient, sparse_data_below(s, cut), 0, plan)) {
      plan.weight_as_patches = has_patches<T>(f, plan.unpool);
    } else if (cut) {
      plan.algorithm = Algorithm::winograd, plan.cut = *cut;
    } else if (torch_computes_fused_data<T>(f, gradient)) {
      plan.algorithm = Algorithm::torch;
    }
    return plan;
  }
  const bool few = f.conv.C <= most_few_channels || always(few_channels);
  if (gradient.has_argmax && few && can_have_few_channels<T>(f, gradient)) {
    plan.algorithm = Algorithm::few_channels, plan.unpool = false;
    return plan;
  }
  const auto cut = winograd_cut_backward_weight(f.conv);
  if (chooses_sparse<T>(f, gradient, sparse_weight_below(cut), always(sparse_gradient) ? 0 : 16, plan)) return plan;
  if (cut) {
    plan.algorithm = Algorithm::winograd, plan.cut = *cut;
  } else if (is_gemm<T>(f.conv)) {
    plan.algorithm = Algorithm::gemm;
  }
  return plan;
}

template ForwardPlan plan_forward<float>(const FusedShape&, bool, bool);
template ForwardPlan plan_forward<double>(const FusedShape&, bool, bool);
template BackwardPlan plan_backward<float>(Pass, const FusedShape&, const GradientFacts&);
template BackwardPlan plan_backward<double>(Pass, const FusedShape&, const GradientFacts&);

}  // namespace fastconv::cpu
