// The end of a fused convolution, window by window, by the rules of csrc/cpu/kernels/pooling_epilogue.h: the first
// maximum wins; a NaN wins over every number, the last of several; what is not above zero gets no gradient.
#pragma once

#include "../../shapes.h"
#include "layout.cuh"

namespace fastconv::cuda {

template <class T>
struct WindowMax {
  T value = T(-static_cast<float>(INFINITY));
  int at = 0;
  bool empty = true;

  // Compares what would have been written: sums that are rounded to the same T tie.
  __device__ void take(T next, int position) {
    const auto number = static_cast<Accumulator<T>>(next);
    if (number > static_cast<Accumulator<T>>(value) || number != number) value = next, at = position;
    empty = false;
  }

  // A window wholly in the padding saw nothing, not even ReLU.
  __device__ T above_zero() const { return is_dead() && !empty ? T(0.0f) : value; }

  __device__ uint8_t place() const { return is_dead() ? no_gradient : static_cast<uint8_t>(at); }

 private:
  __device__ bool is_dead() const { return static_cast<Accumulator<T>>(value) <= Accumulator<T>(0); }
};

}  // namespace fastconv::cuda
