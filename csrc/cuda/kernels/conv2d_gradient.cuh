// The gradient of a convolution's results, value by value: the given tensor, or the gradient that comes back through
// ReLU and max-pooling. The latter is computed from argmax (shapes.h) at every read, and never stored.
#pragma once

#include "../../shapes.h"
#include "divisor.cuh"
#include "layout.cuh"

namespace fastconv::cuda {

template <class T>
struct DenseGradient {
  static constexpr bool has_addresses = true;

  const T* g;
  Layout layout;
  int Q;

  DenseGradient(const Conv2dShape& s, Dense<const T> grad_output)
      : g(grad_output.data), layout(Layout::of(s.K, s.P * s.Q, grad_output.channels_last)), Q(s.Q) {}

  bool channels_adjacent() const { return layout.channel == 1; }
  bool is_aligned() const { return cuda::is_aligned<widest_vector<T>>(g); }

  struct Pixel {
    int64_t offset;
    __device__ bool exists() const { return offset >= 0; }
  };

  __device__ static Pixel none() { return {-1}; }

  __device__ Pixel pixel(int n, int p, int q) const {
    return {n * layout.outer + (static_cast<int64_t>(p) * Q + q) * layout.pixel};
  }

  __device__ const T* at(const Pixel& pixel, int k) const { return g + pixel.offset + k * layout.channel; }

  template <int V>
  __device__ Vector<T, V> load(const Pixel& pixel, int k) const {
    return load_vector<V>(at(pixel, k));
  }
};

// argmax is NHWC. g has either layout.
template <class T>
struct PooledGradient : Geometry {
  static constexpr bool has_addresses = false;

  const T* g;
  const uint8_t* argmax;
  Layout layout;
  int K, R, S, P, Q;
  bool touching;  // each pixel is in at most one window
  Divisor by_stride_h, by_stride_w, by_dilation_h, by_dilation_w;

  PooledGradient(const FusedShape& f, Dense<const T> grad_output, const uint8_t* at)
      : Geometry(f.pool),
        g(grad_output.data),
        argmax(at),
        layout(Layout::of(f.pool.C, f.pool.P * f.pool.Q, grad_output.channels_last)),
        K(f.pool.C),
        R(f.pool.R),
        S(f.pool.S),
        P(f.pool.P),
        Q(f.pool.Q),
        touching(f.windows_touch()),
        by_stride_h(f.pool.stride_h),
        by_stride_w(f.pool.stride_w),
        by_dilation_h(f.pool.dilation_h),
        by_dilation_w(f.pool.dilation_w) {}

  bool channels_adjacent() const { return layout.channel == 1; }
  bool is_aligned() const {
    return cuda::is_aligned<widest_vector<T>>(g) && cuda::is_aligned<widest_vector<T>>(argmax);
  }

  // If windows touch, g and argmax are the offsets of the pixel's window, and p is the pixel's position in the window.
  // Otherwise they are the offsets of the image's first window, and p and q are the pixel's coordinates plus padding.
  struct Pixel {
    int64_t g, argmax;
    int p, q;
    __device__ bool exists() const { return g >= 0; }
  };

  __device__ static Pixel none() { return {-1, -1, 0, 0}; }

  __device__ Pixel pixel(int n, int p, int q) const {
    const int64_t image = n * layout.outer;
    if (!touching) return {image, image, p + pad_h, q + pad_w};
    const int row = by_stride_h.divide(p), column = by_stride_w.divide(q);
    if (row >= P || column >= Q) return none();
    const int64_t window = static_cast<int64_t>(row) * Q + column;
    const int position = by_stride_h.remainder(p, row) * S + by_stride_w.remainder(q, column);
    return {image + window * layout.pixel, image + window * K, position, 0};
  }

  template <int V>
  __device__ Vector<T, V> load(const Pixel& pixel, int k) const {
    Vector<T, V> result = Vector<T, V>::zero();
    if (!pixel.exists()) return result;
    if (touching) {
      const auto at = load_vector<V>(argmax + pixel.argmax + k);
      const auto value = load_vector<V>(g + pixel.g + k * layout.channel);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (at.values[v] == pixel.p) result.values[v] = value.values[v];
      }
      return result;
    }
    return sum_of_windows<V>(pixel, k);
  }

 private:
  // Adds up the gradients of the windows that contain the pixel, in order. Windows begin at most (R - 1) * dilation
  // before it.
  template <int V>
  __device__ Vector<T, V> sum_of_windows(const Pixel& pixel, int k) const {
    Accumulator<T> sums[V] = {};
    const int last_row = by_stride_h.divide(pixel.p), last_column = by_stride_w.divide(pixel.q);
    const int first_row = first_window(pixel.p, (R - 1) * dilation_h, by_stride_h);
    const int first_column = first_window(pixel.q, (S - 1) * dilation_w, by_stride_w);
    for (int row = first_row; row <= last_row && row < P; ++row) {
      const int from_h = pixel.p - row * stride_h, i = by_dilation_h.divide(from_h);
      if (i * dilation_h != from_h) continue;
      for (int column = first_column; column <= last_column && column < Q; ++column) {
        const int from_w = pixel.q - column * stride_w, j = by_dilation_w.divide(from_w);
        if (j * dilation_w != from_w) continue;
        const int64_t window = static_cast<int64_t>(row) * Q + column;
        const auto at = load_vector<V>(argmax + pixel.argmax + window * K + k);
        const auto value = load_vector<V>(g + pixel.g + window * layout.pixel + k * layout.channel);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (at.values[v] == i * S + j) sums[v] += static_cast<Accumulator<T>>(value.values[v]);
        }
      }
    }
    Vector<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.values[v] = static_cast<T>(sums[v]);
    return result;
  }

  __device__ static int first_window(int pixel, int reach, const Divisor& by_stride) {
    return pixel > reach ? by_stride.divide(pixel - reach - 1) + 1 : 0;
  }
};

}  // namespace fastconv::cuda
