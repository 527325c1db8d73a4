// The choice of the tile for each product, and its launch.
#pragma once

#include <type_traits>

#include "../../shapes.h"
#include "gemm.cuh"
#include "mma.cuh"

namespace fastconv::cuda {

template <class Tile, int V, class A, class B, class Epilogue>
void launch_gemm(const A& a, const B& b, const Epilogue& epilogue, const Tiling& tiling, Stream stream) {
  FC_LAUNCH((gemm<Tile, V, A, B, Epilogue>), dim3(static_cast<unsigned>(tiling.blocks())), dim3(Tile::threads), stream,
            a, b, epilogue, tiling);
}

// This many blocks keep all multiprocessors of a large GPU busy, with a few blocks on each.
constexpr int64_t wanted_blocks = 512;

// Runs f(tile, the width of its vectors as an integral constant). A launch computes `products` products, one for each
// group and piece, of rows x columns results each. 16-bit types use tensor cores. float uses a large tile with 8 x 8
// sums per thread. It uses a small tile if large ones are too few to keep the GPU busy, or half empty.
template <class T, class F>
void with_tile(int64_t rows, int64_t columns, int64_t products, bool vectors, const F& f) {
  const auto with_width = [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::vector > 1) {
      if (vectors) return f(tile, std::integral_constant<int, Tile::vector>{});
    }
    f(tile, std::integral_constant<int, 1>{});
  };
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
