// dx[n, h, w, c] = sum over r, s, k of g[n, p, q, k] * w[k, r, s, c] where p * u + r = h, q * v + s = w
//
// The tiles are input pixels x input channels (gemm.cuh). One thread gathers each result and writes it once. g is the
// gradient of the convolution's results, given or computed through ReLU and max-pooling (conv2d_gradient.cuh).
#pragma once

#include "conv2d_operands.cuh"
#include "conv2d_results.cuh"
#include "conv2d_thin_groups.cuh"
#include "conv2d_tiles.cuh"

namespace fastconv::cuda {

template <class T>
struct StoreBackwardData {
  static constexpr bool wants_row_sums = false;

  DataResult<T> to;
  int group_C, rows_per_tile;
  int64_t pixels;

  template <int columns, class Sums, class Row>
  __device__ void store(const Part& part, const Sums& sums, const Row*) const {
    for (int i = threadIdx.x; i < rows_per_tile * columns; i += blockDim.x) {
      const int column = to.channels_adjacent ? i % columns : i / rows_per_tile;
      const int row = to.channels_adjacent ? i / columns : i % rows_per_tile;
      const int c = part.first_column + column;
      if (part.first_row + row >= pixels || c >= group_C) continue;
      *to.at(part.first_row + row, part.group * group_C + c) = static_cast<T>(sums[row][column]);
    }
  }

  template <class Acc>
  __device__ void store_row_sum(const Part&, int, Acc) const {}
};

template <class T, class Gradient>
void launch_backward_data(const Conv2dShape& s, const Gradient& g, Dense<const T> w, Dense<T> dx,
                          const TileChoice& choice, Stream stream) {
  const int64_t pixels = s.N * s.H * s.W;
  if (pixels * s.C == 0) return;
  const DataResult<T> to(s, dx);
  const GradientPatches<T, Gradient> a(s, g);
  const BackwardWeight<T> b(s, w);
  if (has_thin_groups(s)) {
    FC_LAUNCH((thin_backward_data<T, Gradient>), thin_grid(pixels * s.C), dim3(thin_threads), stream, a, b, to,
              Divisor(s.group_C()), static_cast<int>(s.R));
    return;
  }
  constexpr int width = widest_vector<T>;
  const bool vectors = g.channels_adjacent() && w.channels_last && s.group_K() % width == 0 &&
                       s.group_C() % width == 0 && g.is_aligned() && is_aligned<width>(w.data);
  with_tile<T>(Products{pixels, s.group_C(), s.groups}, vectors, choice, [&](auto tile, auto vector) {
    using Tile = decltype(tile);
    Tiling tiling = tiling_of<Tile>(pixels, s.group_C(), s.groups, s.R * s.S * s.group_K());
    tiling.a_rows_adjacent = !g.channels_adjacent() || s.group_K() < Tile::depth;
    tiling.b_rows_adjacent = w.channels_last;
    const StoreBackwardData<T> epilogue{to, static_cast<int>(s.group_C()), Tile::rows, pixels};
    launch_gemm<Tile, decltype(vector)::value>(a, b, epilogue, tiling, stream);
  });
}

// g: (N, K, P, Q), w: (K, C / groups, R, S), dx: (N, C, H, W).
template <class T>
void launch_conv2d_backward_data(const Conv2dShape& s, Dense<const T> g, Dense<const T> w, Dense<T> dx,
                                 const TileChoice& choice, Stream stream) {
  launch_backward_data<T>(s, DenseGradient<T>(s, g), w, dx, choice, stream);
}

}  // namespace fastconv::cuda
