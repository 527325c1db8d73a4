#include "plan.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../environment.h"
#include "capability.h"
#include "memory/tiles.h"
#include "slower_calls.h"

// Unless a table says otherwise, it was measured with one thread of Zen 4, AVX-512, batch 64, float32, 3 x 3 kernels.
namespace fastconv::cpu {
namespace {

// ---- choices that tests make -------------------------------------------------------------------------------------

enum class Choice { unset, measured, always, never };

// The decisions that a test may force or forbid.
enum Option {
  torch_itself,
  winograd,
  small_output,
  sparse_gradient,
  few_channels,
  pool_in_registers,
  weight_as_patches,
  options
};
constexpr std::array<const char*, options> option_names{
    "torch", "winograd", "small_output", "sparse_gradient", "few_channels", "pool_in_registers", "weight_as_patches"};
std::array<std::atomic<Choice>, options> choices{};
std::atomic<int> forced_winograd_side{-1};
std::atomic<int64_t> forced_band{0};

bool always(Option option) { return choices[option].load(std::memory_order_relaxed) == Choice::always; }
bool never(Option option) { return choices[option].load(std::memory_order_relaxed) == Choice::never; }

// ---- Winograd ----------------------------------------------------------------------------------------------------

// One side of an image: `count` tiles of m outputs and, unless rest is 0, one more of `rest`.
struct CutSide {
  int m;
  int64_t count;
  int rest;
};

// Lists the ways to cut one side. There are two ways to compute the outputs that remain at the edge. A smaller tile
// saves multiplications, but needs another transformed weight. One more tile of m is partly outside of the image.
std::vector<CutSide> cuts_of_side(int64_t outputs, int largest, int window) {
  std::vector<CutSide> result;
  for (int m = largest; m > 0; --m) {
    if (m % window != 0) continue;
    if (outputs >= m) result.push_back({m, outputs / m, static_cast<int>(outputs % m)});
    if (outputs % m != 0) result.push_back({m, ceil_div(outputs, m), 0});
  }
  return result;
}

WinogradCut cheapest_cut(const FusedShape& f, int largest) {
  constexpr int64_t weight_in_tiles = 40;  // To transform a weight costs as much as 40 tiles.
  const int window = static_cast<int>(f.pool.R);
  WinogradCut best{{}, std::numeric_limits<int64_t>::max()};
  for (const CutSide& h : cuts_of_side(f.pool.P * window, largest, window)) {
    for (const CutSide& w : cuts_of_side(f.pool.Q * window, largest, window)) {
      const int64_t last_row = h.m * h.count, last_column = w.m * w.count;
      WinogradCut cut{{{{h.m, w.m, 0, 0, h.count, w.count},
                        {h.m, w.rest, 0, last_column, h.count, w.rest > 0},
                        {h.rest, w.m, last_row, 0, h.rest > 0, w.count},
                        {h.rest, w.rest, last_row, last_column, h.rest > 0, w.rest > 0}}},
                      0};
      for (const WinogradTileKind& kind : cut.kinds) {
        const int64_t tiles = f.conv.N * kind.per_image();
        if (tiles > 0) cut.cost += (tiles + weight_in_tiles) * kind.frequencies();
      }
      if (cut.cost < best.cost) best = cut;
    }
  }
  return best;
}

// The largest side of a tile. The table has the error of the forward pass divided by PyTorch's error, with tiles of up
// to 4 / 3 / 2 on a side. Errors are root mean squares against float64. x is normally distributed (after ReLU, all
// ratios are a fifth larger). The padding is 1, but 0 for 64->128.
//                      contiguous, AVX-512     channels_last, or PyTorch with AVX2
//   32->32   14x14     2.25 / 1.60 / 0.80      1.61 / 1.15 / 0.57
//   64->64   16x16     2.35 / 1.71 / 0.98      1.20 / 0.87 / 0.50
//   64->128  5x5       1.72 / 1.72 / 0.87      0.88 / 0.88 / 0.45
//   128->128 8x8       2.64 / 1.72 / 1.03      0.98 / 0.64 / 0.38
//   256->256 8x8       2.85 / 1.85 / 1.03      0.76 / 0.50 / 0.28
// The goal is at most about twice PyTorch's error, so the default is 3. Tiles of 4 x 4 take 0.7 to 1.0 of the time and
// need FASTCONV_WINOGRAD=4. Winograd's error is relative to the largest results of a tile. For example, a result may be
// 1e-7 times the largest instead of 0. FASTCONV_WINOGRAD=0 is for users who need each result as exact as its own terms.
//
// PyTorch adds shorter sums, so the ratio is larger, in three cases: with few channels (2.1 for 16 channels in a
// simulation), in backward_data of contiguous tensors, and with much padding (4.7 for padding 3; after ReLU, 2.9 for
// padding 1 of a 3 x 3 image). Tiles are at most 2 x 2 in these three cases, and also with a pool (see
// kernels/winograd.h) and without AVX2.
int winograd_side(const FusedShape& f, bool backward) {
  const Conv2dShape& s = f.conv;
  const bool padded = s.pad_h > 1 || s.pad_w > 1 || (s.H < 5 && s.pad_h > 0) || (s.W < 5 && s.pad_w > 0);
  const bool small = backward || f.window() > 1 || s.C < 32 || padded;
  const int forced = forced_winograd_side.load(std::memory_order_relaxed);
  const int largest = small ? 2 : kernels().conv2d<float>().winograd.largest_tile;
  return std::min(forced < 0 ? environment().winograd : forced, largest);
}

// Returns the cheapest cut, or nothing if Winograd cannot compute the shape or does not pay. `direct` is the number of
// multiplications of the direct kernel for each pair of channels. The table has the time of the direct kernel divided
// by Winograd's, with tiles of up to 3 x 3 (padding 1, but 0 for 64->128; one thread of Zen 5, AVX-512):
//                  batch    1     2     4     8    16    64      with tiles of up to 2 x 2:  16    64      4 x 4:  64
//   16->16   28x28         1.1   1.1   1.1   1.1   1.1   1.2                              1.1   1.0             1.0
//   32->32   14x14         1.2   1.4   1.5   1.7   1.7   1.9                              1.6   1.6             2.0
//   64->64   14x14         1.4   1.6   1.8   2.0   2.1   2.2                              1.9   1.8             2.2
//   64->64   16x16         1.5   1.7   1.8   1.9   2.0   2.1                              1.8   1.7             2.2
//   128->128 14x14         1.5   1.9   2.1   2.2   2.2   2.0                              2.0   1.8             2.2
//   128->128 8x8           1.0   1.0   1.8   2.0   2.2   2.2                              2.1   2.0             2.8
//   256->256 8x8           1.0   1.0   1.9   2.1   2.1   2.0                              2.1   1.9             2.6
//   256->256 7x7           1.0   1.0   1.6   1.8   1.7   1.6                              1.7   1.6             2.1
//   512->512 7x7           1.0   1.0   1.1   1.2   1.5   1.5                              1.4   1.0             1.9
//   512->512 4x4           1.0   1.0   1.0   1.0   1.5   1.5                              1.6   1.4             2.4
//   64->128  5x5           1.0   1.0   1.0   1.0   1.0   1.9                              1.0   1.2             1.9
// The transforms of x and y pay only with enough channels, and those of the weight only with enough tiles.
std::optional<WinogradCut> winograd_cut(const FusedShape& f, int side, int64_t direct) {
  const Conv2dShape& s = f.conv;
  const bool shape = s.R == 3 && s.S == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
                     s.dilation_w == 1 && s.groups == 1;
  const bool tiles = f.windows_touch() && (f.window() == 1 || (f.pool.R == 2 && f.pool.S == 2));
  if (!shape || !tiles || side < 2 || never(winograd)) return {};
  const bool forced = always(winograd);
  if (!forced && (s.C < 16 || s.K < 16)) return {};
  const WinogradCut cut = cheapest_cut(f, side);
  if (!forced && cut.cost >= direct) return {};
  return cut;
}

std::optional<WinogradCut> winograd_cut_forward(const FusedShape& f) {
  return winograd_cut(f, winograd_side(f, false), f.windows() * f.window() * 9);
}

std::optional<WinogradCut> winograd_cut_backward_data(const Conv2dShape& s) {
  if (s.pad_h >= s.R || s.pad_w >= s.S) return {};
  const FusedShape turned = without_pool(turned_around(s));
  // The direct kernel of backward_data skips the products that padding would discard.
  return winograd_cut(turned, winograd_side(turned, true), s.N * s.P * s.Q * 9);
}

// ---- other algorithms --------------------------------------------------------------------------------------------

// Microseconds of PyTorch / of fastconv without small_output, with a cached packed weight / of small_output. One image,
// 2 threads, and the weight is not in the CPU's caches:
//   64->128   5x5 (9 outputs)    34 /   70 /   30
//   64->64    4x4 (16)           18 /   51 /   33
//   512->512  4x4 (16)          898 / 1633 /  856
//   512->512  2x2 (4)          1057 / 1173 /  552
//   64->128   8x8 (64)           76 /  108 /  145
//   128->256  8x8 (64)          243 /  370 /  332
//   256->256  8x8 (64)          489 /  675 /  601
//   256->256  14x14 (196)      1336 / 1291 / 2075
bool is_small_output(const Conv2dShape& s, bool krsc_weight) {
  if (s.groups != 1 || s.C % 16 != 0 || !krsc_weight || never(small_output)) return false;
  if (always(small_output)) return true;
  if (s.C < 32) return false;
  const bool is_large = s.K * s.taps() >= 256 * 1024;  // The direct kernel packs large weights block by block.
  return s.N * s.P * s.Q <= (!is_large ? 24 : s.R * s.S == 1 ? 9 : 16);
}

// The kernels that pool in registers have windows of 1, 4 or 9 pixels. Other pools read the convolution's results from
// per-thread workspace.
bool pools_in_registers(const FusedShape& f) {
  const bool size = f.window() == 1 || f.window() == 4 || f.window() == 9;
  return size && f.windows_touch() && !never(pool_in_registers);
}

// Whether sparse_gradient can compute the shape with full vectors. A vector holds a run of adjacent taps.
template <class T>
bool can_be_sparse(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  if (s.groups != 1 || !f.windows_inside() || never(sparse_gradient)) return false;
  const int64_t run = s.dilation_w == 1 ? s.S * s.C : s.C;
  if (run < kernels().conv2d<T>().direct.block_lanes && !always(sparse_gradient)) return false;
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
// one, but in the rows "data" Winograd's, except for 5x5:
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
double sparse_weight_below() { return always(sparse_gradient) ? 2 : 0.6; }

double sparse_data_below(const Conv2dShape& s, const std::optional<WinogradCut>& cut) {
  if (always(sparse_gradient)) return 2;
  // If Winograd is possible, sparse_gradient must beat it, and Winograd costs less than the direct kernel.
  return cut ? 0.6 * static_cast<double>(cut->cost) / static_cast<double>(s.N * s.P * s.Q * 9) : 0.55;
}

// Chooses sparse_gradient if it is faster. It skips zeros of the pool's gradient if it can, else zeros of the
// convolution's gradient.
template <class T>
bool chooses_sparse(const FusedShape& f, const GradientFacts& gradient, double below, int64_t least_windows,
                    BackwardPlan& plan) {
  const auto possible = [&](const FusedShape& shape) {
    return can_be_sparse<T>(shape) && shape.windows() >= least_windows;
  };
  const bool pooled = possible(f), unpooled = !pooled && possible(without_pool(f.conv));
  if (!pooled && !unpooled) return false;
  if (gradient.nonzero(below) >= below || !gradient.other_is_finite()) return false;
  plan.algorithm = Algorithm::sparse_gradient, plan.unpool = unpooled;
  return true;
}

}  // namespace

// ---- plans -------------------------------------------------------------------------------------------------------

const char* name_of(Algorithm algorithm) {
  constexpr std::array<const char*, 6> names{"direct",       "thin_groups",     "winograd",
                                             "small_output", "sparse_gradient", "few_channels"};
  return names[static_cast<size_t>(algorithm)];
}

bool torch_is_faster(const Conv2dShape& s, Pass pass, ScalarType type) {
  if (!torch_can_compute(s)) return false;
  if (always(torch_itself)) return true;
  const bool measured = choices[torch_itself].load(std::memory_order_relaxed) == Choice::measured;
  if (never(torch_itself) || (environment().own_algorithms && !measured)) return false;
  return is_slower_than_torch(s, pass, type);
}

int64_t pixels_between_windows(const Pool2dShape& s) { return std::min(s.stride_h, s.H) * std::min(s.stride_w, s.W); }

Conv2dShape turned_around(const Conv2dShape& s) {
  Conv2dShape turned = s;
  turned.C = s.K, turned.K = s.C, turned.H = s.P, turned.P = s.H, turned.W = s.Q, turned.Q = s.W;
  turned.pad_h = s.R - 1 - s.pad_h, turned.pad_w = s.S - 1 - s.pad_w;
  return turned;
}

BandLimits band_limits(bool reduced) {
  if (const int64_t band = forced_band.load(std::memory_order_relaxed)) return {band, 0, 0};
  return reduced ? BandLimits{1 << 20, 4, 2 << 20} : BandLimits{4 << 20, 4, 16 << 20};
}

template <class T>
ForwardPlan plan_forward(const FusedShape& f, bool krsc_weight) {
  if (kernels().conv2d<T>().thin_groups.supports(f.conv)) return {Algorithm::thin_groups, {}, false};
  if (is_small_output(f.conv, krsc_weight)) return {Algorithm::small_output, {}, false};
  if (const auto cut = winograd_cut_forward(f)) return {Algorithm::winograd, *cut, true};
  return {Algorithm::direct, {}, pools_in_registers(f)};
}

template <class T>
BackwardPlan plan_backward_data(const FusedShape& f, const GradientFacts& gradient) {
  BackwardPlan plan{Algorithm::direct, {}, gradient.has_argmax, false, 0};
  // thin_groups multiplies the weight by zeros outside of grad_output.
  if (kernels().conv2d<T>().thin_groups.supports(f.conv) && gradient.other_is_finite()) {
    plan.algorithm = Algorithm::thin_groups;
    return plan;
  }
  // A band of a large image may have rows of grad_output that reach no input. They would rule out Winograd.
  Conv2dShape s = f.conv;
  plan.unused_rows = std::max<int64_t>(0, std::min((s.pad_h - (s.R - 1) * s.dilation_h) / s.stride_h, s.P - 1));
  s.P -= plan.unused_rows, s.pad_h -= plan.unused_rows * s.stride_h;
  const auto cut = winograd_cut_backward_data(s);
  if (chooses_sparse<T>(f, gradient, sparse_data_below(s, cut), 0, plan)) {
    const FusedShape computed = plan.unpool ? without_pool(f.conv) : f;
    plan.weight_as_patches = kernels().conv2d<T>().sparse_gradient_3x3.supports(computed) && !never(weight_as_patches);
  } else if (cut) {
    plan.algorithm = Algorithm::winograd, plan.cut = *cut;
  }
  return plan;
}

template <class T>
BackwardPlan plan_backward_weight(const FusedShape& f, const GradientFacts& gradient) {
  constexpr int64_t most_channels = 4;  // of few_channels
  BackwardPlan plan{Algorithm::direct, {}, gradient.has_argmax, false, 0};
  if (kernels().conv2d<T>().thin_groups.supports(f.conv)) {
    plan.algorithm = Algorithm::thin_groups;
    return plan;
  }
  const bool few = f.conv.C <= most_channels || always(few_channels);
  if (gradient.has_argmax && few && !never(few_channels) && kernels().conv2d<T>().few_channels.supports(f) &&
      gradient.other_is_finite()) {
    plan.algorithm = Algorithm::few_channels, plan.unpool = false;
    return plan;
  }
  chooses_sparse<T>(f, gradient, sparse_weight_below(), always(sparse_gradient) ? 0 : 16, plan);
  return plan;
}

template ForwardPlan plan_forward<float>(const FusedShape&, bool);
template ForwardPlan plan_forward<double>(const FusedShape&, bool);
template BackwardPlan plan_backward_data<float>(const FusedShape&, const GradientFacts&);
template BackwardPlan plan_backward_data<double>(const FusedShape&, const GradientFacts&);
template BackwardPlan plan_backward_weight<float>(const FusedShape&, const GradientFacts&);
template BackwardPlan plan_backward_weight<double>(const FusedShape&, const GradientFacts&);

void set_algorithms(const std::map<std::string, std::string>& wanted, int side, int64_t band) {
  std::array<Choice, options> found{};
  size_t known = 0;
  for (int option = 0; option < options; ++option) {
    const auto at = wanted.find(option_names[option]);
    if (at == wanted.end()) continue;
    ++known;
    if (at->second != "always" && at->second != "never" && at->second != "measured") {
      throw std::invalid_argument("fastconv: expected 'always', 'never' or 'measured' for an algorithm, but got '" +
                                  at->second + "'");
    }
    found[option] = at->second == "always" ? Choice::always : at->second == "never" ? Choice::never : Choice::measured;
  }
  if (known != wanted.size()) {
    std::string names;
    for (const char* name : option_names) names += (names.empty() ? "" : ", ") + std::string(name);
    throw std::invalid_argument("fastconv: unknown algorithm; expected any of " + names);
  }
  if (side < -1 || side == 1 || side > 4) {
    throw std::invalid_argument("fastconv: expected winograd to be -1, 0, 2, 3 or 4");
  }
  if (band < 0) throw std::invalid_argument("fastconv: expected band to be at least 0");
  for (int option = 0; option < options; ++option) choices[option] = found[option];
  forced_winograd_side = side;
  forced_band = band;
}

}  // namespace fastconv::cpu
