// Which algorithm serves which shape: every choice that a measurement decided stands here, beside the measurement.
// Times of one thread of Zen 4, AVX-512, batch 64, float32, 3 x 3 kernels, unless said otherwise.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <optional>
#include <vector>

#include "../environment.h"
#include "choices.h"
#include "conv2d.h"

namespace fastconv::cpu {

// ---- forward -----------------------------------------------------------------------------------------------------

// How Winograd's algorithm cuts images into tiles: kinds of them, and what they cost in multiplications for each pair
// of channels.
struct WinogradCut {
  std::array<WinogradTiles, 4> kinds;
  int64_t cost;
};

// One side of an image: `count` tiles of m outputs and, unless rest is 0, one more of `rest`.
struct CutSide {
  int m;
  int64_t count;
  int rest;
};

// A transformed weight costs as much as so many tiles.
constexpr int64_t weight_in_tiles = 40;

// What is left over at the edge has tiles of its own, which save multiplications and cost a transformed weight, or is
// part of a tile that hangs over.
inline WinogradCut cheapest_cut(const FusedShape& f, int largest) {
  const int window = static_cast<int>(f.pool.R);
  const auto sides = [&](int64_t outputs) {
    std::vector<CutSide> result;
    for (int m = largest; m > 0; --m) {
      if (m % window != 0) continue;
      if (outputs >= m) result.push_back({m, outputs / m, static_cast<int>(outputs % m)});
      if (outputs % m != 0) result.push_back({m, ceil_div(outputs, m), 0});
    }
    return result;
  };
  WinogradCut best{{}, std::numeric_limits<int64_t>::max()};
  for (const CutSide& h : sides(f.pool.P * window)) {
    for (const CutSide& w : sides(f.pool.Q * window)) {
      const int64_t last_row = h.m * h.count, last_column = w.m * w.count;
      WinogradCut cut{{{{h.m, w.m, 0, 0, h.count, w.count},
                        {h.m, w.rest, 0, last_column, h.count, w.rest > 0},
                        {h.rest, w.m, last_row, 0, h.rest > 0, w.count},
                        {h.rest, w.rest, last_row, last_column, h.rest > 0, w.rest > 0}}},
                      0};
      for (const WinogradTiles& kind : cut.kinds) {
        const int64_t tiles = f.conv.N * kind.per_image();
        if (tiles > 0) cut.cost += (tiles + weight_in_tiles) * kind.frequencies();
      }
      if (cut.cost < best.cost) best = cut;
    }
  }
  return best;
}

// The largest side of a tile, 3 unless FASTCONV_WINOGRAD says otherwise: 4 for those who want speed (0.7 to 1.0 of the
// time, more error: tables below), 2 or 0, none at all, for those who need each result to be as exact as its own terms.
// (Winograd's error is small against the largest results of a tile, so that what is exactly zero may come out as 1e-7
// of them.) Without AVX2 none is larger than 2.
inline int winograd_allowed() { return environment().winograd; }

// The largest side of a tile for one shape. Error of the forward pass against float64 over PyTorch's, root mean square,
// of normal x (behind a ReLU all are a fifth more), padding 1 but for 64->128, with tiles of up to 4 / 3 / 2 on a side:
//                      contiguous, AVX-512     channels_last, or PyTorch with AVX2
//   32->32   14x14     2.25 / 1.60 / 0.80      1.61 / 1.15 / 0.57
//   64->64   16x16     2.35 / 1.71 / 0.98      1.20 / 0.87 / 0.50
//   64->128  5x5       1.72 / 1.72 / 0.87      0.88 / 0.88 / 0.45
//   128->128 8x8       2.64 / 1.72 / 1.03      0.98 / 0.64 / 0.38
//   256->256 8x8       2.85 / 1.85 / 1.03      0.76 / 0.50 / 0.28
// It shall be at most about twice PyTorch's, so 4 x 4 is left to FASTCONV_WINOGRAD. PyTorch's own sums are shorter with
// fewer channels (16: 2.1 in a simulation), in the data pass where memory is contiguous, and over much padding (4.7
// where it is 3; behind a ReLU 2.9 where it is 1 and the image 3 x 3). So: small tiles there, and with a pool
// (kernels/winograd.h says why). Of an x that is 5 % live PyTorch's sums are shorter, too; that is not looked at.
inline int winograd_largest(const FusedShape& f, bool backward) {
  const Conv2dShape& s = f.conv;
  const bool padded = s.pad_h > 1 || s.pad_w > 1 || (s.H < 5 && s.pad_h > 0) || (s.W < 5 && s.pad_w > 0);
  const bool small = backward || f.window() > 1 || s.C < 32 || padded;
  const int chosen = winograd_choice.load(std::memory_order_relaxed);
  return std::min(chosen < 0 ? winograd_allowed() : chosen, small ? 2 : kernels().conv2d<float>().winograd.largest);
}

// How it cuts a convolution whose direct kernel has `direct` multiplications a channel pair, if it takes it.
// Time of the direct kernel / Winograd's (padding 1, but 64->128 5x5 without; one thread of Zen 5, AVX-512):
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
// So: enough channels for the transforms of x and y, and enough tiles for those of the weight.
inline std::optional<WinogradCut> winograd_cut(const FusedShape& f, int largest, int64_t direct) {
  const Conv2dShape& s = f.conv;
  const bool shape = s.R == 3 && s.S == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
                     s.dilation_w == 1 && s.groups == 1;
  const bool tiles = f.windows_touch() && (f.window() == 1 || (f.pool.R == 2 && f.pool.S == 2));
  if (!shape || !tiles || largest < 2 || never(Algorithm::winograd)) return {};
  const bool forced = always(Algorithm::winograd);
  if (!forced && (s.C < 16 || s.K < 16)) return {};
  const WinogradCut cut = cheapest_cut(f, largest);
  if (!forced && cut.cost >= direct) return {};
  return cut;
}

inline std::optional<WinogradCut> winograd_serves(const FusedShape& f) {
  return winograd_cut(f, winograd_largest(f, false), f.windows() * f.window() * 9);
}

// Whether the weight is read as it lies (dot.h), not packed. Microseconds of PyTorch / with the weight packed before,
// and found again by its contents / as it lies; 3 x 3, one image, 2 threads, weights from memory:
//   64->128   5x5 (9 outputs)    34 /   70 /   30
//   64->64    4x4 (16)           18 /   51 /   33
//   512->512  4x4 (16)          898 / 1633 /  856
//   512->512  2x2 (4)          1057 / 1173 /  552
//   64->128   8x8 (64)           76 /  108 /  145
//   128->256  8x8 (64)          243 /  370 /  332
//   256->256  8x8 (64)          489 /  675 /  601
//   256->256  14x14 (196)      1336 / 1291 / 2075
inline bool dot_serves(const Conv2dShape& s, const Tensor& weight) {
  if (s.groups != 1 || s.C % 16 != 0 || !is_nhwc(weight) || never(Algorithm::dot)) return false;
  if (always(Algorithm::dot)) return true;
  if (s.C < 32) return false;
  const int64_t outputs = s.N * s.P * s.Q;
  constexpr int64_t large_weight = 256 * 1024;  // elements
  return outputs <= 24 || (outputs <= 64 && s.K * s.taps() >= large_weight);
}

// dx as the convolution of g, padded to the full overlap, with the kernel turned around and its channels exchanged.
inline Conv2dShape turned_around(const Conv2dShape& s) {
  Conv2dShape turned = s;
  turned.C = s.K, turned.K = s.C, turned.H = s.P, turned.P = s.H, turned.W = s.Q, turned.Q = s.W;
  turned.pad_h = s.R - 1 - s.pad_h, turned.pad_w = s.S - 1 - s.pad_w;
  return turned;
}

// The direct kernel of backward_data multiplies nothing that padding throws away.
inline std::optional<WinogradCut> winograd_serves_data(const Conv2dShape& s) {
  if (s.pad_h >= s.R || s.pad_w >= s.S) return {};
  const FusedShape turned = without_pool(turned_around(s));
  return winograd_cut(turned, winograd_largest(turned, true), s.N * s.P * s.Q * 9);
}

// The direct kernels that pool in registers hold windows of 1, 4 or 9 pixels; other pools take the convolution's
// results from a thread's scratch.
inline bool window_kernel_serves(const FusedShape& f) {
  const bool size = f.window() == 1 || f.window() == 4 || f.window() == 9;
  return size && f.windows_touch() && !f.conv.depthwise() && !never(Algorithm::window);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// Pixels of the convolution in a tile of the kernels that work on lists: for the weight, x in the first-level cache as
// nearly as may be and lists that are worth a loop (conv3 of MnistCNN: 0.42 ms, 0.46 with 128); for data, dx there, and
// few windows that reach two tiles.
constexpr int64_t live_weight_pixels = 64;
constexpr int64_t live_data_pixels = 128;

// From one window to the next. A stride beyond the image is as good as the image.
inline int64_t pixels_between_windows(const Pool2dShape& s) {
  return std::min(s.stride_h, s.H) * std::min(s.stride_w, s.W);
}

// Lists of live values, where runs of taps fill the kernels' vectors.
template <class T>
bool live_serves(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  const int64_t run = s.dilation_w == 1 ? s.S * s.C : s.C;
  // What lists count has to fit into their offsets of 32 bits: places in the weight, in a tile of x with its padding,
  // and in a tile's lists. A tile is of several images only if they are small.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t images_x = 1 + live_weight_pixels / (f.pool.P * f.pool.Q),
                images_dx = 1 + live_data_pixels / std::max<int64_t>(1, s.H * s.W);
  const int64_t padded_pixels = reach(s.P, s.stride_h, s.R, s.dilation_h) * reach(s.Q, s.stride_w, s.S, s.dilation_w);
  const int64_t image = std::max(padded_pixels, s.H * s.W) * s.C;  // as x lies, or as it is copied
  const bool small = s.K * s.taps() * 16 < most && image * images_x < most && s.P * s.Q * s.K * images_dx < most;
  const bool pays = run >= conv2d_kernels<T>(s).block_lanes || always(Algorithm::live);
  return s.groups == 1 && f.windows_inside() && pays && small && !never(Algorithm::live);
}

// Time of the dense kernel (for data: Winograd's, though not for 5x5) / time of the one that takes live values from
// lists, by their share:
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
inline double live_weight_below() { return always(Algorithm::live) ? 2 : 0.6; }

// For data, Winograd's advantage counts, if it would serve: its cost over the direct kernel's.
inline double live_data_below(const Conv2dShape& s, const std::optional<WinogradCut>& cut) {
  if (always(Algorithm::live)) return 2;
  return cut ? 0.6 * static_cast<double>(cut->cost) / static_cast<double>(s.N * s.P * s.Q * 9) : 0.55;
}

// For the weight, lists have to be long.
template <class T>
bool live_serves_weight(const FusedShape& f) {
  return live_serves<T>(f) && (f.windows() >= 16 || always(Algorithm::live));
}

// At most so many input channels are served by narrow.h, if it serves the shape.
constexpr int64_t narrow_channels = 4;

template <class T>
bool narrow_serves(const FusedShape& f) {
  if (never(Algorithm::narrow) || !kernels().conv2d<T>().few_channels.supports(f)) return false;
  return f.conv.C <= narrow_channels || always(Algorithm::narrow);
}

// ---- what choices look at ----------------------------------------------------------------------------------------

// A product with zero is zero only if the other factor is finite. `tensor` is dense.
template <class T>
bool all_finite(const Tensor& tensor) {
  const auto& kernel = kernels().conv2d<T>().sparse_gradient;
  const T* values = data<T>(tensor);
  std::atomic<bool> finite{true};
  parallel_for(0, tensor.numel(), 32768, [&](int64_t begin, int64_t end) {
    if (!kernel.all_finite(values + begin, end - begin)) finite = false;
  });
  return finite;
}

// Writes the argmax of a gradient without windows; returns the share that is live. `tensor` is dense.
template <class T>
double mark_zeros(const Tensor& tensor, uint8_t* argmax) {
  const auto& kernel = kernels().conv2d<T>().sparse_gradient;
  const T* values = data<T>(tensor);
  std::atomic<int64_t> live{0};
  parallel_for(0, tensor.numel(), 32768, [&](int64_t begin, int64_t end) {
    live += kernel.mark_zeros(values + begin, argmax + begin, end - begin);
  });
  return static_cast<double>(live) / static_cast<double>(tensor.numel());
}

// The share of the convolution's results that the gradient reaches. `argmax` is dense.
template <class T>
class LiveShare {
 public:
  LiveShare(const FusedShape& f, const Tensor& argmax)
      : argmax_(argmax),
        results_(static_cast<double>(f.conv.N * f.conv.K * f.conv.P * f.conv.Q)),
        most_(static_cast<double>(f.windows() * f.conv.K) / results_) {}

  // Behind most pools it is small whatever the bytes say; else they are counted, once.
  bool below(double limit) {
    if (most_ < limit) return true;
    if (!counted_) counted_ = static_cast<double>(count()) / results_;
    return *counted_ < limit;
  }

 private:
  int64_t count() const {
    const auto& kernel = kernels().conv2d<T>().sparse_gradient;
    const uint8_t* bytes = data<uint8_t>(argmax_);
    std::atomic<int64_t> live{0};
    parallel_for(0, argmax_.numel(), 131072,
                 [&](int64_t begin, int64_t end) { live += kernel.count_nonzero(bytes + begin, end - begin); });
    return live;
  }

  Tensor argmax_;
  double results_, most_;
  std::optional<double> counted_;
};

}  // namespace fastconv::cpu
