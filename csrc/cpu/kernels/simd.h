// The vector type, its loads, stores and shuffles. Comparisons are in simd_masks.h, byte conversions in simd_bytes.h.
//
// Vec<T> uses the compiler's vector extensions and has FC_VECTOR_BYTES bytes. The file of each ISA level (default.cpp,
// avx2.cpp, avx512.cpp) sets that number and opens the target region before it includes this file. The kernels write +
// and *, which the compiler contracts to FMA if the level has it. Intrinsics are used only for operations that the
// extensions lack or that the compiler translates badly.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "assert.h"

#define FC_INLINE inline __attribute__((always_inline))

// Before a loop: no iteration reads what another one writes, so that the compiler may vectorize without a check.
#if defined(__clang__)
#define FC_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FC_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fastconv::FC_LEVEL {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FC_VECTOR_BYTES)));
  // For loads and stores: memory need only be aligned to the elements.
  typedef T unaligned __attribute__((vector_size(FC_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

// The integer as wide as T, for masks and positions.
template <int bytes>
struct IntOfSize;
template <>
struct IntOfSize<4> {
  using type = int32_t;
};
template <>
struct IntOfSize<8> {
  using type = int64_t;
};
template <class T>
using IntLike = typename IntOfSize<sizeof(T)>::type;

template <class T>
constexpr int64_t lanes = FC_VECTOR_BYTES / sizeof(T);

// True if `data` is not null and is aligned to its elements. For assertions.
template <class T>
bool readable(const T* data) {
  return data != nullptr && reinterpret_cast<uintptr_t>(data) % alignof(T) == 0;
}

template <class T>
FC_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(from);
}

// Loads a vector into a register. Otherwise the compiler may read it from memory again in each FMA that uses it.
// Depthwise 3x3, 512 channels of 14x14 in bfloat16, batch of 8, 2 threads of Zen 5: 107 us without, 87 with this.
template <class T>
FC_INLINE Vec<T> load_once(const T* from) {
  Vec<T> value = load(from);
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

template <class T>
FC_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(to) = value;
}

// Stores to an address that is aligned to FC_VECTOR_BYTES, past the caches: the CPU does not read the memory before it
// is overwritten. finish_streaming() must follow before another thread reads it.
template <class T>
FC_INLINE void stream(T* to, Vec<T> value) {
#if FC_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#elif FC_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
#else
  store(to, value);
#endif
}

FC_INLINE void finish_streaming() {
#if FC_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

// Load and store only the first `count` lanes, 0 < count <= lanes. Elements have 4 or 8 bytes. Memory after these lanes
// is not accessed. A load sets the other lanes to zero.
#if FC_VECTOR_BYTES == 64
template <class T>
FC_INLINE Vec<T> load_partial(const T* from, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(0xffffu >> (16 - count)), from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_epi64(static_cast<__mmask8>(0xffu >> (8 - count)), from);
  }
}
template <class T>
FC_INLINE void store_partial(T* to, Vec<T> value, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(0xffffu >> (16 - count)), (__m512i)value);
  } else {
    _mm512_mask_storeu_epi64(to, static_cast<__mmask8>(0xffu >> (8 - count)), (__m512i)value);
  }
}
#elif FC_VECTOR_BYTES == 32
template <class T>
FC_INLINE __m256i first_lanes(int64_t count) {
  if constexpr (sizeof(T) == 4) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }
}
template <class T>
FC_INLINE Vec<T> load_partial(const T* from, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm256_maskload_epi32(reinterpret_cast<const int*>(from), first_lanes<T>(count));
  } else {
    return (Vec<T>)_mm256_maskload_epi64(reinterpret_cast<const long long*>(from), first_lanes<T>(count));
  }
}
template <class T>
FC_INLINE void store_partial(T* to, Vec<T> value, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(to), first_lanes<T>(count), (__m256i)value);
  } else {
    _mm256_maskstore_epi64(reinterpret_cast<long long*>(to), first_lanes<T>(count), (__m256i)value);
  }
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

// Load and store min(count, lanes) lanes. `count` is positive.
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

// Lane i of the result is lane (from[i] modulo the number of lanes) of `value`.
template <class T>
FC_INLINE Vec<T> permute(Vec<T> value, Vec<IntLike<T>> from) {
#if FC_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)from, (__m512i)value);
  } else {
    return (Vec<T>)_mm512_maskz_permutexvar_epi64(0xff, (__m512i)from, (__m512i)value);
  }
#else
#if FC_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_permutevar8x32_epi32((__m256i)value, (__m256i)from);
#endif
  Vec<T> result;
  for (int i = 0; i < lanes<T>; ++i) result[i] = value[from[i] & (lanes<T> - 1)];
  return result;
#endif
}

// 0, 1, 2, ...
template <class I>
FC_INLINE Vec<I> lane_numbers() {
  Vec<I> numbers;
  for (int i = 0; i < lanes<I>; ++i) numbers[i] = static_cast<I>(i);
  return numbers;
}

// Returns the same address but hides that from the optimiser. Otherwise the compiler keeps one pointer for each load
// from the address, runs out of registers, and spills the pointers.
template <class T>
FC_INLINE const T* opaque(const T* address) {
  asm("" : "+r"(address));
  return address;
}

// Passes a number to a generic lambda as a constant: decltype(argument)::value.
template <int n>
struct Constant {
  static constexpr int value = n;
};

// shuffle(type, a, b, Indices<I...>): for each I, lane I of a if I < n, else lane I - n of b. T is deduced from `type`.
template <int... I>
struct Indices {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  using type = Indices<I...>;
};
template <class T>
using LaneIndices = typename CountTo<lanes<T>>::type;

template <class T, int... I>
FC_INLINE Vec<T> shuffle(const T*, Vec<T> a, Vec<T> b, Indices<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Vec<IntLike<T>>{I...});
#endif
}

}  // namespace fastconv::FC_LEVEL
