// A tile of tensor_gemm.cuh: chunks of the operands in shared memory, and the products of their fragments.
#pragma once

#include "tensor_cores.cuh"
#include "warp_sums.cuh"

namespace fastconv::cuda {

// A chunk has this many steps of depth: 32 of half and bf16, 16 of TF32. A row of a chunk has 64 bytes, so all types
// have the same fragments in bytes. A fragment is 32 bytes deep.
template <class T>
constexpr int tensor_depth = 64 / sizeof(T);

// A chunk of one operand in shared memory, with depth adjacent. The four 16-byte vectors of a row are permuted
// (swizzled): eight rows of the same vector, which ldmatrix reads together, are in different banks.
template <class T, int rows, bool depth_adjacent>
struct OperandChunk {
  static constexpr int width = widest_vector<T>, depth = tensor_depth<T>;

  alignas(16) T data[rows * depth];

  __device__ T* at(int row, int d) { return data + row * depth + ((d / width) ^ (row / 2 % 4)) * width + d % width; }

  // Registers of A: rows 0 to 7 and 8 to 15, then the same rows in the other half of depth.
  __device__ void load_a(uint32_t (&a)[4], int row, int d) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(a, at(row + lane % 16, d + lane / 16 * width));
  }

  // Registers of B for 16 rows: both halves of depth of rows 0 to 7, then of rows 8 to 15.
  __device__ void load_b(uint32_t (&b)[4], int row, int d) {
    const int lane = threadIdx.x % 32;
    load_matrices<false>(b, at(row + lane / 16 * 8 + lane % 8, d + lane / 8 % 2 * width));
  }
};

// The same with rows adjacent. ldmatrix transposes 16-bit elements. Lanes read TF32 elements one by one. The padding of
// each line makes both read from different banks.
template <class T, int rows>
struct OperandChunk<T, rows, false> {
  static constexpr int width = widest_vector<T>, depth = tensor_depth<T>;

  alignas(16) T data[depth][rows + 8];

  __device__ T* at(int row, int d) { return &data[d][row]; }

  __device__ void load_a(uint32_t (&a)[4], int row, int d) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      load_matrices<true>(a, at(row + lane / 8 % 2 * 8, d + lane / 16 * 8 + lane % 8));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = word(row + lane / 4 + i % 2 * 8, d + lane % 4 + i / 2 * 4);
    }
  }

  __device__ void load_b(uint32_t (&b)[4], int row, int d) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      load_matrices<true>(b, at(row + lane / 16 * 8, d + lane / 8 % 2 * 8 + lane % 8));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = word(row + lane / 4 + i / 2 * 8, d + lane % 4 + i % 2 * 4);
    }
  }

 private:
  __device__ uint32_t word(int row, int d) { return *reinterpret_cast<const uint32_t*>(at(row, d)); }
};

// The products of a block. `multiply` adds a chunk.
template <class Scalar, int row_count, int column_count, int warp_rows, int warp_columns>
struct TensorTile : WarpSums<row_count, column_count, warp_rows, warp_columns> {
  using T = Scalar;
  static constexpr int rows = row_count, columns = column_count, depth = tensor_depth<T>;
  static constexpr int vector = widest_vector<T>;
  static constexpr bool has_stages = true;

  template <class ChunkA, class ChunkB>
  __device__ void multiply(ChunkA& chunk_a, ChunkB& chunk_b) {
#pragma unroll
    for (int d = 0; d < depth; d += depth / 2) {
      uint32_t b[warp_columns / 16][4];
#pragma unroll
      for (int j = 0; j < warp_columns / 16; ++j) {
        chunk_b.load_b(b[j], this->first_column() + 16 * j, d);
        round(b[j]);
      }
#pragma unroll
      for (int i = 0; i < warp_rows / 16; ++i) {
        uint32_t a[4];
        chunk_a.load_a(a, this->first_row() + 16 * i, d);
        round(a);
#pragma unroll
        for (int j = 0; j < warp_columns / 8; ++j) multiply_matrices<T>(this->sums[i][j], a, b[j / 2] + j % 2 * 2);
      }
    }
  }

 private:
  __device__ static void round(uint32_t (&words)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& word : words) word = round_to_tf32(word);
    }
  }
};

}  // namespace fastconv::cuda
