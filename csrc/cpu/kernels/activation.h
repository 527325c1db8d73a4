// The activations that follow a convolution or a batch norm, on one vector. They have PyTorch's values: a NaN stays
// NaN.
#pragma once

#include "operands.h"
#include "simd_masks.h"

namespace fastconv::FC_LEVEL {

template <class T>
FC_INLINE Vec<T> broadcast(T value) {
  return Vec<T>{} + value;
}

// min(max(value, 0), most).
template <class T>
FC_INLINE Vec<T> clamp_from_zero(Vec<T> value, T most) {
  const Vec<T> above = zero_or_above<T>(value);
  return above > most ? broadcast(most) : above;
}

// exp(x) of float, within 2 units in the last place (Cody and Waite's reduction, then a polynomial of degree 6). Below
// -87 it returns exp(-87), and between 88 and 88.72 exp(88). That is exact enough for 1 / (1 + exp(x)).
FC_INLINE Vec<float> exp_of(Vec<float> x) {
  const Vec<float> given = x;
  x = x > 88.0f ? broadcast(88.0f) : x;
  x = x < -87.0f ? broadcast(-87.0f) : x;
  constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x * 1.44269504f + shifter, n = shifted - shifter;
  const Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> sum = broadcast(1.9875691500e-4f);
  sum = sum * r + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  sum = sum * r * r + r + 1.0f;
  const Vec<int32_t> exponent = ((Vec<int32_t>)shifted - 0x4b400000) << 23;
  const auto result = (Vec<float>)((Vec<int32_t>)sum + exponent);
  return given > 88.72f ? broadcast(__builtin_inff()) : result;
}

// The function for long double, because exp() would need glibc 2.29, and wheels need only 2.28.
FC_INLINE Vec<double> exp_of(Vec<double> x) {
  Vec<double> result;
  for (int i = 0; i < lanes<double>; ++i) result[i] = static_cast<double>(__builtin_expl(x[i]));
  return result;
}

template <Activation activation, class T>
FC_INLINE Vec<T> activate(Vec<T> x, T slope) {
  if constexpr (activation == Activation::relu) return zero_or_above<T>(x);
  if constexpr (activation == Activation::relu6) return clamp_from_zero<T>(x, T(6));
  if constexpr (activation == Activation::leaky_relu) return x > T(0) ? x : x * slope;
  if constexpr (activation == Activation::hardswish) return x * clamp_from_zero<T>(x + T(3), T(6)) / T(6);
  if constexpr (activation == Activation::silu) return x / (T(1) + exp_of(-x));
  return x;
}

// Whether the gradient passes where an activation returned y: true for NaN, as in PyTorch.
template <Activation activation, class T>
FC_INLINE Vec<T> masked_gradient(Vec<T> g, Vec<T> y) {
  if constexpr (activation == Activation::relu) return select<T>(not_above_zero<T>(y), Vec<T>{}, g);
  if constexpr (activation == Activation::relu6) {
    const Vec<T> below = select<T>(not_above_zero<T>(y), Vec<T>{}, g);
    return y >= T(6) ? Vec<T>{} : below;
  }
  return g;
}

// Calls run(Tag) with the activation as a constant: decltype(tag)::value.
template <Activation activation>
struct ActivationTag {
  static constexpr Activation value = activation;
};

template <class Run>
FC_INLINE void dispatch_activation(Activation activation, const Run& run) {
  switch (activation) {
    case Activation::none:
      return run(ActivationTag<Activation::none>{});
    case Activation::relu:
      return run(ActivationTag<Activation::relu>{});
    case Activation::relu6:
      return run(ActivationTag<Activation::relu6>{});
    case Activation::leaky_relu:
      return run(ActivationTag<Activation::leaky_relu>{});
    case Activation::hardswish:
      return run(ActivationTag<Activation::hardswish>{});
    case Activation::silu:
      return run(ActivationTag<Activation::silu>{});
  }
}

}  // namespace fastconv::FC_LEVEL
