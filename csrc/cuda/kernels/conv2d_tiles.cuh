// The choice of the tile for each product, and its launch.
#pragma once

#include <type_traits>

#include "../../shapes.h"
#include "gemm.cuh"
#include "mma.cuh"
#include "tensor_gemm.cuh"

namespace fastconv::cuda {

template <class Tile, int V, class A, class B, class Epilogue>
void launch_gemm(const A& a, const B& b, const Epilogue& epilogue, const Tiling& tiling, Stream stream) {
  const dim3 grid(static_cast<unsigned>(tiling.blocks()));
  if constexpr (Tile::has_stages) {
    FC_LAUNCH_WITH_SHARED((tensor_gemm<Tile, V, A, B, Epilogue>), grid, dim3(Tile::threads),
                          sizeof(TensorMemory<Tile, A, B>), stream, a, b, epilogue, tiling);
  } else {
    FC_LAUNCH((gemm<Tile, V, A, B, Epilogue>), grid, dim3(Tile::threads), stream, a, b, epilogue, tiling);
  }
}

// The grid for rows x columns results of each group. Their depth is one piece.
template <class Tile>
Tiling tiling_of(int64_t rows, int64_t columns, int64_t groups, int64_t depth, int rows_per_tile = Tile::rows) {
  Tiling tiling{};
  tiling.rows_per_tile = rows_per_tile;
  tiling.row_tiles = ceil_div(rows, rows_per_tile);
  tiling.column_tiles = static_cast<int>(ceil_div(columns, Tile::columns));
  tiling.groups = static_cast<int>(groups);
  tiling.pieces = 1;
  tiling.depth = tiling.piece_depth = depth;
  return tiling;
}

// This many blocks keep all multiprocessors of a large GPU busy, with a few blocks on each.
constexpr int64_t wanted_blocks = 512;

// A tile, and the least number of blocks that make it worth while.
template <class T, int64_t blocks>
struct Choice {
  using Tile = T;
  static constexpr int64_t least_blocks = blocks;
};

template <class... Tiles>
struct Choices {};

// The tiles of each type, from large to small: of gemm.cuh (fused multiply-adds, or for 16-bit types the instructions
// of mma.cuh), and of tensor_gemm.cuh.
//
// A large tile reads fewer values per multiplication, but has fewer blocks. An H200 has 132 multiprocessors. With 64 x
// 32 sums at batch 64, conv3 of MNIST has 36 to 108 blocks, and backward_data took 78 us for 72 chunks, one after
// another. The smallest tile has four to eight times as many blocks and half as many chunks. conv2 has at least 169
// blocks of 64 x 32, and 100 of 64 x 64 in half. conv2 was faster than cuDNN, so it keeps these tiles. conv1 has 32
// channels and 9 taps. In backward_weight these fill a seventh of 64 x 32 sums, and half of 32 x 16.
template <class T>
struct Tiles {
  using plain = Choices<Choice<MmaTile<T, 32, 32>, 64>, Choice<MmaTile<T, 16, 16>, 1>>;
};

template <>
struct Tiles<float> {
  using plain = Choices<Choice<FmaTile<float, 128, 64, 8, 8>, 256>, Choice<FmaTile<float, 64, 32, 4, 4>, 128>,
                        Choice<FmaTile<float, 32, 16, 2, 2, 32>, 1>>;
};

template <>
struct Tiles<double> {
  using plain = Choices<Choice<FmaTile<double, 64, 32, 4, 4>, 1>>;
};

template <class T>
using TensorTiles = Choices<Choice<TensorTile<T, 128, 128, 64, 32>, 256>, Choice<TensorTile<T, 64, 64, 32, 32>, 64>,
                            Choice<TensorTile<T, 32, 32, 16, 16>, 1>>;

// Which kernels a launch may use (../tile_choice.h).
struct TileChoice {
  bool tensor_cores = false;
  int forced = -1;  // the place of the tile in its list, in tests
};

// A launch computes `count` products, one for each group and piece, of rows x columns results each.
struct Products {
  int64_t rows, columns, count;

  template <class Tile>
  bool suit(int64_t least_blocks) const {
    const bool half_full = 2 * rows > Tile::rows && 2 * columns > Tile::columns;
    return half_full && ceil_div(rows, Tile::rows) * ceil_div(columns, Tile::columns) * count >= least_blocks;
  }
};

// Runs f for the first tile that suits the products, or for the last one.
template <class First, class... Others, class F>
void with_first(Choices<First, Others...>, const Products& products, int forced, const F& f) {
  using Tile = typename First::Tile;
  if constexpr (sizeof...(Others) > 0) {
    const bool chosen = forced < 0 ? products.suit<Tile>(First::least_blocks) : forced == 0;
    if (!chosen) return with_first(Choices<Others...>(), products, forced < 0 ? forced : forced - 1, f);
  }
  f(Tile{});
}

// Runs f(tile, the width of its vectors as an integral constant).
template <class T, class F>
void with_tile(const Products& products, bool vectors, const TileChoice& choice, const F& f) {
  const auto with_width = [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::vector > 1) {
      if (vectors) return f(tile, std::integral_constant<int, Tile::vector>{});
    }
    f(tile, std::integral_constant<int, 1>{});
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (choice.tensor_cores) return with_first(TensorTiles<T>(), products, choice.forced, with_width);
  }
  with_first(typename Tiles<T>::plain(), products, choice.forced, with_width);
}

}  // namespace fastconv::cuda
