// The one-dimensional transforms of Winograd's algorithm, F(m, 3) (winograd.h). B' transforms m + 2 pixels d, and G
// transforms three taps g. A' transforms the products of both to m outputs.
//
// They evaluate polynomials at points and interpolate. F(2, 3) has the points 0, 1, -1 and infinity. F(4, 3) has 0, a,
// -a, b, -b and infinity, in this order. F(3, 3) has these except 0. a = 5/8 and b = 3/2 are exact in binary.
//
// In a simulation of one F(4, 3) tile in float32 with 64 channels, the root mean square error with these points is 1.1
// to 1.2 times PyTorch's. With 0, +-1 and +-2, it is 2.5 to 2.7 times PyTorch's. If the sum over c is not split into
// sums of 16, the two factors are 1.7 to 1.9 and 3.9 to 4.0. (Points: Barabasz et al., "Error Analysis and Improving
// the Accuracy of Winograd Convolution for Deep Neural Networks", arXiv 1803.10986.)
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL::winograd {

// The number of pixels, and of multiplications, along one side of a tile of m outputs.
template <int m>
constexpr int pixels = m + 2;

template <class T>
struct Points {
  static constexpr T a = T(0.625), b = T(1.5), a2 = a * a, b2 = b * b;
};

// Transforms four neighbouring pixels to the values at the points a, -a, b and -b.
template <class T>
FC_INLINE void transform_middle(Vec<T> (&d)[4]) {
  const Vec<T> even_a = d[2] - Points<T>::b2 * d[0], odd_a = d[3] - Points<T>::b2 * d[1];
  const Vec<T> even_b = d[2] - Points<T>::a2 * d[0], odd_b = d[3] - Points<T>::a2 * d[1];
  d[0] = odd_a + Points<T>::a * even_a;
  d[1] = odd_a - Points<T>::a * even_a;
  d[2] = odd_b + Points<T>::b * even_b;
  d[3] = odd_b - Points<T>::b * even_b;
}

// The value at the point 0 or infinity, with the coefficients of (x^2 - a^2) (x^2 - b^2).
template <class T>
FC_INLINE Vec<T> transform_end(Vec<T> d0, Vec<T> d2, Vec<T> d4) {
  return d4 - (Points<T>::a2 + Points<T>::b2) * d2 + (Points<T>::a2 * Points<T>::b2) * d0;
}

// B' d
template <class T, int m>
FC_INLINE void transform_input(Vec<T> (&d)[m + 2]) {
  if constexpr (m == 2) {
    const Vec<T> sum = d[1] + d[2], difference = d[2] - d[1];
    d[0] = d[0] - d[2];
    d[3] = d[1] - d[3];
    d[1] = sum;
    d[2] = difference;
  } else if constexpr (m > 2) {
    constexpr int first = m - 3;
    const Vec<T> zero = transform_end<T>(d[0], d[2], d[4]);
    const Vec<T> infinity = transform_end<T>(d[first], d[first + 2], d[first + 4]);
    Vec<T> middle[4] = {d[first], d[first + 1], d[first + 2], d[first + 3]};
    transform_middle<T>(middle);
    if constexpr (m == 4) d[0] = zero;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) d[first + i] = middle[i];
    d[m + 1] = infinity;
  }
}

// The factors of G. F(4, 3) divides the values at the points a and -a by 2 a^2 (a^2 - b^2). F(3, 3) divides the value
// at a by 2 a (a^2 - b^2), and the value at -a by the negative of that. For b and -b, exchange a and b.
template <class T, int m>
struct WeightScale {
  static constexpr T half = 1 / (2 * (Points<T>::a2 - Points<T>::b2));
  static constexpr T a = m == 4 ? half / Points<T>::a2 : half / Points<T>::a;
  static constexpr T b = m == 4 ? -half / Points<T>::b2 : -half / Points<T>::b;
  static constexpr T zero = 1 / (Points<T>::a2 * Points<T>::b2);
  static constexpr T sign = m == 4 ? 1 : -1;
};

// G g
template <class T, int m>
FC_INLINE void transform_weight(Vec<T> g0, Vec<T> g1, Vec<T> g2, Vec<T> (&u)[m + 2]) {
  u[0] = g0;
  u[m + 1] = g2;
  if constexpr (m == 1) {
    u[1] = g1;
  } else if constexpr (m == 2) {
    const Vec<T> outer = g0 + g2;
    u[1] = (outer + g1) * T(0.5);
    u[2] = (outer - g1) * T(0.5);
  } else {
    using Scale = WeightScale<T, m>;
    constexpr int first = m - 3;
    const Vec<T> outer_a = (g0 + Points<T>::a2 * g2) * Scale::a, outer_b = (g0 + Points<T>::b2 * g2) * Scale::b;
    if constexpr (m == 4) u[0] = g0 * Scale::zero;
    u[first] = outer_a + (Points<T>::a * Scale::a) * g1;
    u[first + 1] = Scale::sign * (outer_a - (Points<T>::a * Scale::a) * g1);
    u[first + 2] = outer_b + (Points<T>::b * Scale::b) * g1;
    u[first + 3] = Scale::sign * (outer_b - (Points<T>::b * Scale::b) * g1);
  }
}

// G' u, which transposes transform_weight: the gradient of g from that of the transformed weight.
template <class T, int m>
FC_INLINE void transform_weight_gradient(const Vec<T> (&u)[m + 2], Vec<T> (&g)[3]) {
  if constexpr (m == 1) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) g[i] = u[i];
  } else if constexpr (m == 2) {
    const Vec<T> even = (u[1] + u[2]) * T(0.5);
    g[0] = u[0] + even;
    g[1] = (u[1] - u[2]) * T(0.5);
    g[2] = u[3] + even;
  } else {
    using Scale = WeightScale<T, m>;
    constexpr int first = m - 3;
    const Vec<T> minus_a = Scale::sign * u[first + 1], minus_b = Scale::sign * u[first + 3];
    const Vec<T> even_a = (u[first] + minus_a) * Scale::a, even_b = (u[first + 2] + minus_b) * Scale::b;
    g[0] = even_a + even_b;
    if constexpr (m == 4) g[0] += u[0] * Scale::zero;
    g[1] = (u[first] - minus_a) * (Points<T>::a * Scale::a) + (u[first + 2] - minus_b) * (Points<T>::b * Scale::b);
    g[2] = Points<T>::a2 * even_a + Points<T>::b2 * even_b + u[m + 1];
  }
}

// A' m, where at(i) gives m[i].
template <class T, int m, class At>
FC_INLINE void transform_output(Vec<T> (&y)[m], At at) {
  if constexpr (m == 1) {
    y[0] = at(0) + at(1) + at(2);
  } else if constexpr (m == 2) {
    const Vec<T> m1 = at(1), m2 = at(2);
    y[0] = at(0) + m1 + m2;
    y[1] = m1 - m2 - at(3);
  } else {
    constexpr int first = m - 3;
    const Vec<T> m0 = at(first), m1 = at(first + 1), m2 = at(first + 2), m3 = at(first + 3);
    const Vec<T> even_a = m0 + m1, odd_a = m0 - m1, even_b = m2 + m3, odd_b = m2 - m3;
    y[0] = even_a + even_b;
    if constexpr (m == 4) y[0] += at(0);
    y[1] = Points<T>::a * odd_a + Points<T>::b * odd_b;
    y[2] = Points<T>::a2 * even_a + Points<T>::b2 * even_b;
    if constexpr (m == 4) y[3] = (Points<T>::a * Points<T>::a2) * odd_a + (Points<T>::b * Points<T>::b2) * odd_b;
    y[m - 1] += at(m + 1);
  }
}

// A g, which transposes transform_output: m values of the gradient of y to m + 2.
template <class T, int m>
FC_INLINE void transform_gradient(const Vec<T> (&g)[m], Vec<T> (&u)[m + 2]) {
  if constexpr (m == 1) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) u[i] = g[0];
  } else if constexpr (m == 2) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[0] - g[1];
    u[3] = -g[1];
  } else {
    constexpr int first = m - 3;
    const Vec<T> even_a = g[0] + Points<T>::a2 * g[2], even_b = g[0] + Points<T>::b2 * g[2];
    Vec<T> odd_a = Points<T>::a * g[1], odd_b = Points<T>::b * g[1];
    if constexpr (m == 4) {
      odd_a += (Points<T>::a * Points<T>::a2) * g[3], odd_b += (Points<T>::b * Points<T>::b2) * g[3];
      u[0] = g[0];
    }
    u[first] = even_a + odd_a;
    u[first + 1] = even_a - odd_a;
    u[first + 2] = even_b + odd_b;
    u[first + 3] = even_b - odd_b;
    u[m + 1] = g[m - 1];
  }
}

}  // namespace fastconv::FC_LEVEL::winograd
