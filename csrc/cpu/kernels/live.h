// backward_weight and backward_data of the dense-in-groups convolution for a gradient that is mostly zeros: behind a 2 x 2
// max-pool at most one value in four is not, and behind ReLU only those where the output is above zero (in training 50 to
// 60 % of the windows of MnistCNN's pools, 30 % of conv3's outputs). Products with zeros are not computed; what is
// computed is what the dense kernels compute, less terms that are exactly zero. The caller makes sure that those are: no
// infinity or NaN in x or w.
//
// The gradient comes as g, one value a window, and argmax, a byte that says which pixel of the window it belongs to, or
// that it is dead (window.h). A gradient without pooling is one of windows of one pixel (mark_zeros). Both are NHWC.
//
// Both passes first write down the live values, then spend one FMA a vector of taps on each:
//   backward_weight  for one k, dw[k][run] stays in registers:    dw[k][run] += g * x[pixel][run]  (a list of pixels for
//                    each k)
//   backward_data    for one pixel, dx[run] stays in registers:   dx[run] += g * w[k][run]         (a list of k for each
//                    pixel of each window)
// A run is a row of taps whose x is adjacent in NHWC memory: (s, c) for one r where pixels touch, else c for one (r, s).
// Scattering g the other way round loses in both passes, since stores cost more than loads (42 against 26 cycles a live
// value for dx of 3x3x32, Zen 4).
//
// groups == 1. Weights and dw are KRSC. Offsets are counted in Offset<T>, as wide as T, so lists fill whole vectors.
#pragma once

#include "conv2d.h"
#include "kernels.h"

namespace fastconv::FC_LEVEL {

// 0 * x is 0 for finite x only.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < count; i += lanes<T>) sum += load_upto(values + i, count - i) * T(0);
  return nonzero_lanes<T>(sum) == 0;
}

// The argmax of a gradient without windows. Returns how many are live.
template <class T>
int64_t mark_zeros(const T* values, uint8_t* argmax, int64_t count) {
  int64_t live = 0;
  for (int64_t i = 0; i < count; ++i) {
    argmax[i] = values[i] == T(0) ? dead : 0;
    live += values[i] != T(0);
  }
  return live;
}

inline int64_t count_live(const uint8_t* argmax, int64_t count) {
  int64_t live = 0;
  for (int64_t i = 0; i < count; ++i) live += argmax[i] != dead;
  return live;
}

// How the taps of one pixel fall into runs.
struct Runs {
  int64_t count, length;      // length in elements
  int64_t per_row, dilation;  // runs in a row of taps; between them, in pixels

  explicit Runs(const Conv2dShape& s) {
    const bool whole_rows = s.dilation_w == 1;
    count = whole_rows ? s.R : s.R * s.S;
    length = whole_rows ? s.S * s.C : s.C;
    per_row = whole_rows ? 1 : s.S;
    dilation = s.dilation_w;
  }
};

// sum[0 ... vectors) += value[i] * from[at[i] ...] over i, the sums in registers.
template <class T, int vectors, bool partial>
FC_INLINE void add_live(T* sum, const T* from, const Offset<T>* at, const T* value, int64_t live, int64_t last_lanes) {
  Vec<T> acc[vectors];
#pragma GCC unroll 12
  for (int v = 0; v < vectors; ++v) acc[v] = load_lane_vector<T, vectors, partial>(sum, v, last_lanes);
  for (int64_t i = 0; i < live; ++i) {
    const T* row = from + at[i];
    const T factor = value[i];
#pragma GCC unroll 12
    for (int v = 0; v < vectors; ++v) acc[v] += factor * load_lane_vector<T, vectors, partial>(row, v, last_lanes);
  }
#pragma GCC unroll 12
  for (int v = 0; v < vectors - 1; ++v) store(sum + v * lanes<T>, acc[v]);
  if constexpr (partial) {
    store_partial(sum + (vectors - 1) * lanes<T>, acc[vectors - 1], last_lanes);
  } else {
    store(sum + (vectors - 1) * lanes<T>, acc[vectors - 1]);
  }
}

// The same for a run of any length, as many vectors at a time as registers hold.
template <class T>
FC_INLINE void add_live_run(T* sum, const T* from, const Offset<T>* at, const T* value, int64_t live, int64_t length) {
  constexpr int64_t n = lanes<T>;
  int64_t done = 0;
  const auto add = [&](auto vectors) {
    constexpr int count = decltype(vectors)::value;
    for (; done + count * n <= length; done += count * n) {
      add_live<T, count, false>(sum + done, from + done, at, value, live, 0);
    }
  };
  add(Constant<12>{});
  add(Constant<6>{});
  add(Constant<4>{});
  add(Constant<2>{});
  add(Constant<1>{});
  if (done < length) add_live<T, 1, true>(sum + done, from + done, at, value, live, length - done);
}

// Elements of scratch that the lists of so many windows need, for offsets and values each.
template <class T>
int64_t live_list_size(const FusedShape& f, int64_t windows) {
  const int64_t by_channel = windows * lanes<T>, by_pixel = windows * (f.conv.K + f.window()) + 1;
  return (by_channel > by_pixel ? by_channel : by_pixel) + lanes<T>;
}

// Adds a tile's part of the gradient to dw, [K][r, s, c], and to db, [K], for output channels [k0, k0 + lanes). The tile
// is windows [p0, p0 + rows) of some images; x: the first pixel that row `row0` of the convolution reads; g and argmax:
// the tile's first window.
template <class T>
void live_backward_weight(const FusedShape& f, const T* x, const Strides& strides, int64_t row0, const T* g,
                          const uint8_t* argmax, T* dw, T* db, int64_t images, int64_t p0, int64_t rows, int64_t k0,
                          Offset<T>* at, T* value) {
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const int64_t channels = s.K - k0 < lanes<T> ? s.K - k0 : lanes<T>;
  const int64_t capacity = images * rows * pool.Q;
  const int64_t row = s.stride_h * strides.row, pixel = s.stride_w * strides.pixel;
  Offset<T> offset[256] = {};
  for (int64_t i = 0; i < f.window(); ++i) {
    offset[i] = static_cast<Offset<T>>(i / pool.S * pool.dilation_h * row + i % pool.S * pool.dilation_w * pixel);
  }
  int64_t live[lanes<T>] = {};
  for (int64_t n = 0; n < images; ++n) {
    const int64_t image = (n * pool.P * pool.Q) * s.K + k0;
    for (int64_t p = 0; p < rows; ++p) {
      const int64_t h = (p0 + p) * pool.stride_h - pool.pad_h - row0;
      for (int64_t q = 0; q < pool.Q; ++q) {
        const auto window =
            static_cast<Offset<T>>(n * strides.image + h * row + (q * pool.stride_w - pool.pad_w) * pixel);
        const T* from = g + image + (p * pool.Q + q) * s.K;
        const uint8_t* position = argmax + image + (p * pool.Q + q) * s.K;
        // Without a branch: written in any case, kept by counting it.
        for (int64_t k = 0; k < channels; ++k) {
          const int64_t i = k * capacity + live[k];
          at[i] = window + offset[position[k]];
          value[i] = from[k];
          live[k] += position[k] < f.window();
        }
      }
    }
  }
  const Runs runs(s);
  for (int64_t k = 0; k < channels; ++k) {
    const Offset<T>* list = at + k * capacity;
    const T* values = value + k * capacity;
    T sum = 0;
    for (int64_t i = 0; i < live[k]; ++i) sum += values[i];
    db[k0 + k] += sum;
    T* to = dw + (k0 + k) * runs.count * runs.length;
    for (int64_t run = 0; run < runs.count; ++run) {
      const T* from =
          x + run / runs.per_row * s.dilation_h * strides.row + run % runs.per_row * runs.dilation * strides.pixel;
      add_live_run(to + run * runs.length, from, list, values, live[k], runs.length);
    }
  }
}

// The live channels of one window, pixel by pixel: their places in the weight, and their gradients. `end`, one number for
// each pixel, says where its list ends.
template <class T>
FC_INLINE int64_t list_channels(const FusedShape& f, const T* g, const uint8_t* argmax, Offset<T>* at, T* value,
                                int64_t found, Offset<T>* end) {
  const int64_t K = f.conv.K;
  const auto taps = static_cast<Offset<T>>(f.conv.taps());
  const Vec<Offset<T>> numbers = lane_numbers<Offset<T>>();
  for (int64_t i = 0; i < f.window(); ++i) {
    for (int64_t k = 0; k < K; k += lanes<T>) {
      const Vec<Offset<T>> position = load_bytes<T>(argmax + k, K - k, dead);
      const uint32_t bits = lane_bits<Offset<T>>(equal<Offset<T>>(position, static_cast<Offset<T>>(i) - Vec<Offset<T>>{}));
      compress_store(at + found, (numbers + static_cast<Offset<T>>(k)) * taps, bits);
      compress_store(value + found, load_upto(g + k, K - k), bits);
      found += __builtin_popcount(bits);
    }
    end[i] = static_cast<Offset<T>>(found);
  }
  return found;
}

// Adds to dx, which the caller has zeroed: the rows [h0, h0 + rows) of some images, adjacent. g and argmax: window rows
// [p0, p0 + p_rows) of each of them, all that reach the tile; p0's first window of the first image.
template <class T>
void live_backward_data(const FusedShape& f, const T* g, const uint8_t* argmax, int64_t p0, int64_t p_rows,
                        const T* weight, T* dx, int64_t images, int64_t h0, int64_t rows, Offset<T>* at, T* value) {
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const int64_t row_windows = p_rows * pool.Q, window = f.window();
  Offset<T>* end = at;  // of each pixel's list; before it, that of the pixel before
  *end++ = 0;
  at += images * row_windows * window + 1;
  int64_t found = 0;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t i = 0; i < row_windows; ++i) {
      const int64_t from = (n * pool.P * pool.Q + i) * s.K;
      found = list_channels(f, g + from, argmax + from, at, value, found, end + (n * row_windows + i) * window);
    }
  }

  const Runs runs(s);
  for (int64_t run = 0; run < runs.count; ++run) {
    const T* run_weight = weight + run * runs.length;
    const int64_t shift_h = run / runs.per_row * s.dilation_h - s.pad_h - h0;
    const int64_t shift_w = run % runs.per_row * runs.dilation - s.pad_w, width = runs.length / s.C;
    const Offset<T>* list = end - 1;
    for (int64_t n = 0; n < images; ++n) {
      T* image = dx + n * rows * s.W * s.C;
      for (int64_t p = p0; p < p0 + p_rows; ++p) {
        for (int64_t q = 0; q < pool.Q; ++q) {
          for (int64_t i = 0; i < window; ++i, ++list) {
            const int64_t first_live = list[0], live = list[1] - first_live;
            const int64_t pixel_h = p * pool.stride_h - pool.pad_h + i / pool.S * pool.dilation_h;
            const int64_t pixel_w = q * pool.stride_w - pool.pad_w + i % pool.S * pool.dilation_w;
            const int64_t h = pixel_h * s.stride_h + shift_h, w = pixel_w * s.stride_w + shift_w;
            if (live == 0 || h < 0 || h >= rows) continue;
            // The run, less what hangs over the left and right edge.
            const int64_t first = w < 0 ? -w : 0, last = w + width > s.W ? s.W - w : width;
            if (first >= last) continue;
            add_live_run(image + (h * s.W + w + first) * s.C, run_weight + first * s.C, at + first_live,
                         value + first_live, live, (last - first) * s.C);
          }
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL
