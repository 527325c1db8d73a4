// The sums of a block on tensor cores, in the registers of its lanes.
#pragma once

#include "layout.cuh"

namespace fastconv::cuda {

// rows x columns sums. Each warp has warp_rows x warp_columns of them, in parts of 16 x 8 that one instruction adds to.
// Let g = lane / 4 and t = lane % 4. Then sum 2 * i + j of a part is in its row g + 8 * i and column 2 * t + j.
template <int rows, int columns, int warp_rows, int warp_columns>
struct WarpSums {
  static constexpr int warps_by_columns = columns / warp_columns;
  static constexpr int threads = 32 * (rows / warp_rows) * warps_by_columns;

  float sums[warp_rows / 16][warp_columns / 8][4] = {};

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 / warps_by_columns * warp_rows; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / 32 % warps_by_columns * warp_columns; }

  // Runs f(row, column, sum) for the lane's sums.
  template <class F>
  __device__ void for_each_sum(const F& f) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < warp_rows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < warp_columns / 8; ++j) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          f(first_row() + 16 * i + g + 8 * (part / 2), first_column() + 8 * j + 2 * t + part % 2, sums[i][j][part]);
        }
      }
    }
  }
};

}  // namespace fastconv::cuda
