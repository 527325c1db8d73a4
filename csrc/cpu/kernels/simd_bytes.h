// Conversions of vectors from and to bytes, and a store of selected lanes only.
#pragma once

#include "simd_masks.h"

namespace fastconv::FC_LEVEL {

// One byte for each lane of T.
template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(lanes<T>)));
  typedef uint8_t unaligned __attribute__((vector_size(lanes<T>), aligned(1), may_alias));
};

// Converts the lanes, which are 0 to 255, to bytes.
template <class T>
FC_INLINE typename BytesOf<T>::type narrowed(Vec<IntLike<T>> values) {
#if FC_VECTOR_BYTES == 32
  // g++ 12 would extract the lanes one by one, which takes a third of the forward pass of MnistCNN's conv1.
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

// Loads the first `count` bytes as integers. The other lanes are `rest`.
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

#if FC_VECTOR_BYTES == 32
// lane[bits]: the numbers of the lanes whose bit is set.
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

// Stores the lanes whose bit is set, without gaps. It may overwrite as much memory as a whole vector. It has no branch:
// a loop over the set bits would end in one misprediction for each vector, which costs as much as its arithmetic.
template <class T>
FC_INLINE void compress_store(T* to, Vec<T> value, uint32_t bits) {
#if FC_VECTOR_BYTES == 64
  // Compresses in a register first. On Zen 4, compressing to memory takes a hundred cycles.
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

}  // namespace fastconv::FC_LEVEL
