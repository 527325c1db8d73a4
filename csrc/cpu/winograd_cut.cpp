#include "winograd_cut.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "capability.h"
#include "forced_choices.h"
#include "memory/tiles.h"

// Unless a table says otherwise, it was measured with one thread of Zen 4, AVX-512, batch 64, float32, 3 x 3 kernels.
namespace fastconv::cpu {
namespace {

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

bool is_plain_3x3(const Conv2dShape& s) {
  return s.R == 3 && s.S == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 &&
         s.groups == 1;
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
// In three cases, PyTorch adds shorter sums. So the ratio is larger with few channels (2.1 for 16 channels in a
// simulation), in backward_data of contiguous tensors, and with much padding (4.7 for padding 3; after ReLU, 2.9 for
// padding 1 of a 3 x 3 image). Tiles are at most 2 x 2 in these three cases, and also with a pool (see
// kernels/winograd.h) and without AVX2. Even those are not exact enough with less than 8 channels (largest ratio in
// tests/test_random_sweep.py: 4.0 for 1 channel, 2.5 for 2, 2.4 for 3 and 4, 2.0 for 5 to 8).
int winograd_side(const FusedShape& f, bool backward) {
  const Conv2dShape& s = f.conv;
  const bool padded = s.pad_h > 1 || s.pad_w > 1 || (s.H < 5 && s.pad_h > 0) || (s.W < 5 && s.pad_w > 0);
  const bool small = backward || f.window() > 1 || s.C < 32 || padded;
  return std::min(most_winograd_side(), small ? 2 : kernels().conv2d<float>().winograd.largest_tile);
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
std::optional<WinogradCut> winograd_cut(const FusedShape& f, int side, bool must_pay, int64_t direct) {
  const Conv2dShape& s = f.conv;
  const bool shape = is_plain_3x3(s);
  const bool tiles = f.windows_touch() && (f.window() == 1 || (f.pool.R == 2 && f.pool.S == 2));
  if (!shape || !tiles || side < 2 || never(winograd)) return {};
  constexpr int64_t least_exact = 8;  // channels
  if (s.C < least_exact && !always(winograd)) return {};
  must_pay = must_pay && !always(winograd);
  if (must_pay && (s.C < 16 || s.K < 16)) return {};
  const WinogradCut cut = cheapest_cut(f, side);
  if (must_pay && cut.cost >= direct) return {};
  return cut;
}

}  // namespace

std::optional<WinogradCut> winograd_cut_forward(const FusedShape& f, int side, bool must_pay) {
  return winograd_cut(f, std::min(side, winograd_side(f, false)), must_pay, f.windows() * f.window() * 9);
}

std::optional<WinogradCut> winograd_cut_backward_data(const Conv2dShape& s, int side, bool must_pay) {
  if (s.pad_h >= s.R || s.pad_w >= s.S) return {};
  const FusedShape turned = without_pool(turned_around(s));
  // The direct kernel of backward_data skips the products that padding would discard.
  return winograd_cut(turned, std::min(side, winograd_side(turned, true)), must_pay, s.N * s.P * s.Q * 9);
}

// A tile takes as long as its multiplications and the transforms of x and g. The sums are written and transformed once,
// however many tiles there are. Milliseconds of the direct kernel / of Winograd with tiles of 2x2 / of 3x3, 2 threads
// of Zen 4, and the error of the last two / PyTorch's error (x after ReLU, channels_last):
//   64->64 32x32, batch of 8      2.98 / 1.68 / 1.28    0.7  1.5        16->16 32x32, batch of 64    1.69 / 1.05 / 0.81
//   128->128 16x16, batch of 8    2.92 / 1.92 / 1.51    1.0  1.9        32->32 16x16, batch of 64    1.49 / 0.88 / 0.83
//   256->256 8x8, batch of 8      3.38 / 2.06 / 1.88    1.1  2.2        64->64 56x56, one image      1.23 / 0.64 / 0.52
//   512->512 4x4, batch of 8      4.82 / 3.69           1.6             512->512 7x7, batch of 8     14.1 / 10.1 / 10.2
//   24->40 9x9, batch of 2        0.05 / 0.09           1.7             32->32 112x112, batch of 8   9.49 / 6.30 / 5.31
// PyTorch's error is small if it adds few terms. So tiles of 3x3 need 1024 outputs. With a single output, tiles of 2x2
// have more than twice PyTorch's error (256->17 channels, tests/test_random_sweep.py).
std::optional<WinogradCut> winograd_cut_backward_weight(const Conv2dShape& s, int side, bool must_pay) {
  const int64_t outputs = s.N * s.P * s.Q;
  side =
      std::min({side, most_winograd_side(), kernels().conv2d<float>().winograd.largest_tile, outputs < 1024 ? 2 : 4});
  constexpr int64_t least_outputs = 16;
  if (!is_plain_3x3(s) || side < 2 || outputs < least_outputs || never(winograd)) return {};
  must_pay = must_pay && !always(winograd);
  if (must_pay && (s.C < 16 || s.K < 16)) return {};
  constexpr int64_t most_sums = 5 << 20;  // elements: they stay in the last-level cache
  constexpr double transforms = 5, sums_in_tiles = 24;
  const double of_tile = 1 + transforms / static_cast<double>(s.C) + transforms / static_cast<double>(s.K);
  std::optional<WinogradCut> best;
  double least = must_pay ? 0.85 * static_cast<double>(outputs * 9) : std::numeric_limits<double>::infinity();
  for (int m = side; m >= 2; --m) {
    const WinogradTileKind kind{m, m, 0, 0, ceil_div(s.P, m), ceil_div(s.Q, m)};
    const int64_t tiles = s.N * kind.per_image(), frequencies = kind.frequencies();
    const double cost = static_cast<double>(frequencies) * (static_cast<double>(tiles) * of_tile + sums_in_tiles);
    if (cost < least && s.C * s.K * frequencies <= most_sums) best = {{{kind}}, tiles * frequencies}, least = cost;
  }
  return best;
}

}  // namespace fastconv::cpu
