// A tile of gemm.cuh on tensor cores. The operands are half or bf16, and the sums are float.
//
// sm_80 and later have an instruction for both types (multiply_matrices). sm_75 has one for half, with half the depth.
// For bf16 on sm_75, the lanes exchange their fragments through shared memory and use scalar multiply-adds. In the
// emulation, half uses the instruction of sm_80, and bf16 the exchange.
#pragma once

#include "tensor_cores.cuh"
#include "warp_sums.cuh"

namespace fastconv::cuda {

constexpr int mma_threads = 128;

// One lane's fragments as floats. The other lanes of the warp read them.
struct ShownFragments {
  float a[4][2], b[2][2];
};

// Computes the same as multiply_matrices<T>, without its instruction.
template <class T>
__device__ void multiply_through_shared_memory(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FC_SHARED(ShownFragments, fragments, [mma_threads]);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  ShownFragments* warp = fragments + threadIdx.x / 32 * 32;
  const auto show = [](float(&to)[2], const uint32_t& word) {
    const T* pair = reinterpret_cast<const T*>(&word);
    for (int d = 0; d < 2; ++d) to[d] = static_cast<float>(pair[d]);
  };
  for (int i = 0; i < 4; ++i) show(warp[lane].a[i], a[i]);
  for (int i = 0; i < 2; ++i) show(warp[lane].b[i], b[i]);
  __syncwarp();
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      for (int d = 0; d < 16; ++d) {
        const int quarter = d % 8 / 2, high = d / 8;
        c[2 * i + j] = fma(warp[g * 4 + quarter].a[2 * high + i][d % 2], warp[(2 * t + j) * 4 + quarter].b[high][d % 2],
                           c[2 * i + j]);
      }
    }
  }
  __syncwarp();
}

template <class T>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__) && FC_HAS_TENSOR_CORES
  multiply_matrices<T>(c, a, b);
#else
  if constexpr (std::is_same_v<T, half>) {
#if defined(__CUDACC__)
    for (int j = 0; j < 2; ++j) {
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[2 * j]), "r"(a[2 * j + 1]), "r"(b[j]));
    }
#else
    multiply_matrices<T>(c, a, b);
#endif
  } else {
    multiply_through_shared_memory<T>(c, a, b);
  }
#endif
}

// 2 x 2 warps, each with row_block x column_block sums.
template <class Scalar, int row_block, int column_block>
struct MmaTile : WarpSums<2 * row_block, 2 * column_block, row_block, column_block> {
  using T = Scalar;
  using Acc = float;
  static constexpr int rows = 2 * row_block, columns = 2 * column_block, depth = 32;
  static constexpr int vector = widest_vector<T>;
  static constexpr bool depth_adjacent = true, has_stages = false;
  static constexpr int gathers = 4;

  // Depth is adjacent in memory. The padding of 16 bytes per line makes the lanes read from different banks.
  struct Buffer {
    alignas(16) T a[rows][depth + 8], b[columns][depth + 8];

    __device__ T& at_a(int row, int d) { return a[row][d]; }
    __device__ T& at_b(int column, int d) { return b[column][d]; }
  };

  __device__ void multiply(Buffer& buffer) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const auto word = [](const T& first) { return *reinterpret_cast<const uint32_t*>(&first); };
#pragma unroll
    for (int d = 0; d < depth; d += 16) {
      uint32_t b[column_block / 8][2];
#pragma unroll
      for (int j = 0; j < column_block / 8; ++j) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          b[j][high] = word(buffer.b[this->first_column() + 8 * j + g][d + 8 * high + 2 * t]);
        }
      }
#pragma unroll
      for (int i = 0; i < row_block / 16; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          a[part] = word(buffer.a[this->first_row() + 16 * i + g + 8 * (part % 2)][d + 8 * (part / 2) + 2 * t]);
        }
#pragma unroll
        for (int j = 0; j < column_block / 8; ++j) mma<T>(this->sums[i][j], a, b[j]);
      }
    }
  }
};

}  // namespace fastconv::cuda
