// backward_weight behind ReLU and a small pool where the input has few channels, as the first layer of a network has:
//
//   dw[r, s, c][k] += g[window, k] * x[window's pixel argmax[window, k] + (r, s)][c]
//
// The lists of live.h would cost more than the one vector of taps that each live value needs here. Instead lanes are
// output channels, and since each has a pixel of the window of its own, its x is picked by a permutation: the window's
// patch of x is so small that the pixels behind one row of taps, R_pool rows of S_pool + S - 1 pixels, fit into one
// vector. So a vector of k costs a permutation and an FMA a tap, whatever is live (conv1 of MnistCNN: 9 of each, and
// one permutation for the place; masking the four pixels apart: 36).
//
// groups 1, stride and dilation 1; dw is [r, s, c][K].
#pragma once

#include "accumulate.h"
#include "operands.h"

namespace fastconv::FC_LEVEL::narrow {

// Windows whose patches are written down at once: they stay in the first-level cache while all k pass over them.
constexpr int64_t chunk = 64;

struct Patch {
  int64_t rows, width;  // of the pixels that all taps of a window read

  explicit Patch(const FusedShape& f) : rows(f.pool.R + f.conv.R - 1), width(f.pool.S + f.conv.S - 1) {}
};

template <class T>
bool serves(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const bool plain = s.groups == 1 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 &&
                     pool.dilation_h == 1 && pool.dilation_w == 1;
  const bool kernel = (s.R == 3 && s.S == 3) || (s.R == 5 && s.S == 5 && lanes<T> == 16);
  return plain && kernel && f.windows_inside() && f.window() <= lanes<T> && pool.R * Patch(f).width <= lanes<T>;
}

template <class T>
int64_t scratch_size(const FusedShape& f) {
  const Patch patch(f);
  return chunk * patch.rows * patch.width + lanes<T>;
}

// One channel of a patch.
template <class T>
FC_INLINE void copy_patch(const Patch& patch, const T* x, const Strides& strides, T* to) {
  for (int64_t row = 0; row < patch.rows; ++row) {
    const T* from = x + row * strides.row;
    if (strides.pixel == 1 && patch.width == 4) {  // a 3 x 3 kernel behind a 2 x 2 pool
      __builtin_memcpy(to, from, 4 * sizeof(T));
    } else {
      for (int64_t i = 0; i < patch.width; ++i) to[i] = from[i * strides.pixel];
    }
    to += patch.width;
  }
}

// The patches of `windows` windows, and from the first of them and its first lane, their gradients.
template <class T>
struct WindowPatches {
  const T* patches;
  const T* g;
  const uint8_t* argmax;
  int64_t windows;
};

// One vector of k, one channel of x. `place`: where the pixels of a window stand in the patch.
template <class T, int R, int S, bool partial>
void add_windows(const FusedShape& f, const WindowPatches<T>& from_windows, Vec<IntLike<T>> place,
                 const WeightSums<T>& sums, int64_t lanes_in_use) {
  using I = IntLike<T>;
  const T *patches = from_windows.patches, *g = from_windows.g;
  const uint8_t* argmax = from_windows.argmax;
  const int64_t windows = from_windows.windows;
  T *dw = sums.weight, *db = sums.bias;
  const Conv2dShape& s = f.conv;
  const Patch patch(f);
  const int64_t size = patch.rows * patch.width;
  const auto load_k = [&](const T* from) { return partial ? load_partial(from, lanes_in_use) : load(from); };
  // From zero, and then added: sums that go on from dw err up to 4 times as much as PyTorch's on one large image.
  Vec<T> acc[R][S] = {}, sum = {};
  for (int64_t i = 0; i < windows; ++i) {
    const Vec<I> at = load_bytes<T>(argmax + i * s.K, lanes_in_use, dead);
    const LaneMask<T> is_dead = equal<I>(at, static_cast<I>(dead) - Vec<I>{});
    const Vec<T> live = select<T>(is_dead, Vec<T>{}, load_k(g + i * s.K));
    const Vec<I> from = permute<I>(place, at);
    sum += live;
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r) {
      const Vec<T> row = load(patches + i * size + r * patch.width);
#pragma GCC unroll 5
      for (int tap = 0; tap < S; ++tap) acc[r][tap] += live * permute<T>(row, from + static_cast<I>(tap));
    }
  }
  const auto store_k = [&](T* to, Vec<T> value) {
    if constexpr (partial) {
      store_partial(to, value, lanes_in_use);
    } else {
      store(to, value);
    }
  };
#pragma GCC unroll 5
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 5
    for (int tap = 0; tap < S; ++tap) {
      T* to = dw + (r * S + tap) * s.C * s.K;
      store_k(to, load_k(to) + acc[r][tap]);
    }
  }
  if (db) store_k(db, load_k(db) + sum);
}

// Adds a tile's part of the gradient to the sums of the weight, [r, s, c][K], and of the bias, [K]. x: the first pixel
// that the tile's first window reads. No window hangs over an edge.
template <class T>
void backward_weight(const FusedShape& f, const InputTile<T>& x, const SparseGradientTile<T>& g,
                     const WeightSums<T>& sums, T* scratch) {
  using I = IntLike<T>;
  const Strides& strides = x.strides;
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const Patch patch(f);
  Vec<I> place = {};
  for (int64_t i = 0; i < f.window(); ++i) place[i] = static_cast<I>(i / pool.S * patch.width + i % pool.S);
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
          copy_patch(patch, from, strides, scratch + i * patch.rows * patch.width);
          if (++q == pool.Q) q = 0, ++p;
        }
        for (int64_t k = 0; k < s.K; k += lanes<T>) {
          const int64_t in_use = s.K - k < lanes<T> ? s.K - k : lanes<T>, at = image + first * s.K + k;
          const auto run = s.R == 3 ? (in_use < lanes<T> ? add_windows<T, 3, 3, true> : add_windows<T, 3, 3, false>)
                                    : (in_use < lanes<T> ? add_windows<T, 5, 5, true> : add_windows<T, 5, 5, false>);
          run(f, {scratch, g.data + at, g.argmax + at, count}, place,
              {sums.weight + c * s.K + k, c == 0 ? sums.bias + k : nullptr}, in_use);
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL::narrow
