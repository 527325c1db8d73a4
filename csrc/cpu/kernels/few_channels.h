// backward_weight for few input channels, as in the first layer of a network, followed by ReLU and small pooling:
//
//   dw[r, s, c, k] = sum over windows of g[window, k] * x[(pixel argmax[window, k] of the window) + (r, s), c]
//   db[k]          = sum over windows of g[window, k]
//
// Layout: x, g and argmax are NHWC. dw is [r, s, c][K]. Stride and dilation are 1.
//
// Idea: lanes are output channels. Each lane needs the x of its own argmax pixel, so a permutation picks it. That works
// because the patch of x that one window reads is small: pool.R rows of pool.S + S - 1 pixels fit into one vector. A
// vector of k costs one permutation and one FMA for each tap, no matter how many gradients are zero. conv1 of MnistCNN
// takes 9 of each, and one permutation for the positions. Masks for each of the four pixels would take 36 FMAs. Lists
// (sparse_gradient.h) cost more than they save here, because each gradient needs only one vector of taps.
//
// Blocking: the patches of 64 windows are copied to workspace and stay in the first-level cache while all k read them.
// The sums of one vector of k and all taps of one channel stay in registers.
#pragma once

#include "accumulate.h"
#include "assert.h"
#include "operands.h"
#include "simd_bytes.h"

namespace fastconv::FC_LEVEL::few_channels {

// Number of windows whose patches are copied at once.
constexpr int64_t chunk = 64;

// The pixels that all taps of one window read.
struct Patch {
  int64_t rows, width;

  explicit Patch(const FusedShape& f) : rows(f.pool.R + f.conv.R - 1), width(f.pool.S + f.conv.S - 1) {}
};

template <class T>
bool supports(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const bool plain = s.groups == 1 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 &&
                     pool.dilation_h == 1 && pool.dilation_w == 1;
  const bool kernel = (s.R == 3 && s.S == 3) || (s.R == 5 && s.S == 5 && lanes<T> == 16);
  return plain && kernel && f.windows_inside() && f.window() <= lanes<T> && pool.R * Patch(f).width <= lanes<T>;
}

template <class T>
int64_t workspace_size(const FusedShape& f) {
  const Patch patch(f);
  return chunk * patch.rows * patch.width + lanes<T>;
}

// Copies one channel of a patch.
template <class T>
FC_INLINE void copy_patch(const Patch& patch, const T* x, const Strides& strides, T* to) {
  for (int64_t row = 0; row < patch.rows; ++row) {
    const T* from = x + row * strides.row;
    if (strides.pixel == 1 && patch.width == 4) {  // a 3x3 kernel followed by 2x2 pooling
      __builtin_memcpy(to, from, 4 * sizeof(T));
    } else {
      for (int64_t i = 0; i < patch.width; ++i) to[i] = from[i * strides.pixel];
    }
    to += patch.width;
  }
}

// The patches of `windows` windows. g and argmax point to the first window's gradients, at the vector of k in use.
template <class T>
struct WindowPatches {
  const T* patches;
  const T* g;
  const uint8_t* argmax;
  int64_t windows;
};

// A vector of output channels. `partial`: only the first `used` lanes are in use.
template <class T, bool partial>
struct LanesOfK {
  int64_t used;

  FC_INLINE Vec<T> load_from(const T* from) const { return partial ? load_partial(from, used) : load(from); }
  FC_INLINE void add_to(T* to, Vec<T> sum) const {
    const Vec<T> total = load_from(to) + sum;
    if constexpr (partial) {
      store_partial(to, total, used);
    } else {
      store(to, total);
    }
  }
};

// Adds the sums over the windows to dw for one vector of k and one channel of x, and to db if it is not null.
// position[i]: the index of a window's pixel i in the patch.
template <class T, int R, int S, bool partial>
void add_windows(const FusedShape& f, const WindowPatches<T>& from, Vec<IntLike<T>> position, const WeightSums<T>& sums,
                 int64_t lanes_in_use) {
  using I = IntLike<T>;
  const Conv2dShape& s = f.conv;
  const Patch patch(f);
  const LanesOfK<T, partial> k{lanes_in_use};
  const int64_t windows = from.windows, size = patch.rows * patch.width;
  const T *patches = from.patches, *g = from.g;
  const uint8_t* argmax = from.argmax;
  // The sums start at zero and are then added to dw. Sums that start at dw have up to 4 times PyTorch's error on one
  // large image.
  Vec<T> acc[R][S] = {}, sum = {};
  for (int64_t i = 0; i < windows; ++i) {
    const Vec<I> pixel = load_bytes<T>(argmax + i * s.K, lanes_in_use, no_gradient);
    const LaneMask<T> is_zero = equal<I>(pixel, static_cast<I>(no_gradient) - Vec<I>{});
    const Vec<T> value = select<T>(is_zero, Vec<T>{}, k.load_from(g + i * s.K));
    const Vec<I> place = permute<I>(position, pixel);
    sum += value;
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r) {
      const Vec<T> row = load(patches + i * size + r * patch.width);
#pragma GCC unroll 5
      for (int tap = 0; tap < S; ++tap) acc[r][tap] += value * permute<T>(row, place + static_cast<I>(tap));
    }
  }
#pragma GCC unroll 5
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 5
    for (int tap = 0; tap < S; ++tap) k.add_to(sums.weight + (r * S + tap) * s.C * s.K, acc[r][tap]);
  }
  if (sums.bias) k.add_to(sums.bias, sum);
}

// Adds one tile's contribution to dw and db. x begins at the first pixel that the tile's first window reads. No window
// crosses an edge.
template <class T>
void backward_weight(const FusedShape& f, const InputTile<T>& x, const SparseGradientTile<T>& g,
                     const WeightSums<T>& sums, T* workspace) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(g.argmax) && readable(workspace));
  FASTCONV_ASSERT(readable(sums.weight) && readable(sums.bias) && supports<T>(f));
  FASTCONV_ASSERT(g.images > 0 && g.rows > 0 && g.row >= 0 && g.row + g.rows <= f.pool.P);
  using I = IntLike<T>;
  const Strides& strides = x.strides;
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const Patch patch(f);
  Vec<I> position = {};
  for (int64_t i = 0; i < f.window(); ++i) position[i] = static_cast<I>(i / pool.S * patch.width + i % pool.S);
  const int64_t windows = g.rows * pool.Q;
  for (int64_t n = 0; n < g.images; ++n) {
    const int64_t image = n * pool.P * pool.Q * s.K;
    for (int64_t first = 0; first < windows; first += chunk) {
      const int64_t count = windows - first < chunk ? windows - first : chunk;
      for (int64_t c = 0; c < s.C; ++c) {
        int64_t p = first / pool.Q, q = first % pool.Q;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t h = p * pool.stride_h, w = q * pool.stride_w;
          const T* from = x.data + n * strides.image + h * strides.row + w * strides.pixel + c;
          copy_patch(patch, from, strides, workspace + i * patch.rows * patch.width);
          if (++q == pool.Q) q = 0, ++p;
        }
        for (int64_t k = 0; k < s.K; k += lanes<T>) {
          const int64_t in_use = s.K - k < lanes<T> ? s.K - k : lanes<T>, at = image + first * s.K + k;
          const auto run = s.R == 3 ? (in_use < lanes<T> ? add_windows<T, 3, 3, true> : add_windows<T, 3, 3, false>)
                                    : (in_use < lanes<T> ? add_windows<T, 5, 5, true> : add_windows<T, 5, 5, false>);
          run(f, {workspace, g.data + at, g.argmax + at, count}, position,
              {sums.weight + c * s.K + k, c == 0 ? sums.bias + k : nullptr}, in_use);
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL::few_channels
