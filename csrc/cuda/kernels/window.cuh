// The pooling windows of a fused convolution: their pixels, and their maximum after ReLU.
#pragma once

#include "../../shapes.h"
#include "divisor.cuh"
#include "layout.cuh"

namespace fastconv::cuda {

// The output pixels of a convolution, in the order of the pooling windows. Without pooling, a window has one pixel.
struct Windows : Geometry {
  int P, Q, S, positions;
  int64_t count;
  Divisor by_positions, by_S, by_image, by_row;

  explicit Windows(const Pool2dShape& s)
      : Geometry(s),
        P(s.H),
        Q(s.W),
        S(s.S),
        positions(s.R * s.S),
        count(s.N * s.P * s.Q),
        by_positions(s.R * s.S),
        by_S(s.S),
        by_image(s.P * s.Q),
        by_row(s.Q) {}

  // p is negative if the position is outside of the image.
  struct Pixel {
    int n, p, q;
  };

  __device__ Pixel pixel(int64_t window, int position) const {
    const auto n = by_image.divide(window);
    const auto in_image = by_image.remainder(window, n);
    const auto row = by_row.divide(in_image);
    const int column = by_row.remainder(in_image, row), i = by_S.divide(position);
    const int p = row * stride_h - pad_h + i * dilation_h;
    const int q = column * stride_w - pad_w + by_S.remainder(position, i) * dilation_w;
    const bool inside = p >= 0 && p < P && q >= 0 && q < Q;
    return {static_cast<int>(n), inside ? p : -1, q};
  }
};

// ReLU and max-pooling of one window, by the rules of csrc/cpu/kernels/pooling_epilogue.h: the first maximum wins, but
// the last NaN wins over every number. A maximum that is not above zero gets no gradient.
template <class T>
struct WindowMax {
  T value = T(-static_cast<float>(INFINITY));
  int at = 0;
  bool empty = true;

  // Compares values that are already rounded to T, as separate operators would. Sums that round to the same T tie.
  __device__ void take(T next, int position) {
    const auto number = static_cast<Accumulator<T>>(next);
    if (number > static_cast<Accumulator<T>>(value) || number != number) value = next, at = position;
    empty = false;
  }

  // A window entirely in the padding is empty. Its value stays -inf, without ReLU.
  __device__ T above_zero() const { return is_dead() && !empty ? T(0.0f) : value; }

  __device__ uint8_t place() const { return is_dead() ? no_gradient : static_cast<uint8_t>(at); }

 private:
  __device__ bool is_dead() const { return static_cast<Accumulator<T>>(value) <= Accumulator<T>(0); }
};

}  // namespace fastconv::cuda
