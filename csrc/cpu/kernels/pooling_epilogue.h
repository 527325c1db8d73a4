// The epilogue of a fused convolution: ReLU and max-pooling of sums in registers or workspace, and their gradient.
//
//   y[n, p, q, c] = max over r, s of max(0, conv[n, p * u + r * d - pad, q * v + s * d - pad, c])
//
// Backward needs one byte for each window and channel, the argmax (shapes.h): the position r * S + s of the maximum, or
// no_gradient if the maximum is not above zero. PyTorch's rules hold: the first maximum wins. A NaN wins over every
// number, and the last of several NaNs wins. The gradient of ReLU is 1 at NaN and 0 at 0.
//
// Layout: conv, y, argmax and the gradients are NHWC and contiguous, except in unpool_nchw.
#pragma once

#include "assert.h"
#include "operands.h"
#include "range.h"
#include "simd_bytes.h"

namespace fastconv::FC_LEVEL {

// The running maximum of one window in each lane.
template <class T>
struct WindowMax {
  Vec<T> value;
  Vec<IntLike<T>> at = {};

  explicit FC_INLINE WindowMax(Vec<T> first) : value(first) {}

  FC_INLINE void take(Vec<T> next, int position) {
    const LaneMask<T> larger = larger_or_nan<T>(next, value);
    value = select<T>(larger, next, value);
    at = select<IntLike<T>>(larger, static_cast<IntLike<T>>(position) - Vec<IntLike<T>>{}, at);
  }

  FC_INLINE void store(T* y, uint8_t* argmax, int64_t count) const {
    store_upto(y, zero_or_above<T>(value), count);
    const Vec<IntLike<T>> none = static_cast<IntLike<T>>(no_gradient) - Vec<IntLike<T>>{};
    store_bytes<T>(argmax, select<IntLike<T>>(not_above_zero<T>(value), none, at), count);
  }
};

// ReLU and max-pooling with any kind of window. `conv` has all rows that the windows of `to` read.
template <class T>
void relu_max_pool2d(const Pool2dShape& s, const OutputTile<T>& conv, const PooledTile<T>& to) {
  FASTCONV_ASSERT((conv.rows == 0 || readable(conv.data)) && readable(to.data) && readable(to.argmax));
  FASTCONV_ASSERT(to.images > 0 && to.images <= conv.images && to.row >= 0 && to.row + to.rows <= s.P);
  FASTCONV_ASSERT(conv.row >= 0 && conv.rows >= 0 && conv.row + conv.rows <= s.H);
  const int64_t images = to.images, p0 = to.row, rows = to.rows;
  T* y = to.data;
  uint8_t* argmax = to.argmax;
  for (int64_t n = 0; n < images; ++n) {
    const T* image = conv.data + (n * conv.rows - conv.row) * s.W * s.C;
    for (int64_t p = p0; p < p0 + rows; ++p) {
      const int64_t h0 = p * s.stride_h - s.pad_h;
      const Range taps_r(0, s.H, s.dilation_h, h0, s.R);
      for (int64_t q = 0; q < s.Q; ++q) {
        const int64_t w0 = q * s.stride_w - s.pad_w;
        const Range taps_s(0, s.W, s.dilation_w, w0, s.S);
        for (int64_t c = 0; c < s.C; c += lanes<T>) {
          const T* from = image + (h0 * s.W + w0) * s.C + c;
          const int64_t left = s.C - c;
          const Vec<T> lowest = -static_cast<T>(__builtin_inf()) - Vec<T>{};
          WindowMax<T> max(lowest);
          for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
            for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
              max.take(load_upto(from + (r * s.dilation_h * s.W + tap * s.dilation_w) * s.C, left),
                       static_cast<int>(r * s.S + tap));
            }
          }
          max.store(y + c, argmax + c, left);
          // A window entirely in the padding gives -infinity, as in PyTorch, where ReLU runs before the pool.
          if (taps_r.begin >= taps_r.end || taps_s.begin >= taps_s.end) store_upto(y + c, lowest, left);
        }
        y += s.C;
        argmax += s.C;
      }
    }
  }
}

// Adds the gradient of one image's windows to grad_conv, the gradient of the convolution's results, which the caller
// has zeroed. Bytes of argmax that point outside of the image are ignored. A vector of channels is compared with every
// position of the window. To compute the position of each byte takes two divisions, and 6 times as long without a pool.
template <class T>
void unpool(const Pool2dShape& s, const T* g, const uint8_t* argmax, T* grad_conv) {
  FASTCONV_ASSERT(readable(g) && readable(argmax) && readable(grad_conv));
  using I = IntLike<T>;
  for (int64_t p = 0; p < s.P; ++p) {
    const int64_t h0 = p * s.stride_h - s.pad_h;
    const Range taps_r(0, s.H, s.dilation_h, h0, s.R);
    for (int64_t q = 0; q < s.Q; ++q, g += s.C, argmax += s.C) {
      const int64_t w0 = q * s.stride_w - s.pad_w;
      const Range taps_s(0, s.W, s.dilation_w, w0, s.S);
      for (int64_t c = 0; c < s.C; c += lanes<T>) {
        const int64_t left = s.C - c;
        const Vec<T> value = load_upto(g + c, left);
        const Vec<I> at = load_bytes<T>(argmax + c, left, no_gradient);
        for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
          for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
            T* to = grad_conv + ((h0 + r * s.dilation_h) * s.W + w0 + tap * s.dilation_w) * s.C + c;
            const LaneMask<T> is_here = equal<I>(at, static_cast<I>(r * s.S + tap) - Vec<I>{});
            store_upto(to, load_upto(to, left) + select<T>(is_here, value, Vec<T>{}), left);
          }
        }
      }
    }
  }
}

// Adds the gradient of the windows of one image and channel, in NCHW.
template <class T>
void unpool_nchw(const Pool2dShape& s, const T* g, const uint8_t* argmax, T* grad) {
  FASTCONV_ASSERT(readable(g) && readable(argmax) && readable(grad) && s.R * s.S <= no_gradient);
  int64_t row[no_gradient], column[no_gradient];  // of each position, in place of two divisions for each window
  for (int64_t at = 0; at < s.R * s.S; ++at) row[at] = at / s.S * s.dilation_h, column[at] = at % s.S * s.dilation_w;
  for (int64_t p = 0; p < s.P; ++p) {
    for (int64_t q = 0; q < s.Q; ++q, ++g, ++argmax) {
      if (*argmax >= s.R * s.S) continue;
      const int64_t h = p * s.stride_h - s.pad_h + row[*argmax], w = q * s.stride_w - s.pad_w + column[*argmax];
      if (h >= 0 && h < s.H && w >= 0 && w < s.W) grad[h * s.W + w] += *g;
    }
  }
}

}  // namespace fastconv::FC_LEVEL
