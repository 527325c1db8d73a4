// Matrix transposition: dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < columns. It turns NCHW into
// NHWC and back, and a weight in PyTorch's order into the kernels' order.
//
// Blocking: squares of lanes x lanes elements are transposed in registers by log2(lanes) rounds of two-source shuffles
// (Eklundh, "A Fast Computer Method for Matrix Transposing", 1972). Tails use masked loads and stores.
#pragma once

#include "simd.h"

namespace fastconv::FC_LEVEL {

// Exchanges lane i of a with lane i - bit of b, for every i in which `bit` is set.
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

// A matrix whose columns are adjacent. Rows are `stride` elements apart.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride, rows, columns;
};

// Transposes one block, at row i and column j of the source. row_of(j) gives the address of row j of the result.
template <class T, class RowOf>
FC_INLINE void transpose_block(const Matrix<T>& src, int64_t i, int64_t j, RowOf row_of) {
  constexpr int64_t n = lanes<T>;
  const int64_t src_stride = src.stride, rows = src.rows, columns = src.columns;
  const T* from = src.data + i * src_stride + j;
  Vec<T> block[n];
  if (rows - i >= n && columns - j >= n) {
#pragma GCC unroll 16
    for (int64_t k = 0; k < n; ++k) block[k] = load(from + k * src_stride);
    transpose_registers<n / 2>(block, from);
#pragma GCC unroll 16
    for (int64_t k = 0; k < n; ++k) store(row_of(j + k) + i, block[k]);
  } else {
#pragma GCC unroll 16
    for (int64_t k = 0; k < n; ++k) {
      block[k] = i + k < rows ? load_upto(from + k * src_stride, columns - j) : Vec<T>{};
    }
    transpose_registers<n / 2>(block, from);
#pragma GCC unroll 16
    for (int64_t k = 0; k < n; ++k) {
      if (j + k < columns) store_upto(row_of(j + k) + i, block[k], rows - i);
    }
  }
}

template <class T, class RowOf>
void transpose_to(const T* src, int64_t src_stride, int64_t rows, int64_t columns, RowOf row_of) {
  const Matrix<T> from = {src, src_stride, rows, columns};
  for (int64_t i = 0; i < rows; i += lanes<T>) {
    for (int64_t j = 0; j < columns; j += lanes<T>) transpose_block(from, i, j, row_of);
  }
}

// The inner loop stays in one row of the matrix with the larger stride, because going to its next row costs more.
template <class T>
void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride) {
  FASTCONV_ASSERT(rows >= 0 && columns >= 0 && (rows * columns == 0 || (readable(src) && readable(dst))));
  FASTCONV_ASSERT(src_stride >= columns && dst_stride >= rows);
  const auto row_of = [=](int64_t j) { return dst + j * dst_stride; };
  if (src_stride >= dst_stride) return transpose_to(src, src_stride, rows, columns, row_of);
  const Matrix<T> from = {src, src_stride, rows, columns};
  for (int64_t j = 0; j < columns; j += lanes<T>) {
    for (int64_t i = 0; i < rows; i += lanes<T>) transpose_block(from, i, j, row_of);
  }
}

}  // namespace fastconv::FC_LEVEL
