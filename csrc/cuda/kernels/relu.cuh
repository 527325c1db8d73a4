// y = x < 0 ? 0 : x, so NaN and -0.0 are kept. dx = y <= 0 ? 0 : g, so the gradient is 0 at 0 and g at NaN.
//
// Memory bandwidth limits the speed. A thread reads 16 bytes at once, in a grid-stride loop. Elements that do not fill
// 16 bytes, and misaligned data, are computed one by one.
#pragma once

#include "layout.cuh"

namespace fastconv::cuda {

// Enough blocks to fill any GPU. Larger data give each thread several vectors.
constexpr int64_t most_blocks = 4096;
constexpr int relu_threads = 256;

struct Relu {
  template <class T>
  __device__ T operator()(T x) const {
    return static_cast<Accumulator<T>>(x) < Accumulator<T>(0) ? T(0.0f) : x;
  }
};

struct ReluBackward {
  template <class T>
  __device__ T operator()(T g, T y) const {
    return static_cast<Accumulator<T>>(y) <= Accumulator<T>(0) ? T(0.0f) : g;
  }
};

// to[i] = f(from[i]...), V elements at once. `to` may be one of `from`.
template <int V, class F, class T, class... From>
__global__ void __launch_bounds__(relu_threads) elementwise(F f, T* to, int64_t count, const From*... from) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < count; i += step) {
    if (i + V <= count) {
      const auto apply = [&](auto... vectors) {
        Vector<T, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) result.values[v] = f(vectors.values[v]...);
        return result;
      };
      *reinterpret_cast<Vector<T, V>*>(to + i) = apply(load_vector<V>(from + i)...);
    } else {
      for (int64_t j = i; j < count; ++j) to[j] = f(from[j]...);
    }
  }
}

template <class F, class T, class... From>
void launch_elementwise(F f, T* to, int64_t count, Stream stream, const From*... from) {
  if (count == 0) return;
  const auto blocks = [&](int64_t at_once) {
    const int64_t wanted = ceil_div(count, relu_threads * at_once);
    return dim3(static_cast<unsigned>(wanted < most_blocks ? wanted : most_blocks));
  };
  constexpr int width = widest_vector<T>;
  if (is_aligned<width>(to) && (is_aligned<width>(from) && ...)) {
    FC_LAUNCH((elementwise<width, F, T, From...>), blocks(width), dim3(relu_threads), stream, f, to, count, from...);
  } else {
    FC_LAUNCH((elementwise<1, F, T, From...>), blocks(1), dim3(relu_threads), stream, f, to, count, from...);
  }
}

// x and y may be the same.
template <class T>
void launch_relu(const T* x, T* y, int64_t count, Stream stream) {
  launch_elementwise(Relu{}, y, count, stream, x);
}

template <class T>
void launch_relu_backward(const T* g, const T* y, T* dx, int64_t count, Stream stream) {
  launch_elementwise(ReluBackward{}, dx, count, stream, g, y);
}

}  // namespace fastconv::cuda
