// The one-dimensional transforms of Winograd's algorithm, F(m, 3) (winograd.h). B' transforms m + 2 pixels d, and G
// transforms three taps g. A' transforms the products of both to m outputs.
//
// They evaluate polynomials at points and interpolate. F(2, 3) has the points 0, 1, -1 and infinity. F(4, 3) has 0, a,
// -a, b, -b and infinity, in this order. F(3, 3) has these except 0. a = 5/8 and b = 3/2 are exact in binary.
//
// Measured in a simulation of one F(4, 3) tile in float32 with 64 channels: the root mean square error is 1.1 to 1.2
// times PyTorch's with these points, and 2.5 to 2.7 times with 0, +-1, +-2. If the sum over c is not split into sums of
// 16, these factors are 1.7 to 1.9 and 3.9 to 4.0. (Points: Barabasz et al., "Error Analysis and Improving the Accuracy
// of Winograd Convolution for Deep Neural Networks", arXiv 1803.10986.)
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
    constexpr int first = m - 3;
    constexpr T scale = 1 / (2 * (Points<T>::a2 - Points<T>::b2));
    // F(4, 3) divides the values at the points a and -a by 2 a^2 (a^2 - b^2). F(3, 3) divides the value at a by
    // 2 a (a^2 - b^2), and the value at -a by the negative of that. For b and -b, exchange a and b.
    constexpr T scale_a = m == 4 ? scale / Points<T>::a2 : scale / Points<T>::a,
                scale_b = m == 4 ? -scale / Points<T>::b2 : -scale / Points<T>::b;
    constexpr T sign = m == 4 ? 1 : -1;
    const Vec<T> outer_a = (g0 + Points<T>::a2 * g2) * scale_a, outer_b = (g0 + Points<T>::b2 * g2) * scale_b;
    if constexpr (m == 4) u[0] = g0 * (1 / (Points<T>::a2 * Points<T>::b2));
    u[first] = outer_a + (Points<T>::a * scale_a) * g1;
    u[first + 1] = sign * (outer_a - (Points<T>::a * scale_a) * g1);
    u[first + 2] = outer_b + (Points<T>::b * scale_b) * g1;
    u[first + 3] = sign * (outer_b - (Points<T>::b * scale_b) * g1);
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

}  // namespace fastconv::FC_LEVEL::winograd
