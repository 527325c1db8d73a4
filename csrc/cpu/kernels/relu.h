// y = x < 0 ? 0 : x, so NaN and -0.0 pass; dx = y <= 0 ? 0 : g, so the gradient at 0 is 0 and at NaN is g.
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL {

// x and y may be the same.
template <class T>
void relu(const T* x, T* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] < T(0) ? T(0) : x[i];
}

template <class T>
void relu_backward(const T* __restrict__ g, const T* __restrict__ y, T* __restrict__ dx, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dx[i] = y[i] <= T(0) ? T(0) : g[i];
}

}  // namespace fastconv::FC_LEVEL
