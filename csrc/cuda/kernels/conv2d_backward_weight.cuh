// dw[k, r, s, c] = sum over n, p, q of g[n, p, q, k] * x[n, p * u + r, q * v + s, c], and db[k] = sum of g[n, p, q, k].
//
// The tiles are output channels x taps (gemm.cuh). They are few, and each sums over many pixels. So the pixels are cut
// into pieces, whose number depends on the shape alone. Each piece writes its sums to a workspace (PieceSums), and a
// second kernel adds the pieces in order. Without atomics, every run on every GPU gives the same bits. The same tiles
// also sum the rows of g, which gives db.
#pragma once

#include "conv2d_operands.cuh"
#include "conv2d_results.cuh"
#include "conv2d_thin_groups.cuh"
#include "conv2d_tiles.cuh"

namespace fastconv::cuda {

struct Pieces {
  int64_t count, pixels;

  explicit Pieces(const Conv2dShape& s) {
    const int64_t all = s.N * s.P * s.Q;
    const int64_t blocks = has_thin_groups(s) ? ceil_div(s.K, 32) * s.taps()
                                              : ceil_div(s.group_K(), 64) * ceil_div(s.taps(), 64) * s.groups;
    // The pixels of a piece: enough to occupy a block, and few enough for sums in float.
    constexpr int64_t shortest = 256, longest = 8192;
    pixels = ceil_div(all * (blocks < wanted_blocks ? blocks : wanted_blocks), wanted_blocks);
    pixels = pixels < shortest ? shortest : pixels > longest ? longest : ceil_div(pixels, 32) * 32;
    count = all == 0 ? 1 : ceil_div(all, pixels);
  }
};

// The number of accumulators in the workspace of launch_conv2d_backward_weight.
inline int64_t backward_weight_workspace(const Conv2dShape& s) { return Pieces(s).count * s.K * (s.taps() + 1); }

template <class T>
struct StoreBackwardWeight {
  static constexpr bool wants_row_sums = true;

  PieceSums<T> to;
  int group_K, rows;

  template <int columns, class Sums, class Row>
  __device__ void store(const Part& part, const Sums& sums, const Row*) const {
    for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) {
      const int row = i / columns, tap = part.first_column + i % columns;
      const int64_t k = part.first_row + row;
      if (k < group_K && tap < to.taps) *to.weight(part.piece, part.group * group_K + k, tap) = sums[row][i % columns];
    }
  }

  __device__ void store_row_sum(const Part& part, int row, Accumulator<T> sum) const {
    const int64_t k = part.first_row + row;
    if (k < group_K) *to.bias(part.piece, part.group * group_K + k) = sum;
  }
};

// Each thread adds up one gradient.
template <class T>
__global__ void __launch_bounds__(256)
    add_pieces(PieceSums<T> sums, int64_t pieces, T* dw, Layout layout, T* db, Divisor by_taps, Divisor by_group_C) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= sums.piece_size()) return;
  Accumulator<T> sum = 0;
  // conv1 of MNIST has 169 pieces and only two blocks. So a thread waits for many loads at once.
#pragma unroll 16
  for (int64_t piece = 0; piece < pieces; ++piece) sum += sums.data[piece * sums.piece_size() + i];
  const int64_t in_bias = i - static_cast<int64_t>(sums.K) * sums.taps;
  if (in_bias >= 0) {
    db[in_bias] = static_cast<T>(sum);
    return;
  }
  const int64_t k = by_taps.divide(i), tap = by_taps.remainder(i, k);
  const int64_t rs = by_group_C.divide(tap), c = by_group_C.remainder(tap, rs);
  dw[k * layout.outer + rs * layout.pixel + c * layout.channel] = static_cast<T>(sum);
}

template <class T, class Gradient>
void launch_backward_weight(const Conv2dShape& s, const Gradient& g, Dense<const T> x, Dense<T> dw, T* db,
                            Accumulator<T>* workspace, const TileChoice& choice, Stream stream) {
  if (s.K == 0) return;
  const Pieces pieces(s);
  const int64_t pixels = s.N * s.P * s.Q, taps = s.taps();
  const PieceSums<T> sums{workspace, static_cast<int>(s.K), static_cast<int>(taps)};
  const GradientChannels<T, Gradient> a(s, g);
  if (has_thin_groups(s)) {
    // Neighbouring threads read neighbours in memory: channels, or pixels.
    const int channels = g.channels_adjacent() ? 32 : 1;
    const int64_t channel_blocks = ceil_div(s.K, channels);
    FC_LAUNCH((thin_backward_weight<T, Gradient>), dim3(static_cast<unsigned>(channel_blocks * taps * pieces.count)),
              dim3(thin_threads), stream, a, Patches<T>(s, x), sums, Divisor(s.group_K()), pixels, pieces.pixels,
              static_cast<int>(channel_blocks), channels);
  } else {
    constexpr int width = widest_vector<T>;
    const bool vectors = g.channels_adjacent() && x.channels_last && s.group_K() % width == 0 &&
                         s.group_C() % width == 0 && g.is_aligned() && is_aligned<width>(x.data);
    with_tile<T>(Products{s.group_K(), taps, s.groups * pieces.count}, vectors, choice, [&](auto tile, auto vector) {
      using Tile = decltype(tile);
      // db needs a tile, also without taps.
      Tiling tiling = tiling_of<Tile>(s.group_K(), taps == 0 ? 1 : taps, s.groups, pixels);
      tiling.pieces = static_cast<int>(pieces.count);
      tiling.piece_depth = pieces.pixels;
      tiling.a_rows_adjacent = g.channels_adjacent() && s.K > 1;
      tiling.b_rows_adjacent = x.channels_last && s.C > 1;
      const StoreBackwardWeight<T> epilogue{sums, static_cast<int>(s.group_K()), Tile::rows};
      launch_gemm<Tile, decltype(vector)::value>(a, WeightPatches<T>(s, x), epilogue, tiling, stream);
    });
  }
  FC_LAUNCH(add_pieces<T>, dim3(static_cast<unsigned>(ceil_div(sums.piece_size(), 256))), dim3(256), stream, sums,
            pieces.count, dw.data, Layout::of(s.group_C(), s.R * s.S, dw.channels_last), db, Divisor(taps),
            Divisor(s.group_C()));
}

// g: (N, K, P, Q), x: (N, C, H, W), dw: (K, C / groups, R, S), db: K; workspace: backward_weight_workspace(s).
template <class T>
void launch_conv2d_backward_weight(const Conv2dShape& s, Dense<const T> g, Dense<const T> x, Dense<T> dw, T* db,
                                   Accumulator<T>* workspace, const TileChoice& choice, Stream stream) {
  launch_backward_weight<T>(s, DenseGradient<T>(s, g), x, dw, db, workspace, choice, stream);
}

}  // namespace fastconv::cuda
