// Max-pooling with indices, forward and backward (formula: shapes.h), for NHWC and NCHW.
//
// PyTorch's rules: the first maximum in scan order wins; a NaN wins over every number, and the last of several NaNs
// gives the index; indices are flat over H * W.
//
// Forward keeps the best value and its offset from the window's origin for a run of windows that are neighbours in
// memory (the channels of one pixel, or the windows of one row) and shows them one tap after the other: no branch, so
// the compiler vectorises the loop, and random data costs no mispredictions.
#pragma once

#include "../../shapes.h"
#include "range.h"
#include "simd.h"

namespace fastconv::FC_LEVEL {

// Windows whose offsets wait on the stack.
constexpr int64_t run_windows = 256;

template <class T>
constexpr T lowest() {
  if constexpr (static_cast<T>(0.5) != static_cast<T>(0)) {
    return -static_cast<T>(__builtin_inf());
  } else if constexpr (static_cast<T>(-1) > static_cast<T>(0)) {
    return 0;
  } else {
    return static_cast<T>(static_cast<T>(1) << (sizeof(T) * 8 - 1));
  }
}

template <class T>
FC_INLINE void show_tap(const T* __restrict__ x, int64_t x_stride, T* __restrict__ best, int32_t* __restrict__ at,
                        int64_t windows, int32_t offset) {
  for (int64_t i = 0; i < windows; ++i) {
    const T value = x[i * x_stride];
    const bool take = (value > best[i]) | (value != value);
    best[i] = take ? value : best[i];
    at[i] = take ? offset : at[i];
  }
}

// The taps t < size of a window that begins at `start` and that lie in [0, limit).
FC_INLINE Range valid_taps(int64_t start, int64_t limit, int64_t dilation, int64_t size) {
  return Range(0, limit, dilation, start, size);
}

template <class T>
void max_pool2d_nhwc(const Pool2dShape& s, const T* x, T* y, int64_t* indices, int64_t p0, int64_t p1) {
  int32_t at[run_windows];
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t h0 = p * s.stride_h - s.pad_h;
    const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R);
    for (int64_t q = 0; q < s.Q; ++q) {
      const int64_t w0 = q * s.stride_w - s.pad_w;
      const Range taps_s = valid_taps(w0, s.W, s.dilation_w, s.S);
      const int64_t origin = h0 * s.W + w0;
      const int64_t first = taps_r.begin * s.dilation_h * s.W + taps_s.begin * s.dilation_w;
      for (int64_t c = 0; c < s.C; c += run_windows) {
        const int64_t windows = s.C - c < run_windows ? s.C - c : run_windows;
        const int64_t out = (p * s.Q + q) * s.C + c;
        for (int64_t i = 0; i < windows; ++i) {
          y[out + i] = lowest<T>();
          at[i] = static_cast<int32_t>(first);
        }
        for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
          for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
            const int64_t offset = r * s.dilation_h * s.W + tap * s.dilation_w;
            show_tap(x + (origin + offset) * s.C + c, 1, y + out, at, windows, static_cast<int32_t>(offset));
          }
        }
        for (int64_t i = 0; i < windows; ++i) indices[out + i] = origin + at[i];
      }
    }
  }
}

// One image and channel.
template <class T>
void max_pool2d_nchw(const Pool2dShape& s, const T* x, T* y, int64_t* indices) {
  int32_t at[run_windows];
  for (int64_t p = 0; p < s.P; ++p) {
    const int64_t h0 = p * s.stride_h - s.pad_h;
    const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R);
    for (int64_t first_q = 0; first_q < s.Q; first_q += run_windows) {
      const int64_t windows = s.Q - first_q < run_windows ? s.Q - first_q : run_windows;
      T* best = y + p * s.Q + first_q;
      for (int64_t i = 0; i < windows; ++i) {
        const int64_t w0 = (first_q + i) * s.stride_w - s.pad_w;
        const int64_t first_s = w0 < 0 ? ceil_div(-w0, s.dilation_w) : 0;
        best[i] = lowest<T>();
        at[i] = static_cast<int32_t>(taps_r.begin * s.dilation_h * s.W + first_s * s.dilation_w);
      }
      for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
        const T* row = x + (h0 + r * s.dilation_h) * s.W;
        for (int64_t tap = 0; tap < s.S; ++tap) {
          const int64_t shift = first_q * s.stride_w + tap * s.dilation_w - s.pad_w;
          const Range valid(0, s.W, s.stride_w, shift, windows);
          const int32_t offset = static_cast<int32_t>(r * s.dilation_h * s.W + tap * s.dilation_w);
          const T* from = row + shift + valid.begin * s.stride_w;
          const int64_t count = valid.end - valid.begin;
          if (s.stride_w == 1) {
            show_tap(from, 1, best + valid.begin, at + valid.begin, count, offset);
          } else if (s.stride_w == 2) {
            show_tap(from, 2, best + valid.begin, at + valid.begin, count, offset);
          } else {
            show_tap(from, s.stride_w, best + valid.begin, at + valid.begin, count, offset);
          }
        }
      }
      int64_t* to = indices + p * s.Q + first_q;
      for (int64_t i = 0; i < windows; ++i) {
        to[i] = h0 * s.W + (first_q + i) * s.stride_w - s.pad_w + at[i];
      }
    }
  }
}

// Windows that share no pixel: every gradient has one writer.
inline bool windows_are_apart(const Pool2dShape& s) {
  return s.stride_h >= (s.R - 1) * s.dilation_h + 1 && s.stride_w >= (s.S - 1) * s.dilation_w + 1;
}

// An index that lies in no pixel (a window wholly in the padding has one) takes its gradient nowhere.
template <class T>
void add_to_indexed(const T* g, const int64_t* indices, T* dx, int64_t windows, int64_t pixels, int64_t g_step,
                    int64_t dx_step) {
  for (int64_t i = 0; i < windows; ++i) {
    const int64_t at = indices[i * g_step];
    if (static_cast<uint64_t>(at) < static_cast<uint64_t>(pixels)) dx[at * dx_step] += g[i * g_step];
  }
}

// One image, channels [c0, c1). dx is zero.
template <class T>
void max_pool2d_backward_nhwc(const Pool2dShape& s, const T* g, const int64_t* indices, T* dx, int64_t c0, int64_t c1) {
  if (!windows_are_apart(s)) {
    for (int64_t c = c0; c < c1; ++c) {
      add_to_indexed(g + c, indices + c, dx + c, s.P * s.Q, s.H * s.W, s.C, s.C);
    }
    return;
  }
  for (int64_t p = 0; p < s.P; ++p) {
    const int64_t h0 = p * s.stride_h - s.pad_h;
    const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R);
    for (int64_t q = 0; q < s.Q; ++q) {
      const int64_t w0 = q * s.stride_w - s.pad_w;
      const Range taps_s = valid_taps(w0, s.W, s.dilation_w, s.S);
      const T* __restrict__ from = g + (p * s.Q + q) * s.C;
      const int64_t* __restrict__ at = indices + (p * s.Q + q) * s.C;
      for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
        for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
          const int64_t pixel = (h0 + r * s.dilation_h) * s.W + w0 + tap * s.dilation_w;
          T* __restrict__ to = dx + pixel * s.C;
          for (int64_t c = c0; c < c1; ++c) to[c] = at[c] == pixel ? from[c] : T(0);
        }
      }
    }
  }
}

// One image and channel. dx is zero.
template <class T>
void max_pool2d_backward_nchw(const Pool2dShape& s, const T* g, const int64_t* indices, T* dx) {
  add_to_indexed(g, indices, dx, s.P * s.Q, s.H * s.W, 1, 1);
}

}  // namespace fastconv::FC_LEVEL
