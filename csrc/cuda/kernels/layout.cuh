// The memory layout of a dense tensor, and vectors of elements that a thread reads at once.
#pragma once

#include "platform.cuh"

namespace fastconv::cuda {

// Strides in elements: of the image n, of the pixel h * W + w, and of the channel c. For a weight: of the output
// channel k, of r * S + s, and of the input channel c.
struct Layout {
  int64_t outer, pixel, channel;

  static Layout of(int64_t channels, int64_t pixels, bool channels_last) {
    return channels_last ? Layout{channels * pixels, channels, 1} : Layout{channels * pixels, 1, pixels};
  }
};

// The stride, padding and dilation of a convolution or a pool.
struct Geometry {
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  template <class Shape>
  explicit Geometry(const Shape& s) {
    stride_h = s.stride_h, stride_w = s.stride_w;
    pad_h = s.pad_h, pad_w = s.pad_w;
    dilation_h = s.dilation_h, dilation_w = s.dilation_w;
  }
};

// A dense tensor: NHWC (channels_last) or NCHW. For a weight: KRSC or KCRS.
template <class T>
struct Dense {
  T* data;
  bool channels_last;
};

// V neighbours in memory, read and written together.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T values[V];

  __device__ static Vector zero() {
    Vector result;
    for (int v = 0; v < V; ++v) result.values[v] = T(0.0f);
    return result;
  }
};

template <int V, class T>
__device__ Vector<T, V> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <int V, class T>
__device__ Vector<T, V> load_or_zero(const T* from) {
  return from != nullptr ? load_vector<V>(from) : Vector<T, V>::zero();
}

// Returns whether load_vector<V> can read at the pointer.
template <int V, class T>
bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Vector<T, V>) == 0;
}

// A thread reads at most 16 bytes at once.
template <class T>
constexpr int widest_vector = 16 / sizeof(T);

// The type of sums.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace fastconv::cuda
