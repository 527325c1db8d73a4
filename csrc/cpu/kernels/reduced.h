// The 16-bit types bfloat16 and half. Kernels compute in float32. Conversion from 16 bits is exact. Conversion to 16
// bits rounds to nearest, ties to even. ReLU needs no conversion: it tests the bits.
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL::reduced {

// The upper half of a float32.
struct Bfloat16 {
  static constexpr uint16_t infinity = 0x7f80;

  static FC_INLINE float widen(uint16_t value) { return __builtin_bit_cast(float, static_cast<uint32_t>(value) << 16); }

  static FC_INLINE uint16_t round(float value) {
    const auto bits = __builtin_bit_cast(uint32_t, value);
    const auto rounded = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return value != value ? static_cast<uint16_t>(bits >> 16 | 0x40) : rounded;  // a NaN becomes a quiet NaN
  }
};

// Conversions by integer arithmetic, because g++ 11 and clang 14 have no _Float16 on x86-64. The compiler vectorizes
// them. They give the results of the conversion instructions, so a NaN becomes a quiet NaN.
struct Half {
  static constexpr uint16_t infinity = 0x7c00;

#if defined(__aarch64__)
  static FC_INLINE float widen(uint16_t value) { return __builtin_bit_cast(__fp16, value); }
  static FC_INLINE uint16_t round(float value) { return __builtin_bit_cast(uint16_t, static_cast<__fp16>(value)); }
#else
  static FC_INLINE float widen(uint16_t value) {
    const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(value & 0x7fff) << 13;
    const uint32_t smallest = 113u << 23;  // 2^-14, the smallest normal number of half
    const float subnormal = __builtin_bit_cast(float, magnitude + smallest) - __builtin_bit_cast(float, smallest);
    uint32_t bits = magnitude + (112u << 23);  // the exponent's bias is 15 in half, 127 in float32
    bits = magnitude < 1u << 23 ? __builtin_bit_cast(uint32_t, subnormal) : bits;
    bits = magnitude >= 31u << 23 ? bits + (112u << 23) : bits;  // infinity and NaN
    bits = magnitude > 31u << 23 ? bits | 1u << 22 : bits;
    return __builtin_bit_cast(float, bits | sign);
  }

  static FC_INLINE uint16_t round(float value) {
    const auto bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t magnitude = bits & 0x7fffffff;
    // The addition rounds: in 0.5 + x, the last bit of the mantissa is 2^-24, as in half's subnormal numbers.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - (126u << 23);
    const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t result = magnitude < 113u << 23 ? subnormal : normal;
    result = magnitude >= 143u << 23 ? uint32_t{infinity} : result;  // 2^16 or more
    result = magnitude > 255u << 23 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : result;
    return static_cast<uint16_t>(result | (bits >> 16 & 0x8000));
  }
#endif
};

// The number of elements that one intrinsic converts, or 0 for a plain loop.
template <class Format>
constexpr int64_t at_once = 0;
#if FC_VECTOR_BYTES == 64
template <>
constexpr int64_t at_once<Half> = 16;
FC_INLINE void widen_at_once(const uint16_t* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(0xffff, halves));
}
FC_INLINE void round_at_once(const float* from, uint16_t* to) {
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
#elif FC_VECTOR_BYTES == 32
template <>
constexpr int64_t at_once<Half> = 8;
FC_INLINE void widen_at_once(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
FC_INLINE void round_at_once(const float* from, uint16_t* to) {
  const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}
#else
FC_INLINE void widen_at_once(const uint16_t*, float*) {}
FC_INLINE void round_at_once(const float*, uint16_t*) {}
#endif

template <class Format>
void widen(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
  if constexpr (at_once<Format> > 0) {
    for (; i + at_once<Format> <= count; i += at_once<Format>) widen_at_once(from + i, to + i);
  }
  for (; i < count; ++i) to[i] = Format::widen(from[i]);
}

template <class Format>
void round(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
  if constexpr (at_once<Format> > 0) {
    for (; i + at_once<Format> <= count; i += at_once<Format>) round_at_once(from + i, to + i);
  }
  for (; i < count; ++i) to[i] = Format::round(from[i]);
}

// Loads min(count, lanes) values as float32. The other lanes are zero, and memory after these values is not accessed.
template <class Format>
FC_INLINE Vec<float> load_upto(const uint16_t* from, int64_t count) {
#if FC_VECTOR_BYTES == 64
  const auto used = static_cast<__mmask16>(count >= lanes<float> ? 0xffff : (1u << count) - 1);
  const __m256i bits = _mm256_maskz_loadu_epi16(used, from);
  if constexpr (Format::infinity == Half::infinity) return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, bits);
  return (Vec<float>)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16);
#else
  uint16_t some[lanes<float>] = {};
  if (count < lanes<float>) {
    for (int64_t i = 0; i < count; ++i) some[i] = from[i];
    from = some;
  }
  float wide[lanes<float>];
  widen<Format>(from, wide, lanes<float>);
  return load(wide);
#endif
}

// Rounds and stores min(count, lanes) lanes.
template <class Format>
FC_INLINE void store_upto(uint16_t* to, Vec<float> value, int64_t count) {
#if FC_VECTOR_BYTES == 64
  __m256i rounded;
  if constexpr (Format::infinity == Half::infinity) {
    rounded = _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
  } else {
    const Vec<uint32_t> bits = (Vec<uint32_t>)value, quiet = bits | 0x400000;  // a NaN becomes a quiet NaN
    const Vec<uint32_t> nearest = bits + 0x7fff + (bits >> 16 & 1);
    rounded = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)((value == value ? nearest : quiet) >> 16));
  }
  if (count >= lanes<float>) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), rounded);
#else
  float wide[lanes<float>];
  store(wide, value);
  uint16_t rounded[lanes<float>];
  round<Format>(wide, rounded, lanes<float>);
  for (int64_t i = 0; i < lanes<float> && i < count; ++i) to[i] = rounded[i];
#endif
}

constexpr uint16_t negative_zero = 0x8000;

// The bit patterns of negative numbers begin after that of -0 and end with that of -infinity. NaNs come after that.
template <class Format>
void relu(const uint16_t* x, uint16_t* y, int64_t count) {
  FC_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const bool below = static_cast<uint16_t>(x[i] - (negative_zero + 1)) < Format::infinity;
    y[i] = below ? uint16_t{0} : x[i];
  }
}

template <class Format>
void relu_backward(const uint16_t* g, const uint16_t* y, uint16_t* dx, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const bool not_above = static_cast<uint16_t>(y[i] - negative_zero) <= Format::infinity || y[i] == 0;
    dx[i] = not_above ? uint16_t{0} : g[i];
  }
}

}  // namespace fastconv::FC_LEVEL::reduced
