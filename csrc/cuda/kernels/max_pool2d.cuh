// Max-pooling with indices, forward and backward (formula: shapes.h), for NHWC and NCHW.
//
// The rules are PyTorch's. The first maximum in scan order wins. A NaN wins over every number, and the last of several
// NaNs gives the index. Indices are flat over H * W.
//
// Memory bandwidth limits the speed. A thread computes one window, or in NHWC the same window of V neighbouring
// channels. Backward gathers: the thread of a pixel reads the indices of the few windows that cover it, in order. So dx
// is not zeroed first, each value is written once, and every run gives the same bits.
#pragma once

#include <type_traits>

#include "../../shapes.h"
#include "divisor.cuh"
#include "layout.cuh"

namespace fastconv::cuda {

constexpr int pool_threads = 256;

// The number of neighbouring channels per thread. Their values and their indices of 8 bytes take two or three accesses.
template <class T>
constexpr int pool_width = sizeof(T) == 8 ? 2 : 4;

// The input or the output, (N, C, H, W), and the place of thread i in it. With V > 1, c is the first of V channels.
struct Plane {
  Layout layout;
  Divisor by_channels, by_height, by_width;
  bool channels_last;

  Plane(int64_t C, int64_t H, int64_t W, bool nhwc, int V)
      : layout(Layout::of(C, H * W, nhwc)), by_channels(C / V), by_height(H), by_width(W), channels_last(nhwc) {}

  struct Place {
    int64_t n, c, h, w;
  };

  __device__ Place place(int64_t i, int V) const {
    Place at;
    if (channels_last) {
      const int64_t pixels = by_channels.divide(i), rows = by_width.divide(pixels);
      at.c = by_channels.remainder(i, pixels) * V;
      at.w = by_width.remainder(pixels, rows);
      at.n = by_height.divide(rows);
      at.h = by_height.remainder(rows, at.n);
    } else {
      const int64_t rows = by_width.divide(i), planes = by_height.divide(rows);
      at.w = by_width.remainder(i, rows);
      at.h = by_height.remainder(rows, planes);
      at.n = by_channels.divide(planes);
      at.c = by_channels.remainder(planes, at.n);
    }
    return at;
  }

  // The offset of the first pixel of channel c.
  __device__ int64_t offset(const Place& at) const { return at.n * layout.outer + at.c * layout.channel; }
};

// A window begins at `start` and has `count` taps. The taps from `begin` to `end` - 1 have coordinates in [0, limit).
struct Taps {
  int64_t begin, end;

  __device__ Taps(int64_t start, int64_t limit, int64_t dilation, int64_t count) {
    begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
    const int64_t inside = limit > start ? (limit - start + dilation - 1) / dilation : 0;
    end = inside < count ? inside : count;
  }
  __device__ int count() const { return static_cast<int>(end - begin); }
};

template <class T, int V>
__global__ void __launch_bounds__(pool_threads)
    pool_windows(Pool2dShape s, const T* x, Plane input, T* y, int64_t* indices, Plane output, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Plane::Place at = output.place(i, V);
  const int64_t h0 = at.h * s.stride_h - s.pad_h, w0 = at.w * s.stride_w - s.pad_w;
  const Taps taps_r(h0, s.H, s.dilation_h, s.R), taps_s(w0, s.W, s.dilation_w, s.S);
  // A window entirely in the padding returns this index, as in PyTorch. Its row is at least H or its column at least W,
  // so it is outside of the image or a pixel of a later row. Backward adds the gradient to this pixel only if it is
  // between the window's taps, as PyTorch's backward on CUDA does.
  const int64_t first = (h0 + taps_r.begin * s.dilation_h) * s.W + w0 + taps_s.begin * s.dilation_w;
  // Offsets within a window fit in 32 bits (checks.cpp).
  const auto right = static_cast<int>(s.dilation_w), down = static_cast<int>(s.dilation_h * s.W);
  const T* row = x + input.offset(at) + first * input.layout.pixel;
  Vector<T, V> best;
  int best_at[V];
#pragma unroll
  for (int v = 0; v < V; ++v) best.values[v] = T(-INFINITY), best_at[v] = 0;
  for (int r = 0; r < taps_r.count(); ++r) {
    for (int tap = 0; tap < taps_s.count(); ++tap) {
      const Vector<T, V> next = load_vector<V>(row + tap * right * input.layout.pixel);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto number = static_cast<Accumulator<T>>(next.values[v]);
        if (number > static_cast<Accumulator<T>>(best.values[v]) || number != number) {
          best.values[v] = next.values[v];
          best_at[v] = r * down + tap * right;
        }
      }
    }
    row += down * input.layout.pixel;
  }
  const int64_t to = output.offset(at) + (at.h * s.Q + at.w) * output.layout.pixel;
  Vector<int64_t, V> found;
#pragma unroll
  for (int v = 0; v < V; ++v) found.values[v] = first + best_at[v];
  *reinterpret_cast<Vector<T, V>*>(y + to) = best;
  *reinterpret_cast<Vector<int64_t, V>*>(indices + to) = found;
}

// The windows that may contain a pixel: window i begins at i * stride - pad, which is in [pixel - reach, pixel].
struct Covering {
  int64_t first, last;

  __device__ Covering(int64_t pixel, int64_t pad, int64_t reach, int64_t stride, int64_t count) {
    const int64_t earliest = pixel + pad - reach, latest = (pixel + pad) / stride;
    first = earliest <= 0 ? 0 : (earliest + stride - 1) / stride;
    last = latest < count - 1 ? latest : count - 1;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(pool_threads) gather_gradients(Pool2dShape s, const T* g, const int64_t* indices,
                                                                 Plane output, T* dx, Plane input, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Plane::Place at = input.place(i, V);
  const int64_t pixel = at.h * s.W + at.w, from = output.offset(at);
  const Covering rows(at.h, s.pad_h, (s.R - 1) * s.dilation_h, s.stride_h, s.P);
  const Covering columns(at.w, s.pad_w, (s.S - 1) * s.dilation_w, s.stride_w, s.Q);
  Vector<Accumulator<T>, V> sum = Vector<Accumulator<T>, V>::zero();
  for (int64_t p = rows.first; p <= rows.last; ++p) {
    for (int64_t q = columns.first; q <= columns.last; ++q) {
      const int64_t window = from + (p * s.Q + q) * output.layout.pixel;
      const Vector<int64_t, V> chosen = load_vector<V>(indices + window);
      const Vector<T, V> gradient = load_vector<V>(g + window);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (chosen.values[v] == pixel) sum.values[v] += static_cast<Accumulator<T>>(gradient.values[v]);
      }
    }
  }
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.values[v] = static_cast<T>(sum.values[v]);
  *reinterpret_cast<Vector<T, V>*>(dx + input.offset(at) + pixel * input.layout.pixel) = result;
}

// Runs launch(V as an integral constant): a thread computes V neighbouring channels if it can read them at once.
template <class T, class F>
void with_pool_width(const Pool2dShape& s, bool channels_last, const T* a, const T* b, const int64_t* indices,
                     const F& launch) {
  constexpr int width = pool_width<T>;
  if (channels_last && s.C % width == 0 && is_aligned<width>(a) && is_aligned<width>(b) && is_aligned<width>(indices)) {
    launch(std::integral_constant<int, width>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

// x: (N, C, H, W), y and indices: (N, C, P, Q); all NHWC or all NCHW.
template <class T>
void launch_max_pool2d(const Pool2dShape& s, const T* x, T* y, int64_t* indices, bool channels_last, Stream stream) {
  const auto launch = [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int64_t count = s.N * s.C * s.P * s.Q / V;
    if (count == 0) return;
    FC_LAUNCH((pool_windows<T, V>), dim3(static_cast<unsigned>(ceil_div(count, pool_threads))), dim3(pool_threads),
              stream, s, x, Plane(s.C, s.H, s.W, channels_last, V), y, indices, Plane(s.C, s.P, s.Q, channels_last, V),
              count);
  };
  with_pool_width<T>(s, channels_last, x, y, indices, launch);
}

// g and indices: (N, C, P, Q), dx: (N, C, H, W); all NHWC or all NCHW.
template <class T>
void launch_max_pool2d_backward(const Pool2dShape& s, const T* g, const int64_t* indices, T* dx, bool channels_last,
                                Stream stream) {
  const auto launch = [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int64_t count = s.N * s.C * s.H * s.W / V;
    if (count == 0) return;
    FC_LAUNCH((gather_gradients<T, V>), dim3(static_cast<unsigned>(ceil_div(count, pool_threads))), dim3(pool_threads),
              stream, s, g, indices, Plane(s.C, s.P, s.Q, channels_last, V), dx, Plane(s.C, s.H, s.W, channels_last, V),
              count);
  };
  with_pool_width<T>(s, channels_last, g, dx, indices, launch);
}

}  // namespace fastconv::cuda
