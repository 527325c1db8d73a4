// backward_weight and backward_data of the convolution (groups == 1) for a gradient that is mostly zeros:
//
//   dw[k][r, s, c]  += sum over windows of g[window, k] * x[(pixel argmax[window, k] of the window) + (r, s), c]
//   dx[pixel + (r, s), c] += sum over k of g[window, k] * w[k][r, s, c]
//
// A 2x2 max-pool passes the gradient to at most one value in four. ReLU passes it only where the output is above zero.
// In training, 50 to 60 % of the pooling windows of MnistCNN and 30 % of conv3's outputs are above zero. The kernels
// skip all products with a zero gradient. The caller checks that x and w are finite, so that these products are zero.
//
// Layout: g, argmax (shapes.h), x and dx are NHWC. The weight and dw are [K][r, s, c]. Bytes of argmax that are neither
// a position nor no_gradient give meaningless results but no access out of bounds. Only direct calls of the operators
// can pass such bytes.
//
// Idea: write the non-zero values to lists. Then each value costs one FMA for each vector of taps:
//   backward_weight   a list of pixels for each k; the sums of a run (nonzero_lists.h) of dw[k] stay in registers
//   backward_data     a list of k for each pixel; the sums of a run of dx stay in registers
//
// Tried in both passes: scattering each value to sums in memory. Stores cost more than loads, so dx of 3x3x32 took 42
// cycles for each value instead of 26 (Zen 4).
#pragma once

#include "nonzero_lists.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL::sparse_gradient {

// Tests value * 0 == 0, which only finite values pass. Four sums hide the latency of the FMAs.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vec<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<T> <= count; i += 4 * lanes<T>) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] += load(values + i + j * lanes<T>) * T(0);
  }
  for (; i < count; i += lanes<T>) sum[0] += load_upto(values + i, count - i) * T(0);
  return nonzero_lanes<T>(sum[0] + sum[1] + sum[2] + sum[3]) == 0;
}

// Writes the argmax of a gradient without pooling: 0 or no_gradient for each value. Returns the number of non-zeros.
template <class T>
int64_t mark_zeros(const T* values, uint8_t* argmax, int64_t count) {
  int64_t nonzero = 0;
  for (int64_t i = 0; i < count; ++i) {
    argmax[i] = values[i] == T(0) ? no_gradient : 0;
    nonzero += values[i] != T(0);
  }
  return nonzero;
}

// Counts the bytes that are not no_gradient.
inline int64_t count_nonzero(const uint8_t* argmax, int64_t count) {
  typedef uint8_t Bytes __attribute__((vector_size(FC_VECTOR_BYTES)));
  typedef uint8_t Unaligned __attribute__((vector_size(FC_VECTOR_BYTES), aligned(1), may_alias));
  int64_t nonzero = 0, i = 0;
  while (i + FC_VECTOR_BYTES <= count) {
    Bytes found = {};
    for (int turn = 0; turn < 255 && i + FC_VECTOR_BYTES <= count; ++turn, i += FC_VECTOR_BYTES) {
      found -= (Bytes)(*reinterpret_cast<const Unaligned*>(argmax + i) != no_gradient);  // true is -1
    }
    for (int lane = 0; lane < FC_VECTOR_BYTES; ++lane) nonzero += found[lane];
  }
  for (; i < count; ++i) nonzero += argmax[i] != no_gradient;
  return nonzero;
}

// The number of elements that each pointer of the NonZeroList for `windows` windows needs.
template <class T>
int64_t list_size(const FusedShape& f, int64_t windows) {
  const int64_t by_channel = 3 * lanes<T> * (ceil_div(windows, lanes<T>) + 1) * lanes<T>;
  const int64_t by_pixel = windows * (f.conv.K + f.window()) + 1 + lanes<T>;
  return by_channel > by_pixel ? by_channel : by_pixel;
}

// For each window and each channel of one vector, `value` is the gradient. `at` is the offset in x of the first tap of
// the output pixel that receives it, or -1 if no pixel does. Both arrays exist twice: as [window][lanes], then
// transposed as [lanes][row].
template <class T>
struct WindowOffsets {
  int64_t windows, row;  // row: `windows`, rounded up to lanes
  Offset<T>* at;
  T* value;

  // Fills both layouts, and adds the gradients of each channel to sum.
  FC_INLINE void find(const FusedShape& f, const Strides& x, const SparseGradientTile<T>& tile, int64_t channels,
                      T* sum) {
    using I = Offset<T>;
    const T* g = tile.data;
    const uint8_t* argmax = tile.argmax;
    const int64_t images = tile.images, rows = tile.rows;
    const Pool2dShape& pool = f.pool;
    const int64_t K = f.conv.K, x_row = f.conv.stride_h * x.row, x_pixel = f.conv.stride_w * x.pixel;
    const bool by_permutation = f.window() <= lanes<T>;
    I in_window[256];
    for (int64_t i = 0; i < (by_permutation ? lanes<T> : 256); ++i) in_window[i] = 0;
    for (int64_t i = 0; i < f.window(); ++i) {
      in_window[i] = static_cast<I>(i / pool.S * pool.dilation_h * x_row + i % pool.S * pool.dilation_w * x_pixel);
    }
    const Vec<I> first_places = load(in_window), none = static_cast<I>(-1) - Vec<I>{};
    Vec<T> total = {};
    int64_t i = 0;
    for (int64_t n = 0; n < images; ++n) {
      const int64_t image = n * pool.P * pool.Q * K;
      for (int64_t p = 0; p < rows; ++p) {
        I first = static_cast<I>(n * x.image + p * pool.stride_h * x_row);
        int64_t from = image + p * pool.Q * K;
        for (int64_t q = 0; q < pool.Q; ++q, ++i) {
          const Vec<I> position = load_bytes<T>(argmax + from, channels, no_gradient);
          const LaneMask<I> is_zero = equal<I>(position, static_cast<I>(no_gradient) - Vec<I>{});
          Vec<I> place = permute<I>(first_places, position);
          if (!by_permutation) {
            for (int64_t k = 0; k < lanes<T>; ++k) place[k] = in_window[position[k]];
          }
          const Vec<T> gradient = select<T>(is_zero, Vec<T>{}, load_upto(g + from, channels));
          total += gradient;
          store(at + i * lanes<T>, select<I>(is_zero, none, place + first));
          store(value + i * lanes<T>, gradient);
          first += static_cast<I>(pool.stride_w * x_pixel);
          from += K;
        }
      }
    }
    store_upto(sum, load_upto(sum, channels) + total, channels);
    transpose(at, lanes<T>, windows, lanes<T>, at + row * lanes<T>, row);
    transpose(value, lanes<T>, windows, lanes<T>, value + row * lanes<T>, row);
  }

  // Writes the list of channel k, in the order of the windows, and returns its length. It writes whole vectors,
  // also beyond the end of the list.
  FC_INLINE int64_t list(int64_t k, const NonZeroList<T>& to) const {
    int64_t length = 0;
    for (int64_t i = 0; i < windows; i += lanes<T>) {
      const int64_t from = (lanes<T> + k) * row + i;
      const Vec<Offset<T>> here = load(at + from);
      const uint32_t bits = lane_bits<Offset<T>>(at_least_zero<Offset<T>>(here)) & first_bits(windows - i);
      compress_store(to.offset + length, here, bits);
      compress_store(to.value + length, load(value + from), bits);
      length += __builtin_popcount(bits);
    }
    return length;
  }

  static uint32_t first_bits(int64_t count) { return count >= lanes<T> ? ~0u : (1u << count) - 1; }
};

// Adds one tile's contribution to dw and db, for output channels [k0, k0 + lanes). x begins at the first pixel that the
// tile's first window reads. No window crosses an edge.
template <class T>
void backward_weight(const FusedShape& f, const InputTile<T>& x, const SparseGradientTile<T>& g,
                     const WeightSums<T>& sums, int64_t k0, const NonZeroList<T>& list) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(g.argmax) && f.windows_inside());
  FASTCONV_ASSERT(readable(sums.weight) && readable(sums.bias) && readable(list.offset) && readable(list.value));
  FASTCONV_ASSERT(g.images > 0 && g.rows > 0 && g.row >= 0 && g.row + g.rows <= f.pool.P);
  FASTCONV_ASSERT(k0 >= 0 && k0 < f.conv.K && k0 % lanes<T> == 0);
  const Conv2dShape& s = f.conv;
  const Strides& strides = x.strides;
  Offset<T>* at = list.offset;
  T* value = list.value;
  const int64_t channels = s.K - k0 < lanes<T> ? s.K - k0 : lanes<T>;
  const int64_t windows = g.images * g.rows * f.pool.Q, row = ceil_div(windows, lanes<T>) * lanes<T>;
  const int64_t capacity = row + lanes<T>;
  WindowOffsets<T> pixels{windows, row, at + capacity * lanes<T>, value + capacity * lanes<T>};
  pixels.find(f, strides, {g.data + k0, g.argmax + k0, g.images, g.row, g.rows}, channels, sums.bias + k0);
  int64_t length[lanes<T>];
  for (int64_t k = 0; k < channels; ++k) length[k] = pixels.list(k, {at + k * capacity, value + k * capacity});

  const NonZeroLists<T> lists{at, value, length, channels, capacity, s.taps()};
  const Runs runs(s);
  const int64_t step = runs.whole_rows ? s.dilation_h * strides.row : s.dilation_w * strides.pixel;
  T* to = sums.weight + k0 * s.taps();
  for (int64_t line = 0; line < runs.lines; ++line) {
    const T* from = x.data + line * s.dilation_h * strides.row;
    int64_t run = 0;
    for (; run + 3 <= runs.count; run += 3, to += 3 * runs.length) {
      add_lists_to_runs<T, 3>({to, runs.length}, {from + run * step, step}, lists, runs.length);
    }
    for (; run < runs.count; ++run, to += runs.length) {
      add_lists_to_runs<T, 1>({to, 0}, {from + run * step, 0}, lists, runs.length);
    }
  }
}

// Adds the products of one output pixel's list to all pixels of dx that its taps read. `tile` has one image. The first
// tap reads pixel (h, w) of the tile, which may be outside of it.
template <class T>
FC_INLINE void add_pixel(const Conv2dShape& s, const T* weight, const NonZeroLists<T>& list, const OutputTile<T>& tile,
                         int64_t h, int64_t w) {
  T* dx = tile.data;
  const int64_t rows = tile.rows;
  const Runs runs(s);
  const int64_t step_h = s.dilation_h, step_w = runs.whole_rows ? 0 : s.dilation_w, width = runs.length / s.C;
  if (runs.whole_rows && runs.count == 3 && h >= 0 && h + 2 * step_h < rows && w >= 0 && w + width <= s.W) {
    return add_lists_to_runs<T, 3>({dx + (h * s.W + w) * s.C, step_h * s.W * s.C}, {weight, runs.length}, list,
                                   runs.length);
  }
  const int64_t taps_w = runs.whole_rows ? 1 : s.S;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t row = h + r * step_h;
    if (row < 0 || row >= rows) continue;
    for (int64_t tap = 0; tap < taps_w; ++tap) {
      // The part of the run between the left and the right edge.
      const int64_t column = w + tap * step_w;
      const int64_t first = column < 0 ? -column : 0, last = column + width > s.W ? s.W - column : width;
      if (first >= last) continue;
      add_lists_to_runs<T, 1>({dx + (row * s.W + column + first) * s.C, 0},
                              {weight + (r * taps_w + tap) * runs.length + first * s.C, 0}, list, (last - first) * s.C);
    }
  }
}

// Adds the gradient to dx, which the caller has zeroed. `gradient` has all rows of windows that read the tile's pixels.
template <class T>
void backward_data(const FusedShape& f, const SparseGradientTile<T>& gradient, const T* weight, const OutputTile<T>& dx,
                   const NonZeroList<T>& workspace) {
  FASTCONV_ASSERT((gradient.rows == 0 || (readable(gradient.data) && readable(gradient.argmax))) && readable(weight));
  FASTCONV_ASSERT(readable(dx.data) && readable(workspace.offset) && readable(workspace.value) && f.windows_inside());
  FASTCONV_ASSERT(dx.images > 0 && dx.rows > 0 && dx.row >= 0 && dx.row + dx.rows <= f.conv.H);
  FASTCONV_ASSERT(gradient.images == dx.images && gradient.row >= 0 && gradient.row + gradient.rows <= f.pool.P);
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const TileLists<T> lists = list_tile(f, gradient, s.K, s.taps(), workspace);
  const Offset<T>* list = lists.end - 1;
  for (int64_t n = 0; n < dx.images; ++n) {
    const OutputTile<T> image = {dx.data + n * dx.rows * s.W * s.C, 1, dx.row, dx.rows};
    for (int64_t p = gradient.row; p < gradient.row + gradient.rows; ++p) {
      for (int64_t q = 0; q < pool.Q; ++q) {
        for (int64_t i = 0; i < f.window(); ++i, ++list) {
          if (list[0] == list[1]) continue;
          const int64_t pixel_h = p * pool.stride_h - pool.pad_h + i / pool.S * pool.dilation_h;
          const int64_t pixel_w = q * pool.stride_w - pool.pad_w + i % pool.S * pool.dilation_w;
          const int64_t length = list[1] - list[0];
          add_pixel(s, weight, {lists.offset + list[0], lists.value + list[0], &length, 1, 0, 0}, image,
                    pixel_h * s.stride_h - s.pad_h - dx.row, pixel_w * s.stride_w - s.pad_w);
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL::sparse_gradient
