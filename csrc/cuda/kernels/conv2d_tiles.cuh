// The choice of the tile for each product, and its launch.
#pragma once

#include <type_traits>

#include "../../shapes.h"
#include "gemm.cuh"
#include "mma.cuh"
#include "tensor_gemm.cuh"

namespace fastconv::cuda {

template <class Tile>
concept TensorCoreTile = Tile::has_stages;

template <class Tile, int V, class A, class B, class Epilogue>
void launch_gemm(const A& a, const B& b, const Epilogue& epilogue, const Tiling& tiling, Stream stream) {
  const dim3 grid(static_cast<unsigned>(tiling.blocks()));
  if constexpr (TensorCoreTile<Tile>) {
    FC_LAUNCH_WITH_SHARED((tensor_gemm<Tile, V, A, B, Epilogue>), grid, dim3(Tile::threads),
                          sizeof(TensorMemory<Tile, A, B>), stream, a, b, epilogue, tiling);
  } else {
    FC_LAUNCH((gemm<Tile, V, A, B, Epilogue>), grid, dim3(Tile::threads), stream, a, b, epilogue, tiling);
  }
}

// This many blocks keep all multiprocessors of a large GPU busy, with a few blocks on each.
constexpr int64_t wanted_blocks = 512;

// Whether a launch may use tensor_gemm.cuh (../tensor_cores.h), and how many blocks make its large tiles worth while.
struct TensorCores {
  bool allowed = false;
  int64_t least_large_blocks = wanted_blocks / 2;
};

// Runs f(tile, the width of its vectors as an integral constant). A launch computes `products` products, one for each
// group and piece, of rows x columns results each. Large tiles need enough blocks to keep the GPU busy, and must not be
// half empty. Without tensor_gemm.cuh, float uses fused multiply-adds and 16-bit types the instructions of mma.cuh.
template <class T, class F>
void with_tile(int64_t rows, int64_t columns, int64_t products, bool vectors, const TensorCores& cores, const F& f) {
  const auto with_width = [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::vector > 1) {
      if (vectors) return f(tile, std::integral_constant<int, Tile::vector>{});
    }
    f(tile, std::integral_constant<int, 1>{});
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (cores.allowed) {
      const int64_t large = ceil_div(rows, 128) * ceil_div(columns, 128) * products;
      if (large >= cores.least_large_blocks && columns > 64) return with_width(TensorTile<T, 128, 128, 64, 32>{});
      return with_width(TensorTile<T, 64, 64, 32, 32>{});
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    const int64_t large = ceil_div(rows, 128) * ceil_div(columns, 64) * products;
    if (2 * large >= wanted_blocks && columns > 32) return with_width(FmaTile<float, 128, 64, 8, 8>{});
    with_width(FmaTile<float, 64, 32, 4, 4>{});
  } else if constexpr (std::is_same_v<T, double>) {
    with_width(FmaTile<double, 64, 32, 4, 4>{});
  } else {
    with_width(MmaTile<T, 32, 32>{});
  }
}

}  // namespace fastconv::cuda
