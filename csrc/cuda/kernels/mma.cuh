// Matrix products on tensor cores. One instruction of a warp adds to 16 x 8 sums over a depth of 16. The operands are
// half or bf16, the sums float.
//
// sm_80 and later have the instruction for both types. sm_75 has it for half only, with a depth of 8. Without it (bf16
// on sm_75, and the emulation), the lanes exchange their fragments through shared memory and use scalar multiply-adds.
#pragma once

#include "layout.cuh"

namespace fastconv::cuda {

// Two neighbours in depth, which share a register.
template <class T>
using HalfPair = Vector<T, 2>;

// One lane's elements of a 16 x 16 chunk of A and an 8 x 16 chunk of B, in the layout of PTX. Let g = lane / 4 and
// t = lane % 4. Then a[2 * j + i] holds A[g + 8 * i, 2 * t + 8 * j] and its neighbour in depth, and b[j] holds
// B[g, 2 * t + 8 * j] and its neighbour. The lane's sum c[2 * i + j] is C[g + 8 * i, 2 * t + j].
template <class T>
struct Fragments {
  HalfPair<T> a[4], b[2];
};

constexpr int mma_threads = 128;

// One lane's fragments as floats. The other lanes of the warp read them.
struct ShownFragments {
  float a[4][2], b[2][2];
};

template <class T>
__device__ void mma_through_shared_memory(float (&c)[4], const Fragments<T>& mine) {
  FC_SHARED(ShownFragments, fragments, [mma_threads]);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  ShownFragments* warp = fragments + threadIdx.x / 32 * 32;
  for (int d = 0; d < 2; ++d) {
    for (int i = 0; i < 4; ++i) warp[lane].a[i][d] = static_cast<float>(mine.a[i].values[d]);
    for (int i = 0; i < 2; ++i) warp[lane].b[i][d] = static_cast<float>(mine.b[i].values[d]);
  }
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

#if defined(__CUDA_ARCH__)
template <class T>
__device__ uint32_t bits(const HalfPair<T>& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}
#endif

__device__ inline void mma(float (&c)[4], const Fragments<half>& f) {
#if !defined(__CUDA_ARCH__)
  mma_through_shared_memory(c, f);
#elif __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(bits(f.a[0])), "r"(bits(f.a[1])), "r"(bits(f.a[2])), "r"(bits(f.a[3])), "r"(bits(f.b[0])),
        "r"(bits(f.b[1])));
#else
  for (int j = 0; j < 2; ++j) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(bits(f.a[2 * j])), "r"(bits(f.a[2 * j + 1])), "r"(bits(f.b[j])));
  }
#endif
}

__device__ inline void mma(float (&c)[4], const Fragments<bf16>& f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(bits(f.a[0])), "r"(bits(f.a[1])), "r"(bits(f.a[2])), "r"(bits(f.a[3])), "r"(bits(f.b[0])),
        "r"(bits(f.b[1])));
#else
  mma_through_shared_memory(c, f);
#endif
}

// A tile of gemm.cuh on tensor cores: 2 x 2 warps, each with row_block x column_block sums.
template <class Scalar, int row_block, int column_block>
struct MmaTile {
  using T = Scalar;
  using Acc = float;
  static constexpr int warp_columns = 2;
  static constexpr int rows = 2 * row_block, columns = warp_columns * column_block, depth = 32, threads = mma_threads;
  static constexpr int vector = widest_vector<T>;
  static constexpr bool depth_adjacent = true, has_stages = false;
  static constexpr int gathers = 4;

  // Depth is adjacent in memory. The padding of 16 bytes per line makes the lanes read from different banks.
  struct Buffer {
    alignas(16) T a[rows][depth + 8], b[columns][depth + 8];

    __device__ T& at_a(int row, int d) { return a[row][d]; }
    __device__ T& at_b(int column, int d) { return b[column][d]; }
  };

  float sums[row_block / 16][column_block / 8][4] = {};

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 / warp_columns * row_block; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / 32 % warp_columns * column_block; }

  __device__ void multiply(Buffer& buffer) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int d = 0; d < depth; d += 16) {
      HalfPair<T> b[column_block / 8][2];
#pragma unroll
      for (int j = 0; j < column_block / 8; ++j) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          b[j][high] = load_vector<2>(&buffer.b[first_column() + 8 * j + g][d + 8 * high + 2 * t]);
        }
      }
#pragma unroll
      for (int i = 0; i < row_block / 16; ++i) {
        Fragments<T> fragments;
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          fragments.a[part] =
              load_vector<2>(&buffer.a[first_row() + 16 * i + g + 8 * (part % 2)][d + 8 * (part / 2) + 2 * t]);
        }
#pragma unroll
        for (int j = 0; j < column_block / 8; ++j) {
          fragments.b[0] = b[j][0];
          fragments.b[1] = b[j][1];
          mma(sums[i][j], fragments);
        }
      }
    }
  }

  template <class F>
  __device__ void for_each_sum(const F& f) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < row_block / 16; ++i) {
#pragma unroll
      for (int j = 0; j < column_block / 8; ++j) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          f(first_row() + 16 * i + g + 8 * (part / 2), first_column() + 8 * j + 2 * t + part % 2, sums[i][j][part]);
        }
      }
    }
  }
};

}  // namespace fastconv::cuda
