// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < columns: the step between NCHW and NHWC, and
// between a weight as PyTorch keeps it and as the kernels read it.
//
// Square blocks of lanes x lanes elements are transposed in registers by log2(lanes) rounds of two-source shuffles
// (Eklundh, "A Fast Computer Method for Matrix Transposing", 1972); tails use masked loads and stores.
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL {

// Exchanges the lanes of a whose index has bit `bit` set with the lanes of b whose index has it clear.
template <int bit, class T, int... I>
FC_INLINE void exchange(const T* type, Vec<T>& a, Vec<T>& b, Indices<I...>) {
  constexpr int n = lanes<T>;
  const Vec<T> low = shuffle(type, a, b, Indices<((I & bit) ? n + (I ^ bit) : I)...>{});
  const Vec<T> high = shuffle(type, a, b, Indices<((I & bit) ? n + I : (I ^ bit))...>{});
  a = low;
  b = high;
}

template <int bit, class T>
FC_INLINE void transpose_registers(Vec<T>* row, const T* type) {
  constexpr int n = lanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if ((i & bit) == 0) exchange<bit>(type, row[i], row[i | bit], LaneIndices<T>{});
  }
  if constexpr (bit > 1) transpose_registers<bit / 2>(row, type);
}

// `row_of(j)` gives the address of row j of the result.
template <class T, class RowOf>
FC_INLINE void transpose_to(const T* src, int64_t src_stride, int64_t rows, int64_t columns, RowOf row_of) {
  constexpr int64_t n = lanes<T>;
  for (int64_t j0 = 0; j0 < columns; j0 += n) {
    const int64_t block_columns = columns - j0 < n ? columns - j0 : n;
    for (int64_t i0 = 0; i0 < rows; i0 += n) {
      const int64_t block_rows = rows - i0 < n ? rows - i0 : n;
      const T* from = src + i0 * src_stride + j0;
      Vec<T> block[n];
      if (block_rows == n && block_columns == n) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < n; ++i) block[i] = load(from + i * src_stride);
        transpose_registers<n / 2>(block, from);
#pragma GCC unroll 16
        for (int64_t j = 0; j < n; ++j) store(row_of(j0 + j) + i0, block[j]);
      } else {
#pragma GCC unroll 16
        for (int64_t i = 0; i < n; ++i) {
          block[i] = i < block_rows ? load_upto(from + i * src_stride, block_columns) : Vec<T>{};
        }
        transpose_registers<n / 2>(block, from);
#pragma GCC unroll 16
        for (int64_t j = 0; j < n; ++j) {
          if (j < block_columns) store_upto(row_of(j0 + j) + i0, block[j], block_rows);
        }
      }
    }
  }
}

template <class T>
void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  transpose_to(src, src_stride, rows, columns, [=](int64_t j) { return dst + j * dst_stride; });
}

}  // namespace fastconv::FC_LEVEL
