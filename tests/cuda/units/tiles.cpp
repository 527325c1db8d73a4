// A C function that returns the tile of csrc/cuda/kernels/conv2d_tiles.cuh for a launch, for test_tiles.py.
#include "../../../csrc/cuda/kernels/conv2d_tiles.cuh"

using namespace fastconv::cuda;

// Writes the rows, columns and depth of a chunk of the tile. bytes: of the type.
extern "C" void choose_tile(int bytes, bool tensor_cores, int64_t rows, int64_t columns, int64_t count, int* found) {
  const auto choose = [&](auto type) {
    const auto note = [&](auto tile, auto) {
      using Tile = decltype(tile);
      const int sizes[] = {Tile::rows, Tile::columns, Tile::depth};
      for (int i = 0; i < 3; ++i) found[i] = sizes[i];
    };
    with_tile<decltype(type)>(Products{rows, columns, count}, false, TileChoice{tensor_cores, -1}, note);
  };
  if (bytes == 8) {
    choose(double{});
  } else if (bytes == 4) {
    choose(float{});
  } else {
    choose(half{});
  }
}
