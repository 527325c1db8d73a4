// Depthwise 2-D convolution (groups == C == K), forward and backward_weight. backward_data is a forward convolution of
// grad_output (memory/phases.h).
//
//   y[p, q, c]  = b[c] + sum over r, s of x[p * u + r * d - pad, q * v + s * d - pad, c] * w[r, s, c]
//   dw[r, s, c] = sum over p, q of g[p, q, c] * x[p * u + r * d - pad, q * v + s * d - pad, c]
//   db[c]       = sum over p, q of g[p, q, c]
//
// Layout: the driver copies a block of adjacent channels to a dense tile [row][column][block]. Columns include the
// padding, rows do not. A block is 64 bytes, a line of the cache. Without the copy, the pixels of a tensor of 512
// channels are 2 KB apart, and few of them fit in the first-level cache together. The copy costs 2 instructions for
// each vector, the arithmetic at least 9. The packed weight is [block][r, s][block of c]. Lanes are channels.
//
// Blocking: forward holds up to 8 neighbouring outputs of one vector of channels in registers, and the taps of one
// kernel row. Each x is loaded once for all of them. backward_weight holds the sums of up to 14 taps, and up to 8
// neighbouring values of g.
#pragma once

#include "blocks.h"

namespace fastconv::FC_LEVEL::depthwise {

template <class T>
constexpr int64_t block = 64 / sizeof(T);

// Copies one block of `channels` channels of adjacent pixels. The other lanes of the block become zero.
template <class T>
void gather(const T* from, int64_t pixel_stride, int64_t pixels, int64_t channels, T* to) {
  FASTCONV_ASSERT(pixels >= 0 && channels > 0 && channels <= block<T>);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < block<T>; c += lanes<T>) {
      const Vec<T> value = channels > c ? load_upto(from + c, channels - c) : Vec<T>{};
      store(to + c, value);
    }
    from += pixel_stride;
    to += block<T>;
  }
}

// ---- forward -----------------------------------------------------------------------------------------------------

// Adds one kernel row of S taps to `pixels` neighbouring outputs of one vector of channels.
template <class T, int S, int stride, int pixels>
FC_INLINE void add_kernel_row(Vec<T> (&acc)[pixels], const T* x, const T* weight) {
  Vec<T> w[S];
#pragma GCC unroll 7
  for (int tap = 0; tap < S; ++tap) w[tap] = load(weight + tap * block<T>);
#pragma GCC unroll 21
  for (int j = 0; j < (pixels - 1) * stride + S; ++j) {
    const Vec<T> value = load(x + j * block<T>);
#pragma GCC unroll 8
    for (int i = 0; i < pixels; ++i) {
      const int tap = j - i * stride;
      if (tap >= 0 && tap < S) acc[i] += value * w[tap];
    }
  }
}

// The same for any kernel, stride and dilation.
template <class T, int pixels>
FC_INLINE void add_any_kernel_row(Vec<T> (&acc)[pixels], const T* x, const T* weight, const Conv2dShape& s) {
  const int64_t step = s.stride_w * block<T>, next = s.dilation_w * block<T>, S = s.S;
  for (int64_t tap = 0; tap < S; ++tap) {
    const Vec<T> w = load(weight + tap * block<T>);
#pragma GCC unroll 8
    for (int i = 0; i < pixels; ++i) acc[i] += load(x + i * step) * w;
    x += next;
  }
}

// All outputs of row `p`. The last group of pixels may overlap the one before. S and stride are 0 if they are known
// only at run time.
template <class T, int S, int stride, int pixels>
void forward_row(const Conv2dShape& s, const DepthwiseTile<T>& x, const PackedWeight<T>& weight,
                 const DepthwiseResult<T>& y, int64_t p) {
  const int64_t Q = y.columns, channels = y.channels, row_step = s.dilation_h * x.row, taps = s.S * block<T>;
  const int64_t h = p * s.stride_h - s.pad_h;
  const Range r(0, s.H, s.dilation_h, h, s.R);
  const T* from = x.data + (h + r.begin * s.dilation_h - x.first) * x.row;
  T* to = y.data + (p - y.first) * y.row;
  for (int64_t v = 0; v < block<T> && v < channels; v += lanes<T>) {
    const Vec<T> start = weight.bias ? load_upto(weight.bias + v, channels - v) : Vec<T>{};
    for (int64_t q = 0; q < Q; q += pixels) {
      const int64_t at = q + pixels <= Q ? q : Q - pixels;
      const T* pixel = from + at * s.stride_w * block<T> + v;
      const T* w = weight.data + r.begin * taps + v;
      Vec<T> acc[pixels];
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) acc[i] = start;
      for (int64_t tap_row = r.begin; tap_row < r.end; ++tap_row, pixel += row_step, w += taps) {
        if constexpr (S > 0) {
          add_kernel_row<T, S, stride>(acc, pixel, w);
        } else {
          add_any_kernel_row<T>(acc, pixel, w, s);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) store_upto(to + (at + i) * y.pixel + v, acc[i], channels - v);
    }
  }
}

template <class T>
using ForwardRow = void (*)(const Conv2dShape&, const DepthwiseTile<T>&, const PackedWeight<T>&,
                            const DepthwiseResult<T>&, int64_t);

template <class T, int S, int stride>
ForwardRow<T> forward_row_of(int64_t Q) {
  if (Q >= 8 && (Q % 8 == 0 || Q % 7 != 0)) return forward_row<T, S, stride, 8>;
  if (Q >= 7) return forward_row<T, S, stride, 7>;
  return Q >= 4 ? forward_row<T, S, stride, 4> : forward_row<T, S, stride, 1>;
}

template <class T>
ForwardRow<T> forward_row_of(const Conv2dShape& s, int64_t Q) {
  const bool near = s.dilation_w == 1 || s.S == 1;
  if (near && s.stride_w == 1) {
    switch (s.S) {
      case 1:
        return forward_row_of<T, 1, 1>(Q);
      case 2:
        return forward_row_of<T, 2, 1>(Q);
      case 3:
        return forward_row_of<T, 3, 1>(Q);
      case 5:
        return forward_row_of<T, 5, 1>(Q);
      case 7:
        return forward_row_of<T, 7, 1>(Q);
    }
  }
  if (near && s.stride_w == 2 && s.S == 3) return forward_row_of<T, 3, 2>(Q);
  if (near && s.stride_w == 2 && s.S == 5) return forward_row_of<T, 5, 2>(Q);
  return forward_row_of<T, 0, 0>(Q);
}

// Some rows of one image, for one block of channels.
template <class T>
void forward(const Conv2dShape& s, const DepthwiseTile<T>& x, const PackedWeight<T>& weight,
             const DepthwiseResult<T>& y) {
  FASTCONV_ASSERT(readable(x.data) && readable(weight.data) && readable(y.data));
  FASTCONV_ASSERT(y.first >= 0 && y.rows >= 0 && y.first + y.rows <= s.P);
  FASTCONV_ASSERT(y.columns > 0 && y.channels > 0 && y.channels <= block<T>);
  const ForwardRow<T> run = forward_row_of<T>(s, y.columns);
  for (int64_t p = y.first; p < y.first + y.rows; ++p) run(s, x, weight, y, p);
}

// ---- backward_weight ---------------------------------------------------------------------------------------------

// Sums are kept in registers for about this many pixels and then added to memory. Longer sums have a larger error.
constexpr int64_t longest_sum = 96;

// Adds `pixels` neighbouring values of g to the sums of `rows` kernel rows. `stride` is 0 if it is known only at run
// time. Kernel rows have `columns` taps with dilation 1, or `columns` is 1.
template <class T, int rows, int columns, int stride, int pixels>
FC_INLINE void add_pixels(Vec<T> (&acc)[rows][columns], const T* x, int64_t row_step, const T* g, int64_t step) {
  Vec<T> value[pixels];
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i) value[i] = load(g + i * block<T>);
#pragma GCC unroll 3
  for (int r = 0; r < rows; ++r, x += row_step) {
    if constexpr (stride > 0) {
#pragma GCC unroll 21
      for (int j = 0; j < (pixels - 1) * stride + columns; ++j) {
        const Vec<T> from = load(x + j * block<T>);
#pragma GCC unroll 8
        for (int i = 0; i < pixels; ++i) {
          const int tap = j - i * stride;
          if (tap >= 0 && tap < columns) acc[r][tap] += from * value[i];
        }
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) {
#pragma GCC unroll 7
        for (int tap = 0; tap < columns; ++tap) acc[r][tap] += load(x + i * step + tap * block<T>) * value[i];
      }
    }
  }
}

// A kernel row and column.
struct Tap {
  int64_t r, s;
};

// Adds to the sums of `rows` x `columns` taps from `tap` on, for one vector of channels.
template <class T, int rows, int columns, int stride>
void add_taps(const Conv2dShape& s, const DepthwiseTile<T>& x, const DepthwiseTile<T>& g, const Tap& tap, T* sums,
              int64_t channels) {
  constexpr int pixels = stride == 0 ? 1 : 7;
  const int64_t step = s.stride_w * block<T>, row_step = s.dilation_h * x.row, Q = s.Q;
  const int64_t end = g.first + g.rows;
  for (int64_t p = g.first; p < end;) {
    Vec<T> acc[rows][columns] = {};
    for (int64_t count = 0; p < end && count < longest_sum; ++p, count += Q) {
      const int64_t h = p * s.stride_h - s.pad_h + tap.r * s.dilation_h;
      const T* from = x.data + (h - x.first) * x.row + tap.s * s.dilation_w * block<T>;
      const T* at = g.data + (p - g.first) * g.row;
      int64_t q = 0;
      for (; q + pixels <= Q; q += pixels, from += pixels * step, at += pixels * block<T>) {
        add_pixels<T, rows, columns, stride, pixels>(acc, from, row_step, at, step);
      }
      for (; q < Q; ++q, from += step, at += block<T>) {
        add_pixels<T, rows, columns, 0, 1>(acc, from, row_step, at, step);
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 7
      for (int j = 0; j < columns; ++j) {
        T* to = sums + ((tap.r + i) * s.S + tap.s + j) * s.C;
        store_upto(to, load_upto(to, channels) + acc[i][j], channels);
      }
    }
  }
}

// All taps of the kernel, `rows` x `columns` at a time.
template <class T, int rows, int columns, int stride>
void add_all_taps(const Conv2dShape& s, const DepthwiseTile<T>& x, const DepthwiseTile<T>& g, T* sums,
                  int64_t channels) {
  for (int64_t tap = 0; tap < s.S; tap += columns) {
    int64_t r = 0;
    for (; r + rows <= s.R; r += rows) add_taps<T, rows, columns, stride>(s, x, g, {r, tap}, sums, channels);
    for (; r < s.R; ++r) add_taps<T, 1, columns, stride>(s, x, g, {r, tap}, sums, channels);
  }
}

template <class T, int rows, int columns>
auto add_all_taps_of(int64_t stride) {
  return stride == 1   ? add_all_taps<T, rows, columns, 1>
         : stride == 2 ? add_all_taps<T, rows, columns, 2>
                       : add_all_taps<T, rows, columns, 0>;
}

// Adds the sums of some rows of one image, for one block of channels. x also has the rows of the padding. The sums are
// [r, s][C] and point to the block's first channel.
template <class T>
void backward_weight(const Conv2dShape& s, const DepthwiseTile<T>& x, const DepthwiseTile<T>& g,
                     const WeightSums<T>& sums, int64_t channels) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(sums.weight));
  FASTCONV_ASSERT(g.first >= 0 && g.rows >= 0 && g.first + g.rows <= s.P && channels > 0 && channels <= block<T>);
  const bool near = s.dilation_w == 1;
  const auto run = near && s.S == 3   ? add_all_taps_of<T, 3, 3>(s.stride_w)
                   : near && s.S == 5 ? add_all_taps_of<T, 2, 5>(s.stride_w)
                   : near && s.S == 7 ? add_all_taps_of<T, 2, 7>(s.stride_w)
                                      : add_all_taps_of<T, 1, 1>(s.stride_w);
  for (int64_t v = 0; v < block<T> && v < channels; v += lanes<T>) {
    run(s, {x.data + v, x.row, x.first, x.rows}, {g.data + v, g.row, g.first, g.rows}, sums.weight + v, channels - v);
  }
  if (sums.bias) backward_bias(block<T>, g.data, sums.bias, g.rows * s.Q, channels);
}

}  // namespace fastconv::FC_LEVEL::depthwise
