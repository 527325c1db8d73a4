// Comparisons of vectors, masks and selection.
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL {

// ReLU: 0 if the lane is below 0, else the lane. NaN and -0.0 are kept.
template <class T>
FC_INLINE Vec<T> zero_or_above(Vec<T> value) {
#if FC_VECTOR_BYTES == 64
  // g++ 12 compiles the selection below to a compare and a masked move. It warns about the unmasked _mm512_max_ps.
  if constexpr (sizeof(T) == 4 && T(0.5) != T(0)) {
    return (Vec<T>)_mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), (__m512)value);
  }
  if constexpr (sizeof(T) == 8 && T(0.5) != T(0)) {
    return (Vec<T>)_mm512_maskz_max_pd(0xff, _mm512_setzero_pd(), (__m512d)value);
  }
#endif
  return Vec<T>{} > value ? Vec<T>{} : value;
}

// Bit i is set if lane i is not zero. A NaN is not zero.
template <class T>
FC_INLINE uint32_t nonzero_lanes(Vec<T> value) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask((__m512)value, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  } else {
    return _mm512_cmp_pd_mask((__m512d)value, _mm512_setzero_pd(), _CMP_NEQ_UQ);
  }
#elif FC_VECTOR_BYTES == 32
  const auto mask = value != T(0);
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
  } else {
    return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
  }
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<T>; ++i) bits |= static_cast<uint32_t>(value[i] != T(0)) << i;
  return bits;
#endif
}

// One truth value for each lane. With AVX-512 it is a bit in a mask register, else all bits of the lane.
#if FC_VECTOR_BYTES == 64
template <class T>
struct LaneMaskOf {
  using type = __mmask16;
};
template <>
struct LaneMaskOf<double> {
  using type = __mmask8;
};
template <>
struct LaneMaskOf<int64_t> {
  using type = __mmask8;
};
template <class T>
using LaneMask = typename LaneMaskOf<T>::type;
#else
template <class T>
using LaneMask = Vec<IntLike<T> >;
#endif

// value > best, or value is NaN.
template <class T>
FC_INLINE LaneMask<T> larger_or_nan(Vec<T> value, Vec<T> best) {
#if FC_VECTOR_BYTES == 64
  // Computed as not (value is a number and not larger), which takes only two compares.
  if constexpr (sizeof(T) == 4) {
    const __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
    return ~_mm512_mask_cmp_ps_mask(number, (__m512)value, (__m512)best, _CMP_NGT_UQ);
  } else {
    const __mmask8 number = _mm512_cmp_pd_mask((__m512d)value, (__m512d)value, _CMP_ORD_Q);
    return ~_mm512_mask_cmp_pd_mask(number, (__m512d)value, (__m512d)best, _CMP_NGT_UQ);
  }
#else
  return (value > best) | (value != value);
#endif
}

// value <= 0; false for NaN.
template <class T>
FC_INLINE LaneMask<T> not_above_zero(Vec<T> value) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask((__m512)value, _mm512_setzero_ps(), _CMP_LE_OQ);
  } else {
    return _mm512_cmp_pd_mask((__m512d)value, _mm512_setzero_pd(), _CMP_LE_OQ);
  }
#else
  return value <= T(0);
#endif
}

// For each lane, a if the mask is set, else b.
template <class T>
FC_INLINE Vec<T> select(LaneMask<T> mask, Vec<T> a, Vec<T> b) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_blend_epi32(mask, (__m512i)b, (__m512i)a);
  } else {
    return (Vec<T>)_mm512_mask_blend_epi64(mask, (__m512i)b, (__m512i)a);
  }
#else
  return mask ? a : b;
#endif
}

// Comparisons of integers.
template <class I>
FC_INLINE LaneMask<I> equal(Vec<I> a, Vec<I> b) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(I) == 4) {
    return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
  } else {
    return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b);
  }
#else
  return a == b;
#endif
}

template <class I>
FC_INLINE LaneMask<I> at_least_zero(Vec<I> value) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(I) == 4) {
    return static_cast<__mmask16>(~_mm512_movepi32_mask((__m512i)value));
  } else {
    return static_cast<__mmask8>(~_mm512_movepi64_mask((__m512i)value));
  }
#else
  return value >= 0;
#endif
}

// The mask as bits of an integer.
template <class I>
FC_INLINE uint32_t lane_bits(LaneMask<I> mask) {
#if FC_VECTOR_BYTES == 64
  return mask;
#elif FC_VECTOR_BYTES == 32
  if constexpr (sizeof(I) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
  } else {
    return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
  }
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<I>; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

}  // namespace fastconv::FC_LEVEL
