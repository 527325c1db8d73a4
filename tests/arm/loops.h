// The reference: convolution, pooling and their gradients as plain loops in double. Also random tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "shapes.h"
#include "tensor.h"

namespace arm {

using namespace fastconv;

// A dense (N, C, H, W) array of doubles.
struct Image {
  int64_t N, C, H, W;
  std::vector<double> values;

  Image(int64_t N, int64_t C, int64_t H, int64_t W)
      : N(N), C(C), H(H), W(W), values(static_cast<size_t>(N * C * H * W)) {}
  size_t at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return static_cast<size_t>(((n * C + c) * H + h) * W + w);
  }
  double operator()(int64_t n, int64_t c, int64_t h, int64_t w) const { return values[at(n, c, h, w)]; }
  double& operator()(int64_t n, int64_t c, int64_t h, int64_t w) { return values[at(n, c, h, w)]; }
  template <class F>
  void each(F visit) const {
    for (int64_t n = 0; n < N; ++n)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t w = 0; w < W; ++w) visit(n, c, h, w);
  }
};

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? HUGE_VAL
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

inline double bfloat16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Reads an element. A tensor of one dimension counts as (1, size, 1, 1).
inline double get(const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t at = t.dim() == 1 ? c : n * t.stride(0) + c * t.stride(1) + h * t.stride(2) + w * t.stride(3);
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return data<float>(t)[at];
    case ScalarType::Double:
      return data<double>(t)[at];
    case ScalarType::Half:
      return half_value(data<uint16_t>(t)[at]);
    case ScalarType::BFloat16:
      return bfloat16_value(data<uint16_t>(t)[at]);
    case ScalarType::Char:
      return data<int8_t>(t)[at];
    case ScalarType::Byte:
      return data<uint8_t>(t)[at];
    case ScalarType::Short:
      return data<int16_t>(t)[at];
    case ScalarType::Int:
      return data<int32_t>(t)[at];
    default:
      return static_cast<double>(data<int64_t>(t)[at]);
  }
}

inline Image image_of(const Tensor& t) {
  Image image = t.dim() == 1 ? Image(1, t.size(0), 1, 1) : Image(t.size(0), t.size(1), t.size(2), t.size(3));
  image.each([&](int64_t n, int64_t c, int64_t h, int64_t w) { image(n, c, h, w) = get(t, n, c, h, w); });
  return image;
}

inline uint32_t next_random() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 33);
}

inline Tensor uninitialised(const Ints& sizes, ScalarType type, bool channels_last) {
  AtenTensorHandle handle = nullptr;
  const int64_t one = 1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &one, &one, aoti_torch_dtype_float32(), 0, -1, &handle));
  return empty(sizes, Tensor(handle), channels_last && sizes.size() == 4, type);
}

// Fills the memory of a dense tensor with next().
template <class F>
Tensor filled(const Ints& sizes, ScalarType type, bool channels_last, F next) {
  const Tensor t = uninitialised(sizes, type, channels_last);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const double value = next();
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    switch (type) {
      case ScalarType::Float:
        mutable_data<float>(t)[i] = narrow;
        break;
      case ScalarType::Double:
        mutable_data<double>(t)[i] = value;
        break;
      case ScalarType::Half:  // truncates to a normal number; small values become 0
        mutable_data<uint16_t>(t)[i] =
            std::abs(value) < 1e-3
                ? uint16_t{0}
                : static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits >> 13) - (112 << 10)) % 0x8000);
        break;
      case ScalarType::BFloat16:
        mutable_data<uint16_t>(t)[i] = static_cast<uint16_t>(bits >> 16);
        break;
      case ScalarType::Char:
        mutable_data<int8_t>(t)[i] = static_cast<int8_t>(value);
        break;
      case ScalarType::Byte:
        mutable_data<uint8_t>(t)[i] = static_cast<uint8_t>(std::abs(value));
        break;
      case ScalarType::Short:
        mutable_data<int16_t>(t)[i] = static_cast<int16_t>(value);
        break;
      case ScalarType::Int:
        mutable_data<int32_t>(t)[i] = static_cast<int32_t>(value);
        break;
      default:
        mutable_data<int64_t>(t)[i] = static_cast<int64_t>(value);
    }
  }
  return t;
}

// Values in (-1, 1). A share of them is not zero.
inline Tensor random(const Ints& sizes, ScalarType type, bool channels_last, double nonzero = 1) {
  return filled(sizes, type, channels_last, [&] {
    const bool kept = next_random() % 1000 < 1000 * nonzero;
    const double value = static_cast<double>(next_random()) / (1u << 30) - 1;
    return kept ? value : 0;
  });
}

inline Tensor integers(const Ints& sizes, ScalarType type, bool channels_last) {
  return filled(sizes, type, channels_last, [] { return static_cast<double>(next_random() % 9) - 4; });
}

// Calls visit(n, k, p, q, c, h, w, r, s) for each product of a convolution: c is the channel of the input.
template <class F>
void products(const Conv2dShape& s, F visit) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t p = 0; p < s.P; ++p)
        for (int64_t q = 0; q < s.Q; ++q)
          for (int64_t r = 0; r < s.R; ++r)
            for (int64_t t = 0; t < s.S; ++t) {
              const int64_t h = p * s.stride_h - s.pad_h + r * s.dilation_h;
              const int64_t w = q * s.stride_w - s.pad_w + t * s.dilation_w;
              if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
              const int64_t first = k / s.group_K() * s.group_C();
              for (int64_t c = 0; c < s.group_C(); ++c) visit(n, k, p, q, c, first + c, h, w, r, t);
            }
}

inline Image convolution(const Conv2dShape& s, const Tensor& x, const Tensor& w, const Tensor& b) {
  const Image from = image_of(x), weight = image_of(w);
  Image y(s.N, s.K, s.P, s.Q);
  y.each([&](int64_t n, int64_t k, int64_t p, int64_t q) { y(n, k, p, q) = get(b, 0, k, 0, 0); });
  products(s, [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t channel, int64_t h, int64_t column,
                  int64_t r, int64_t t) { y(n, k, p, q) += from(n, channel, h, column) * weight(k, c, r, t); });
  return y;
}

inline Image input_gradient(const Conv2dShape& s, const Image& g, const Tensor& w) {
  const Image weight = image_of(w);
  Image dx(s.N, s.C, s.H, s.W);
  products(s, [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t channel, int64_t h, int64_t column,
                  int64_t r, int64_t t) { dx(n, channel, h, column) += g(n, k, p, q) * weight(k, c, r, t); });
  return dx;
}

inline Image weight_gradient(const Conv2dShape& s, const Image& g, const Tensor& x) {
  const Image from = image_of(x);
  Image dw(s.K, s.group_C(), s.R, s.S);
  products(s, [&](int64_t n, int64_t k, int64_t p, int64_t q, int64_t c, int64_t channel, int64_t h, int64_t column,
                  int64_t r, int64_t t) { dw(k, c, r, t) += g(n, k, p, q) * from(n, channel, h, column); });
  return dw;
}

inline Image bias_gradient(const Image& g) {
  Image db(1, g.C, 1, 1);
  g.each([&](int64_t n, int64_t k, int64_t p, int64_t q) { db(0, k, 0, 0) += g(n, k, p, q); });
  return db;
}

// The maxima of the windows, and their positions h * W + w: the first one of equal values.
inline std::pair<Image, Image> pooled(const Pool2dShape& s, const Image& x) {
  Image maxima(s.N, s.C, s.P, s.Q), positions = maxima;
  maxima.each([&](int64_t n, int64_t c, int64_t p, int64_t q) {
    double best = -HUGE_VAL;
    for (int64_t r = 0; r < s.R; ++r)
      for (int64_t t = 0; t < s.S; ++t) {
        const int64_t h = p * s.stride_h - s.pad_h + r * s.dilation_h, w = q * s.stride_w - s.pad_w + t * s.dilation_w;
        if (h < 0 || h >= s.H || w < 0 || w >= s.W || x(n, c, h, w) <= best) continue;
        best = x(n, c, h, w);
        positions(n, c, p, q) = static_cast<double>(h * s.W + w);
      }
    maxima(n, c, p, q) = best;
  });
  return {maxima, positions};
}

inline Image rectified_maxima(const Pool2dShape& s, const Image& x) {
  Image result = pooled(s, x).first;
  for (double& value : result.values) value = std::max(value, 0.0);
  return result;
}

// The values of x at the positions that argmax names, or 0 for no_gradient. Windows are inside the image.
inline Image picked(const Pool2dShape& s, const Image& x, const Tensor& argmax) {
  Image result(s.N, s.C, s.P, s.Q);
  result.each([&](int64_t n, int64_t c, int64_t p, int64_t q) {
    const auto at = static_cast<int64_t>(get(argmax, n, c, p, q));
    if (at != no_gradient) result(n, c, p, q) = x(n, c, p * s.stride_h + at / s.S, q * s.stride_w + at % s.S);
  });
  return result;
}

inline Image unpooled(const Pool2dShape& s, const Tensor& g, const Tensor& argmax) {
  Image result(s.N, s.C, s.H, s.W);
  image_of(g).each([&](int64_t n, int64_t c, int64_t p, int64_t q) {
    const auto at = static_cast<int64_t>(get(argmax, n, c, p, q));
    if (at != no_gradient) result(n, c, p * s.stride_h + at / s.S, q * s.stride_w + at % s.S) += get(g, n, c, p, q);
  });
  return result;
}

inline Image scattered(const Pool2dShape& s, const Tensor& g, const Image& positions) {
  Image result(s.N, s.C, s.H, s.W);
  positions.each([&](int64_t n, int64_t c, int64_t p, int64_t q) {
    const auto at = static_cast<int64_t>(positions(n, c, p, q));
    result(n, c, at / s.W, at % s.W) += get(g, n, c, p, q);
  });
  return result;
}

inline Image passed(const Tensor& g, const Tensor& y) {
  Image result = image_of(g);
  result.each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
    if (get(y, n, c, h, w) <= 0) result(n, c, h, w) = 0;
  });
  return result;
}

}  // namespace arm
