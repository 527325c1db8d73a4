// The few vector operations that the kernels need, over the compiler's vector extensions.
//
// A vector has FC_VECTOR_BYTES bytes; the file of each ISA level (default.cpp, avx2.cpp, avx512.cpp) sets that and
// opens the target region before it includes this. Arithmetic is written with + and *; the compiler contracts it to
// FMA where the level has it. Only masked loads and stores need intrinsics.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#define FC_INLINE inline __attribute__((always_inline))

namespace fastconv::FC_LEVEL {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FC_VECTOR_BYTES)));
  // The same vector where memory is aligned to its elements only.
  typedef T unaligned __attribute__((vector_size(FC_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int64_t lanes = FC_VECTOR_BYTES / sizeof(T);

template <class T>
FC_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(from);
}

template <class T>
FC_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(to) = value;
}

// Tails: the first `count` lanes, 0 < count <= lanes. Memory behind them is not touched; lanes behind them are zero.
#if FC_VECTOR_BYTES == 64
FC_INLINE Vec<float> load_partial(const float* from, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(0xffffu >> (16 - count)), from);
}
FC_INLINE Vec<double> load_partial(const double* from, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(0xffu >> (8 - count)), from);
}
FC_INLINE void store_partial(float* to, Vec<float> value, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(0xffffu >> (16 - count)), (__m512)value);
}
FC_INLINE void store_partial(double* to, Vec<double> value, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(0xffu >> (8 - count)), (__m512d)value);
}
#elif FC_VECTOR_BYTES == 32
FC_INLINE __m256i first_lanes(const float*, int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FC_INLINE __m256i first_lanes(const double*, int64_t count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
FC_INLINE Vec<float> load_partial(const float* from, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(from, first_lanes(from, count));
}
FC_INLINE Vec<double> load_partial(const double* from, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(from, first_lanes(from, count));
}
FC_INLINE void store_partial(float* to, Vec<float> value, int64_t count) {
  _mm256_maskstore_ps(to, first_lanes(to, count), (__m256)value);
}
FC_INLINE void store_partial(double* to, Vec<double> value, int64_t count) {
  _mm256_maskstore_pd(to, first_lanes(to, count), (__m256d)value);
}
#else
template <class T>
FC_INLINE Vec<T> load_partial(const T* from, int64_t count) {
  Vec<T> value = {};
  for (int64_t i = 0; i < count; ++i) value[i] = from[i];
  return value;
}
template <class T>
FC_INLINE void store_partial(T* to, Vec<T> value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
}
#endif

// `count` may be anything above zero: a full vector when it is large enough.
template <class T>
FC_INLINE Vec<T> load_upto(const T* from, int64_t count) {
  return count >= lanes<T> ? load(from) : load_partial(from, count);
}
template <class T>
FC_INLINE void store_upto(T* to, Vec<T> value, int64_t count) {
  if (count >= lanes<T>) {
    store(to, value);
  } else {
    store_partial(to, value, count);
  }
}

}  // namespace fastconv::FC_LEVEL
