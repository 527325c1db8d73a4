// The end of a fused convolution: ReLU and max-pooling of sums that lie in registers or in a thread's scratch.
//
// What backward needs to know of a window is one byte a channel: the position r * S + s of its maximum, or `dead` where
// the maximum is not above zero, so that no gradient passes ReLU. PyTorch's rules hold: the first maximum wins; a NaN
// wins over every number, the last of several; the gradient of ReLU at NaN is 1, at 0 it is 0.
#pragma once

#include "../../shapes.h"
#include "operands.h"
#include "range.h"
#include "simd.h"

namespace fastconv::FC_LEVEL {

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
    const Vec<IntLike<T>> none = static_cast<IntLike<T>>(dead) - Vec<IntLike<T>>{};
    store_bytes<T>(argmax, select<IntLike<T>>(not_above_zero<T>(value), none, at), count);
  }
};

// Any pool, from convolution results that lie in scratch: all rows that the windows of `to` look at.
template <class T>
void relu_max_pool2d(const Pool2dShape& s, const OutputTile<T>& conv, const PooledTile<T>& to) {
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
          // Below every number, so that the first tap is taken.
          const Vec<T> lowest = -static_cast<T>(__builtin_inf()) - Vec<T>{};
          WindowMax<T> max(lowest);
          for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
            for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
              max.take(load_upto(from + (r * s.dilation_h * s.W + tap * s.dilation_w) * s.C, left),
                       static_cast<int>(r * s.S + tap));
            }
          }
          max.store(y + c, argmax + c, left);
          // A window wholly in the padding saw nothing, not even ReLU.
          if (taps_r.begin >= taps_r.end || taps_s.begin >= taps_s.end) store_upto(y + c, lowest, left);
        }
        y += s.C;
        argmax += s.C;
      }
    }
  }
}

// The gradient of the convolution's results, which the caller has zeroed, of one image.
template <class T>
void unpool(const Pool2dShape& s, const T* g, const uint8_t* argmax, T* grad_conv) {
  for (int64_t p = 0; p < s.P; ++p) {
    for (int64_t q = 0; q < s.Q; ++q) {
      const int64_t h0 = p * s.stride_h - s.pad_h, w0 = q * s.stride_w - s.pad_w;
      for (int64_t c = 0; c < s.C; ++c, ++g, ++argmax) {
        const int64_t h = h0 + *argmax / s.S * s.dilation_h, w = w0 + *argmax % s.S * s.dilation_w;
        const bool live = *argmax < s.R * s.S && h >= 0 && h < s.H && w >= 0 && w < s.W;
        if (live) grad_conv[(h * s.W + w) * s.C + c] += *g;
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL
