// Max-pooling with indices, forward and backward, for NHWC and NCHW (formula: shapes.h).
//
// Layout: x, y and indices are contiguous and have the same order, NHWC or NCHW. Indices are flat over H * W. As in
// PyTorch, the first maximum in scan order wins. A NaN wins over every number, and the index is that of the last NaN.
// After ReLU, forward stores bytes in place of indices: the argmax of shapes.h.
//
// Blocking: each lane has its own window. In NHWC, lanes are the channels of one pixel; in NCHW, the windows of one
// row. A loop over the taps keeps each lane's maximum and its position in registers, without a branch that could be
// mispredicted. PyTorch's loop for NCHW has such a branch. It takes 21 ns for each window of random data (Zen 4).
//
// Tried in backward: comparing every pixel with its window's index. That needs no zeroing and only one vector store for
// each pixel, but it was no faster than scattered stores.
#pragma once

#include "../../shapes.h"
#include "range.h"
#include "simd_bytes.h"

namespace fastconv::FC_LEVEL {

// The smallest value of T, with which a maximum starts.
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

// The taps t < size of a window whose pixels start + t * dilation are in [0, limit).
FC_INLINE Range valid_taps(int64_t start, int64_t limit, int64_t dilation, int64_t size) {
  return Range(0, limit, dilation, start, size);
}

// A window's row and column in the output.
struct Window {
  int64_t p, q;
};

// True: forward stores the position in the window, or no_gradient if the maximum is not above zero. False: it stores
// the index.
template <class Index>
constexpr bool stores_argmax = sizeof(Index) == 1;

// Pools one window of one channel, for any type and at any border. Pixels of x are `pixel` elements apart.
template <class T, class Index>
void pool_window(const Pool2dShape& s, const T* x, int64_t pixel, Window window, T* y, Index* index) {
  const int64_t p = window.p, q = window.q;
  const int64_t h0 = p * s.stride_h - s.pad_h, w0 = q * s.stride_w - s.pad_w;
  const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R), taps_s = valid_taps(w0, s.W, s.dilation_w, s.S);
  const auto pixel_of = [&](int64_t r, int64_t tap) { return (h0 + r * s.dilation_h) * s.W + w0 + tap * s.dilation_w; };
  const auto stored = [&](int64_t r, int64_t tap) { return stores_argmax<Index> ? r * s.S + tap : pixel_of(r, tap); };
  T best = lowest<T>();
  int64_t at = stored(taps_r.begin, taps_s.begin);
  for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
    for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
      const T value = x[pixel_of(r, tap) * pixel];
      if (value > best || value != value) best = value, at = stored(r, tap);
    }
  }
  *y = best;
  if constexpr (stores_argmax<Index>) at = best <= T(0) ? no_gradient : at;
  *index = static_cast<Index>(at);
}

// A vector of min(count, lanes) windows, `step` pixels apart (0 in NHWC). The first window begins at pixel `origin`.
// taps_r and taps_s are the taps inside the image, the same for all windows.
struct WindowVector {
  Range taps_r, taps_s;
  int64_t origin, step, count;
};

// Pools a vector of windows. tap_at(offset) loads, for each window, the value `offset` pixels after its first pixel.
template <class T, class Index, class TapAt>
FC_INLINE void pool_windows(const Pool2dShape& s, const WindowVector& windows, T* y, Index* indices, TapAt tap_at) {
  using I = IntLike<T>;
  const Range taps_r = windows.taps_r, taps_s = windows.taps_s;
  const auto offset_of = [&](int64_t r, int64_t tap) { return r * s.dilation_h * s.W + tap * s.dilation_w; };
  const auto stored = [&](int64_t r, int64_t tap) {
    return static_cast<I>(stores_argmax<Index> ? r * s.S + tap : offset_of(r, tap)) - Vec<I>{};
  };
  Vec<T> best = lowest<T>() - Vec<T>{};
  Vec<I> at = stored(taps_r.begin, taps_s.begin);
  for (int64_t r = taps_r.begin; r < taps_r.end; ++r) {
    for (int64_t tap = taps_s.begin; tap < taps_s.end; ++tap) {
      const Vec<T> value = tap_at(offset_of(r, tap));
      const Vec<I> take = (value > best) | (value != value);
      best = take ? value : best;
      at = take ? stored(r, tap) : at;
    }
  }
  store_upto(y, best, windows.count);
  if constexpr (stores_argmax<Index>) {
    const Vec<I> none = static_cast<I>(no_gradient) - Vec<I>{};
    store_bytes<T>(indices, select<I>(not_above_zero<T>(best), none, at), windows.count);
  } else {
    I positions[lanes<T>];
    store(positions, at);
    const int64_t count = windows.count < lanes<T> ? windows.count : lanes<T>;
    for (int64_t i = 0; i < count; ++i) indices[i] = windows.origin + i * windows.step + positions[i];
  }
}

// Computes the output rows [p0, p1) of one image.
template <class T, class Index>
void max_pool2d_nhwc(const Pool2dShape& s, const T* x, T* y, Index* indices, int64_t p0, int64_t p1) {
  FASTCONV_ASSERT(x != nullptr && readable(y) && readable(indices) && 0 <= p0 && p0 <= p1 && p1 <= s.P);
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t h0 = p * s.stride_h - s.pad_h;
    const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R);
    for (int64_t q = 0; q < s.Q; ++q) {
      const int64_t w0 = q * s.stride_w - s.pad_w, origin = h0 * s.W + w0, out = (p * s.Q + q) * s.C;
      if constexpr (sizeof(T) < 4) {
        for (int64_t c = 0; c < s.C; ++c) pool_window(s, x + c, s.C, {p, q}, y + out + c, indices + out + c);
      } else {
        const Range taps_s = valid_taps(w0, s.W, s.dilation_w, s.S);
        for (int64_t c = 0; c < s.C; c += lanes<T>) {
          const T* from = x + origin * s.C + c;
          pool_windows(s, {taps_r, taps_s, origin, 0, s.C - c}, y + out + c, indices + out + c,
                       [&](int64_t offset) { return load_upto(from + offset * s.C, s.C - c); });
        }
      }
    }
  }
}

template <class T, int... I>
FC_INLINE Vec<T> load_every_second(const T* from, int64_t count, Indices<I...>) {
  const int64_t span = 2 * count - 1;
  const Vec<T> low = load_upto(from, span);
  const Vec<T> high = span > lanes<T> ? load_upto(from + lanes<T>, span - lanes<T>) : low;
  return shuffle(from, low, high, Indices<2 * I...>{});
}
// Loads from[0], from[step], ...: min(count, lanes) elements.
template <class T>
FC_INLINE Vec<T> load_every(const T* from, int64_t step, int64_t count) {
  if (step == 1) return load_upto(from, count);
  if (step == 2) return load_every_second(from, count < lanes<T> ? count : lanes<T>, LaneIndices<T>{});
  Vec<T> value = {};
  for (int64_t i = 0; i < lanes<T> && i < count; ++i) value[i] = from[i * step];
  return value;
}

// Computes the output rows [p0, p1) of one image and channel.
template <class T, class Index>
void max_pool2d_nchw(const Pool2dShape& s, const T* x, T* y, Index* indices, int64_t p0, int64_t p1) {
  FASTCONV_ASSERT(x != nullptr && readable(y) && readable(indices) && 0 <= p0 && p0 <= p1 && p1 <= s.P);
  // The windows [first, last) of a row have all their columns in the image.
  const int64_t reach = (s.S - 1) * s.dilation_w;
  const Range left(0, s.W, s.stride_w, -s.pad_w, s.Q), right(0, s.W, s.stride_w, reach - s.pad_w, s.Q);
  const int64_t first = sizeof(T) < 4 ? s.Q : left.begin, last = right.end > first ? right.end : first;
  for (int64_t p = p0; p < p1; ++p) {
    T* y_row = y + p * s.Q;
    Index* indices_row = indices + p * s.Q;
    for (int64_t q = 0; q < first; ++q) pool_window(s, x, 1, {p, q}, y_row + q, indices_row + q);
    if constexpr (sizeof(T) >= 4) {
      const int64_t h0 = p * s.stride_h - s.pad_h;
      const Range taps_r = valid_taps(h0, s.H, s.dilation_h, s.R);
      for (int64_t q = first; q < last; q += lanes<T>) {
        const int64_t origin = h0 * s.W + q * s.stride_w - s.pad_w;
        pool_windows(s, {taps_r, Range(0, s.S, 1, 0, s.S), origin, s.stride_w, last - q}, y_row + q, indices_row + q,
                     [&](int64_t offset) { return load_every(x + origin + offset, s.stride_w, last - q); });
      }
    }
    for (int64_t q = last; q < s.Q; ++q) pool_window(s, x, 1, {p, q}, y_row + q, indices_row + q);
  }
}

// Adds each window's gradient to dx, which the caller has zeroed, at the window's index. dx has s.H rows of an image.
// Its first pixel is number `first_pixel` of the image. Indices outside of dx are ignored. In NCHW, s.C is 1.
template <class T>
void max_pool2d_backward(const Pool2dShape& s, const T* g, const int64_t* indices, T* dx, int64_t first_pixel) {
  FASTCONV_ASSERT(s.P * s.Q * s.C == 0 || (readable(g) && readable(indices)));
  FASTCONV_ASSERT(readable(dx) && first_pixel >= 0);
  const uint64_t pixels = static_cast<uint64_t>(s.H * s.W);
  const auto scatter = [&](int64_t C) {
    for (int64_t window = 0; window < s.P * s.Q; ++window) {
      for (int64_t c = 0; c < C; ++c) {
        const int64_t pixel = indices[window * C + c] - first_pixel;
        if (static_cast<uint64_t>(pixel) < pixels) dx[pixel * C + c] += g[window * C + c];
      }
    }
  };
  // With C = 1 as a constant, the inner loop disappears and the time falls by a quarter.
  s.C == 1 ? scatter(1) : scatter(s.C);
}

}  // namespace fastconv::FC_LEVEL
