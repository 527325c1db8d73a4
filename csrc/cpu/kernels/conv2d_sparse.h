// backward_weight and backward_data of the dense-in-groups convolution for a gradient g that is mostly zeros, as it is
// behind ReLU (50 to 70 % zeros in training) and max-pooling (75 % and more): products with zeros are not computed.
// What is computed is what the dense kernels compute, less terms that are exactly zero; the caller makes sure that
// those are (no infinity or NaN in x or w).
//
// Both passes first write down the live values of a tile of g, then spend one FMA a vector of taps on each:
//   backward_weight  for one k, dw[k][run] stays in registers:      dw[k][run] += g * x[pixel][run]   (k: list of
//   pixels) backward_data    for one pixel, dx[run] stays in registers:     dx[run]    += g * w[k][run]       (pixel:
//   list of k)
// A run is a row of taps whose x is adjacent in NHWC memory: (s, c) for one r where pixels touch, else c for one (r,
// s). g would rather be scattered the other way round in neither pass: stores cost more than loads (42 against 26
// cycles a live value for dx of 3x3x32, Zen 4).
//
// groups == 1. Weights and dw are KRSC.
#pragma once

#include "conv2d.h"

namespace fastconv::FC_LEVEL {

template <class T>
int64_t count_nonzero(const T* values, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += lanes<T>) {
    found += __builtin_popcount(nonzero_lanes<T>(load_upto(values + i, count - i)));
  }
  return found;
}

// 0 * x is 0 for finite x only.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < count; i += lanes<T>) sum += load_upto(values + i, count - i) * T(0);
  return nonzero_lanes<T>(sum) == 0;
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
FC_INLINE void add_live(T* sum, const T* from, const int64_t* at, const T* value, int64_t live, int64_t last_lanes) {
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
FC_INLINE void add_live_run(T* sum, const T* from, const int64_t* at, const T* value, int64_t live, int64_t length) {
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

// The live values of one vector of channels: a list for each, in the order of the pixels.
template <class T>
struct LiveByChannel {
  int64_t count[lanes<T>];
  int64_t* at;  // lanes x capacity
  T* value;
  int64_t capacity;
};

// Elements of scratch that backward_weight needs for its lists; int64_t and T for each.
template <class T>
int64_t live_list_size(const Conv2dShape& s, int64_t pixels) {
  const int64_t lists = pixels * lanes<T>, rows = pixels * s.K + pixels + 1;
  return lists > rows ? lists : rows;
}

// Adds the tile's part of the gradient to dw, [K][r, s, c], and to db, [K], for output channels [k0, k0 + lanes).
template <class T>
void sparse_backward_weight(const Conv2dShape& s, const T* x, const Strides& strides, const T* g, T* dw, T* db,
                            int64_t images, int64_t rows, int64_t k0, int64_t* at, T* value) {
  const int64_t channels = s.K - k0 < lanes<T> ? s.K - k0 : lanes<T>;
  LiveByChannel<T> live{{}, at, value, images * rows * s.Q};
  const T* g_pixel = g + k0;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t p = 0; p < rows; ++p) {
      int64_t offset = n * strides.image + p * s.stride_h * strides.row;
      for (int64_t q = 0; q < s.Q; ++q) {
        for (uint32_t bits = nonzero_lanes<T>(load_upto(g_pixel, channels)); bits != 0; bits &= bits - 1) {
          const int k = __builtin_ctz(bits);
          const int64_t i = k * live.capacity + live.count[k]++;
          live.at[i] = offset;
          live.value[i] = g_pixel[k];
        }
        g_pixel += s.K;
        offset += s.stride_w * strides.pixel;
      }
    }
  }
  const Runs runs(s);
  for (int64_t k = 0; k < channels; ++k) {
    const int64_t* list = live.at + k * live.capacity;
    const T* values = live.value + k * live.capacity;
    T sum = 0;
    for (int64_t i = 0; i < live.count[k]; ++i) sum += values[i];
    db[k0 + k] += sum;
    T* to = dw + (k0 + k) * runs.count * runs.length;
    for (int64_t run = 0; run < runs.count; ++run) {
      const T* from =
          x + run / runs.per_row * s.dilation_h * strides.row + run % runs.per_row * runs.dilation * strides.pixel;
      add_live_run(to + run * runs.length, from, list, values, live.count[k], runs.length);
    }
  }
}

// Adds to dx, which the caller has zeroed; arguments as conv2d_backward_data's, and g_rows, how many rows of each image
// g holds: all that reach the tile. Weights KRSC.
template <class T>
void sparse_backward_data(const Conv2dShape& s, const T* g, int64_t g_row0, int64_t g_rows, int64_t g_image,
                          const T* weight, T* dx, int64_t images, int64_t h0, int64_t rows, int64_t* at, T* value) {
  const int64_t pixels = images * g_rows * s.Q, taps = s.taps();
  int64_t* begin = at;  // of each pixel's list, and the end of the last
  at += pixels + 1;
  int64_t found = 0, pixel = 0;
  for (int64_t n = 0; n < images; ++n) {
    const T* g_pixel = g + n * g_image;
    for (int64_t i = 0; i < g_rows * s.Q; ++i) {
      begin[pixel++] = found;
      for (int64_t k = 0; k < s.K; k += lanes<T>) {
        for (uint32_t bits = nonzero_lanes<T>(load_upto(g_pixel + k, s.K - k)); bits != 0; bits &= bits - 1) {
          const int64_t channel = k + __builtin_ctz(bits);
          at[found] = channel * taps;
          value[found++] = g_pixel[channel];
        }
      }
      g_pixel += s.K;
    }
  }
  begin[pixel] = found;

  const Runs runs(s);
  for (int64_t run = 0; run < runs.count; ++run) {
    const T* run_weight = weight + run * runs.length;
    const int64_t r = run / runs.per_row, tap = run % runs.per_row;
    const Range p_range(h0, h0 + rows, s.stride_h, r * s.dilation_h - s.pad_h, s.P);
    for (int64_t n = 0; n < images; ++n) {
      for (int64_t p = p_range.begin; p < p_range.end; ++p) {
        const int64_t h = p * s.stride_h + r * s.dilation_h - s.pad_h - h0;
        T* dx_row = dx + (n * rows + h) * s.W * s.C;
        const int64_t* list = begin + (n * g_rows + p - g_row0) * s.Q;
        for (int64_t q = 0; q < s.Q; ++q) {
          const int64_t live = list[q + 1] - list[q];
          if (live == 0) continue;
          // The run, less what hangs over the left and right edge.
          const int64_t w = q * s.stride_w + tap * runs.dilation - s.pad_w, width = runs.length / s.C;
          const int64_t first = w < 0 ? -w : 0, last = w + width > s.W ? s.W - w : width;
          if (first >= last) continue;
          add_live_run(dx_row + (w + first) * s.C, run_weight + first * s.C, at + list[q], value + list[q], live,
                       (last - first) * s.C);
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL
