// Shared by the drivers: the bias, the parts of a tile, and the rows that a tile reads.
#pragma once

#include <algorithm>
#include <cstring>

#include "../memory/nhwc.h"
#include "../memory/tiles.h"
#include "drivers.h"

namespace fastconv::cpu {

// `data` has K adjacent values, or is null if there is no bias.
template <class T>
struct Bias {
  Tensor owner;
  const T* data;

  Bias(const std::optional<Tensor>& bias, const Tensor& weight)
      : owner(bias ? as_contiguous(*bias) : weight), data(bias ? fastconv::data<T>(owner) : nullptr) {}
};

// The number of parts that each tile is divided into, by channel blocks. It is above 1 only if there are few tiles.
inline int64_t parts_of_tile(const Tiles& tiles, const Blocks& blocks) {
  const int64_t wanted = ceil_div(wanted_pieces, tiles.count() > 0 ? tiles.count() : 1);
  return wanted < blocks.count() ? wanted : blocks.count();
}

// Calls body(tile, first, last) for each tile and each of its `parts` parts, in parallel. A part has the blocks
// [first, last) of channels, of `blocks` in all.
template <class Body>
void for_each_part(const Tiles& tiles, int64_t blocks, int64_t parts, const Body& body) {
  parallel_for_each(tiles.count() * parts, [&](int64_t i) {
    body(tiles[i / parts], blocks * (i % parts) / parts, blocks * (i % parts + 1) / parts);
  });
}

// Output pixels of a tile: a multiple of the rows of a register block, and few enough to stay in the cache.
constexpr int64_t tile_pixels = 720;

// The input pixels, with padding, that the output rows [tile.row, tile.row + tile.rows) read.
template <class T>
InputTile<T> input_of(const Conv2dShape& s, const NhwcReader<T>& x, const Tile& tile, Workspace use) {
  return x.view(tile.image, tile.images, tile.row * s.stride_h - s.pad_h,
                reach(tile.rows, s.stride_h, s.R, s.dilation_h), -s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w),
                use);
}

// The rows of the convolution that a tile of pooling windows reads.
inline Tile convolution_rows(const FusedShape& f, const Tile& tile) {
  const Rows rows = rows_read_by(f.pool, {tile.row, tile.rows});
  return {tile.image, tile.images, rows.first, rows.count};
}

// The gradient of rows [tile.row, tile.row + tile.rows) of pooling windows.
template <class T>
SparseGradientTile<T> tile_of(const SparseGradient<T>& g, const Tile& tile) {
  const int64_t window = (tile.image * g.shape.pool.P + tile.row) * g.shape.pool.Q * g.shape.conv.K;
  return {g.values + window, g.argmax + window, tile.images, tile.row, tile.rows};
}

template <class T>
void zero_channels(T* tile, int64_t pixels, int64_t C, int64_t c0, int64_t c1) {
  if (c0 == 0 && c1 == C) {
    std::memset(tile, 0, static_cast<size_t>(pixels * C) * sizeof(T));
    return;
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    std::memset(tile + pixel * C + c0, 0, static_cast<size_t>(c1 - c0) * sizeof(T));
  }
}

}  // namespace fastconv::cpu
