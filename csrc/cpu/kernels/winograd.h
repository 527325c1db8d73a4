// The 3x3 convolution of stride 1 with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", arXiv 1509.09308, section 4.1):
//
//   y[tile, k] = A' [ sum over c of (G w[k, c] G') * (B' x[tile, c] B) ] A     x[tile, c]: the pixels that a tile reads
//
// F(m, 3) computes m outputs from m + 2 pixels with m + 2 multiplications instead of 3 m. In two dimensions, a tile of
// 4x4 outputs takes 36 multiplications instead of 144, one of 3x3 takes 25 instead of 81, and one of 2x2 takes 16
// instead of 36. Smaller tiles compute the remaining outputs at the edges, down to F(1, 3), a plain sum of 3 products.
//
// Layout: x and y are NHWC and contiguous, without padding in memory. The packed weight of one kind of tile is
// [block of K][frequency][c][block_lanes of k]. A frequency is one element of a transformed tile.
//
// Blocking: accumulate.h computes the sum over c as 36 (25, 16) matrix products, [tiles][C] x [C][K], one for each
// frequency. A unit is unit_tiles tiles of one kind. Tiles are numbered through all images, so only the last unit of a
// kind is not full. The V and M (winograd_tiles.h) of a unit stay in the second-level cache.
//
// Pooling: a tile of 2x2 outputs is one window of a 2x2 pool, so ReLU, maximum and argmax happen in the output
// transform. Larger tiles are not used with pooling, because of ties. If all pixels that a window reads are equal, as
// in the background of a digit, F(2, 3) gives exactly equal results, and the first one receives the gradient as in
// PyTorch. F(4, 3) gives results that differ by rounding.
//
// An infinity or NaN in x or w reaches all outputs of its tile. The kernel reports images with sums that are not
// finite, and the caller computes those again with the direct kernels.
#pragma once

#include "winograd_tiles.h"

namespace fastconv::FC_LEVEL::winograd {

// Elements from one frequency to the next. The distance is 64 bytes longer than needed, as in V (winograd_tiles.h). If
// it were a power of two, all frequencies would share a few lines of the first-level cache, and packing the weight of
// MnistCNN's conv3 would take 115 us instead of 60 (one thread of Zen 3).
template <class T>
int64_t weight_step(const Conv2dShape& s) {
  return s.C * block_lanes<T> + 64 / sizeof(T);
}

template <class T>
int64_t packed_size(const Conv2dShape& s, const WinogradTileKind& kind) {
  return ceil_div(s.K, block_lanes<T>) * kind.frequencies() * weight_step<T>(s);
}

// Packs one block of output channels. The input is a weight that pack_weight_forward (direct_pack.h) has packed. If
// `rotated`, pack_weight_backward has packed it, and this function rotates the kernel by 180 degrees.
template <class T>
void pack_weight(const Conv2dShape& s, const T* packed, bool rotated, const WinogradTileKind& kind, int64_t index,
                 T* to) {
  FASTCONV_ASSERT(readable(packed) && readable(to) && is_block<T>(index, 1, s.K));
  FASTCONV_ASSERT(kind.mh >= 1 && kind.mh <= max_outputs && kind.mw >= 1 && kind.mw <= max_outputs);
  const ChannelBlock<T> block(index, s.K);
  const int64_t size = s.C * block.vectors * lanes<T>;
  const int columns = kind.mw + 2;
  packed += block.first * 9 * s.C;
  to += index * kind.frequencies() * weight_step<T>(s);
  const T* origin = rotated ? packed + 8 * size : packed;
  const int64_t tap = rotated ? -size : size;
  for (int64_t i = 0; i < size; i += lanes<T>) {
    Vec<T> column[3][pixels<max_outputs>];
    with_outputs(kind.mh, [&](auto outputs) {
      constexpr int m = decltype(outputs)::value;
#pragma GCC unroll 3
      for (int side = 0; side < 3; ++side) {
        const T* from = origin + side * tap + i;
        Vec<T> u[m + 2];
        transform_weight<T, m>(load(from), load(from + 3 * tap), load(from + 6 * tap), u);
#pragma GCC unroll 6
        for (int row = 0; row < m + 2; ++row) column[side][row] = u[row];
      }
    });
    with_outputs(kind.mw, [&](auto outputs) {
      constexpr int m = decltype(outputs)::value;
      for (int row = 0; row < kind.mh + 2; ++row) {
        Vec<T> u[m + 2];
        transform_weight<T, m>(column[0][row], column[1][row], column[2][row], u);
#pragma GCC unroll 6
        for (int j = 0; j < m + 2; ++j) store(to + (row * columns + j) * weight_step<T>(s) + i, u[j]);
      }
    });
  }
}

// One frequency: M = V * weight. The sum over c is split into sums of `longest` terms, and each of these into two
// halves. The halves cost 0 to 4 % of the time and save 10 to 20 % of the error. If the number of tiles is no multiple
// of block_rows, the last block also multiplies rows of V after the last tile. Nothing reads these products.
template <class T, int vectors>
void multiply(const T* v, int64_t C, int longest, const T* weight, T* product, int64_t tiles) {
  const int64_t v_row = round_up_to_lanes<T>(C);
  const auto sum = [&](int64_t c, int64_t count) {
    const T* rows[block_rows];
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) rows[row] = v + row * v_row + c;
    Block<T, vectors> acc = {};
    accumulate<T, vectors, false>(acc, rows, {1, 0, 1, 0, count, 1}, weight + c * vectors * lanes<T>,
                                  vectors * lanes<T>, 0);
    return acc;
  };
  const T* const end = product + tiles * block_lanes<T>;
  for (; product < end; product += block_rows * block_lanes<T>, v += block_rows * v_row) {
    for (int64_t c = 0; c < C; c += longest) {
      const int64_t count = upto(longest, C - c), half = count / 2;
      const Block<T, vectors> first = sum(c, half), second = sum(c + half, count - half);
#pragma GCC unroll 12
      for (int row = 0; row < block_rows; ++row) {
#pragma GCC unroll 2
        for (int i = 0; i < vectors; ++i) {
          T* at = product + row * block_lanes<T> + i * lanes<T>;
          const Vec<T> both = first.value[row][i] + second.value[row][i];
          store(at, c == 0 ? both : load(at) + both);
        }
      }
    }
  }
}

// Computes one unit of at most unit_tiles tiles. The weight is packed for the unit's kind of tile. x, y and argmax hold
// all images. argmax is null if nothing is fused.
template <class T>
void forward(const FusedShape& f, const WinogradUnit<T>& unit, const T* x, const PackedWeight<T>& packed, T* y,
             uint8_t* argmax) {
  FASTCONV_ASSERT(readable(x) && readable(packed.data) && readable(y));
  FASTCONV_ASSERT(readable(unit.workspace) && unit.non_finite != nullptr);
  FASTCONV_ASSERT(0 <= unit.first_tile && unit.first_tile < unit.last_tile &&
                  unit.last_tile <= f.conv.N * unit.kind.per_image());
  FASTCONV_ASSERT(unit.last_tile - unit.first_tile <= unit_tiles);
  FASTCONV_ASSERT(0 <= unit.first_block && unit.first_block <= unit.last_block &&
                  unit.last_block <= ceil_div(f.conv.K, block_lanes<T>));
  const Conv2dShape& s = f.conv;
  const WinogradTileKind& kind = unit.kind;
  const auto transforms = transforms_of<T>(kind, f.window() == 4 ? Epilogue::relu_max_pool
                                                 : argmax        ? Epilogue::relu
                                                                 : Epilogue::none);
  const int64_t frequencies = kind.frequencies();
  T* v = unit.workspace;
  T* product = v + frequencies * v_step<T>(s);
  transforms.input(s, unit, x, v, round_up_to_lanes<T>(s.C), {v_step<T>(s), lanes<T>});
  for (int64_t index = unit.first_block; index < unit.last_block; ++index) {
    const ChannelBlock<T> block(index, s.K);
    const T* weight = packed.data + index * frequencies * weight_step<T>(s);
    const auto run = block.vectors == 2 ? multiply<T, 2> : multiply<T, 1>;
    for (int64_t i = 0; i < frequencies; ++i) {
      run(v + i * v_step<T>(s), s.C, longest_product_sum(kind), weight + i * weight_step<T>(s), product + i * m_step<T>,
          unit.last_tile - unit.first_tile);
    }
    transforms.output(f, unit, {block, product, packed.bias, y, argmax});
  }
}

}  // namespace fastconv::FC_LEVEL::winograd
