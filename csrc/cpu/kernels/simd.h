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

// The integer of T's width, for masks and positions.
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

template <class T>
FC_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(from);
}

template <class T>
FC_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(to) = value;
}

// Tails: the first `count` lanes, 0 < count <= lanes, of elements of 4 or 8 bytes. Memory behind them is not touched;
// lanes behind them are zero.
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

// 0 where the lane is below 0, else the lane: NaN and -0.0 are left as they are.
template <class T>
FC_INLINE Vec<T> zero_or_above(Vec<T> value) {
#if FC_VECTOR_BYTES == 64
  // g++ 12 makes a compare and a masked move of the selection, and warns of _mm512_max_ps.
  if constexpr (sizeof(T) == 4 && T(0.5) != T(0)) {
    return (Vec<T>)_mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), (__m512)value);
  }
  if constexpr (sizeof(T) == 8 && T(0.5) != T(0)) {
    return (Vec<T>)_mm512_maskz_max_pd(0xff, _mm512_setzero_pd(), (__m512d)value);
  }
#endif
  return Vec<T>{} > value ? Vec<T>{} : value;
}

// Bit i is set where lane i is not zero (a NaN is not).
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

// A truth value for each lane: a bit in a mask register, or as the compiler's comparisons have it, all bits of the
// lane.
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
using LaneMask = Vec<IntLike<T>>;
#endif

// value > best, or value is NaN.
template <class T>
FC_INLINE LaneMask<T> larger_or_nan(Vec<T> value, Vec<T> best) {
#if FC_VECTOR_BYTES == 64
  // As the inverse of "a number and not larger", which are two compares and nothing more.
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

// As many bytes as T has lanes, and those as integers of T's width.
template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(lanes<T>)));
  typedef uint8_t unaligned __attribute__((vector_size(lanes<T>), aligned(1), may_alias));
};

// Each lane's lowest byte, of lanes from 0 to 255.
template <class T>
FC_INLINE typename BytesOf<T>::type narrowed(Vec<IntLike<T>> values) {
#if FC_VECTOR_BYTES == 32
  // g++ 12 takes the lanes out one by one: a third of the time of conv1's forward of MnistCNN.
  __m256i lanes_32 = (__m256i)values;
  if constexpr (sizeof(T) == 8)
    lanes_32 = _mm256_permutevar8x32_epi32(lanes_32, _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(lanes_32), _mm256_extracti128_si256(lanes_32, 1));
  const auto bytes = (uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(words, words));
  typename BytesOf<T>::type result;
  __builtin_memcpy(&result, &bytes, sizeof(result));
  return result;
#else
  return __builtin_convertvector(values, typename BytesOf<T>::type);
#endif
}

template <class T>
FC_INLINE void store_bytes(uint8_t* to, Vec<IntLike<T>> values, int64_t count) {
  const auto bytes = narrowed<T>(values);
  if (count >= lanes<T>) {
    *reinterpret_cast<typename BytesOf<T>::unaligned*>(to) = bytes;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = bytes[i];
  }
}

// Lanes behind `count` are `rest`.
template <class T>
FC_INLINE Vec<IntLike<T>> load_bytes(const uint8_t* from, int64_t count, uint8_t rest) {
  typename BytesOf<T>::type bytes;
  if (count >= lanes<T>) {
    bytes = *reinterpret_cast<const typename BytesOf<T>::unaligned*>(from);
  } else {
    for (int64_t i = 0; i < lanes<T>; ++i) bytes[i] = i < count ? from[i] : rest;
  }
  return __builtin_convertvector(bytes, Vec<IntLike<T>>);
}

// For integers.
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

// Bit i is set where lane i is.
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

#if FC_VECTOR_BYTES == 32
// For each set of 8 lanes, which lanes are in it.
struct CompressTable {
  uint8_t lane[256][8];
  constexpr CompressTable() : lane{} {
    for (int bits = 0; bits < 256; ++bits) {
      int found = 0;
      for (uint8_t i = 0; i < 8; ++i) {
        if (bits >> i & 1) lane[bits][found++] = i;
      }
    }
  }
};
constexpr CompressTable compress_table;
#endif

// The lanes whose bit is set, one after the other; a whole vector is written. Without a branch: on random bits, a loop
// over them costs a misprediction a vector, as much as the vector's arithmetic.
template <class T>
FC_INLINE void compress_store(T* to, Vec<T> value, uint32_t bits) {
#if FC_VECTOR_BYTES == 64
  // Into a register first: on Zen 4, compressing to memory takes a hundred cycles.
  if constexpr (sizeof(T) == 4) {
    store(to, (Vec<T>)_mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)value));
  } else {
    store(to, (Vec<T>)_mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), (__m512i)value));
  }
#else
#if FC_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    const __m128i lane = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(compress_table.lane[bits]));
    store(to, (Vec<T>)_mm256_permutevar8x32_epi32((__m256i)value, _mm256_cvtepu8_epi32(lane)));
    return;
  }
#endif
  for (int i = 0; i < lanes<T>; ++i) {
    *to = value[i];
    to += bits >> i & 1;
  }
#endif
}

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

// Lane i is lane from[i] of `value`; only the low bits of from[i] count.
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

// The same address, which the compiler shall take as it comes: for the loads behind it, it would else keep one pointer
// each, and spill them.
template <class T>
FC_INLINE const T* opaque(const T* address) {
  asm("" : "+r"(address));
  return address;
}

// A number that a lambda can take as a template would.
template <int n>
struct Constant {
  static constexpr int value = n;
};

// shuffle<I...>(a, b): lane by lane, lane I of a, or lane I - n of b.
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
