// ReLU and max-pooling of one window, by the rules of csrc/cpu/kernels/pooling_epilogue.h: the first maximum wins, but
// the last NaN wins over every number. A maximum that is not above zero gets no gradient.
#pragma once

#include "../../shapes.h"
#include "layout.cuh"

namespace fastconv::cuda {

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
