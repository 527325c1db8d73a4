// y[n, p, q, k] = b[k] + sum over r, s, c of x[n, p * u + r, q * v + s, c] * w[k, r, s, c]
//
// ReLU and max-pooling may follow. The tiles are pixels x output channels (gemm.cuh).
//
// With pooling, a tile holds whole windows, one after another: 64 rows hold 16 windows of 2 x 2. The block reads the
// sums from shared memory, and writes each window's maximum and its position. Overlapping windows compute their common
// pixels again. If a pixel would be computed more than three times, or if a window has more than 16 pixels, the
// convolution goes to a workspace, and a second kernel pools it.
//
// docs/explanation/cuda.md has measured times and estimates.
#pragma once

#include "conv2d_operands.cuh"
#include "conv2d_results.cuh"
#include "conv2d_thin_groups.cuh"
#include "conv2d_tiles.cuh"

namespace fastconv::cuda {

template <class T>
struct StoreForward {
  static constexpr bool wants_row_sums = false;

  ForwardResult<T> to;
  int group_K, windows;  // windows per tile

  // Neighbouring threads write neighbours in memory. In argmax these are channels, in y channels or windows.
  template <int columns, class Sums, class Row>
  __device__ void store(const Part& part, Sums& sums, const Row* rows) const {
    const bool alone = to.argmax == nullptr;
    for_each<columns>(part, !alone || to.channels_adjacent, [&](int64_t window, int k, int row, int column) {
      auto& sum = sums[row][column];
      if (alone) {
        *to.output(window, k) = to.with_bias(sum, k);
        return;
      }
      WindowMax<T> max;
      for (int position = 0; position < to.positions; ++position) {
        if (rows[row + position].exists()) max.take(to.with_bias(sums[row + position][column], k), position);
      }
      *to.place(window, k) = max.place();
      if (to.channels_adjacent) {
        *to.output(window, k) = max.above_zero();
      } else {
        sum = static_cast<Accumulator<T>>(max.above_zero());
      }
    });
    if (alone || to.channels_adjacent) return;
    __syncthreads();
    for_each<columns>(part, false, [&](int64_t window, int k, int row, int column) {
      *to.output(window, k) = static_cast<T>(sums[row][column]);
    });
  }

  template <class Acc>
  __device__ void store_row_sum(const Part&, int, Acc) const {}

 private:
  // Runs f(window, k, the window's first row in the tile, column) for the thread's share of the tile.
  template <int columns, class F>
  __device__ void for_each(const Part& part, bool by_channels, const F& f) const {
    const int64_t first_window = part.first_row / to.positions;
    for (int i = threadIdx.x; i < windows * columns; i += blockDim.x) {
      const int column = by_channels ? i % columns : i / windows;
      const int window = by_channels ? i / columns : i % windows;
      if (first_window + window >= to.windows || part.first_column + column >= group_K) continue;
      f(first_window + window, part.group * group_K + part.first_column + column, window * to.positions, column);
    }
  }
};

template <class T, class Tile, int V>
void launch_forward_tiles(const FusedShape& f, Dense<const T> x, Dense<const T> w, const ForwardResult<T>& result,
                          Stream stream) {
  const Conv2dShape& s = f.conv;
  const int positions = static_cast<int>(f.window());
  Tiling tiling =
      tiling_of<Tile>(f.windows() * positions, s.group_K(), s.groups, s.taps(), Tile::rows / positions * positions);
  tiling.a_rows_adjacent = !x.channels_last || s.group_C() < Tile::depth;
  const ForwardPatches<T> a{Patches<T>(s, x), Windows(f.pool)};
  const ForwardWeight<T> b(s, w);
  const StoreForward<T> epilogue{result, static_cast<int>(s.group_K()), Tile::rows / positions};
  launch_gemm<Tile, V>(a, b, epilogue, tiling, stream);
}

// Returns whether the block that computes a window's pixels also pools them.
inline bool pools_in_tile(const FusedShape& f) {
  return f.window() <= 16 && f.window() <= 3 * f.pool.stride_h * f.pool.stride_w;
}

// The number of elements of the workspace for the convolution's results, in launch_conv2d_relu_max_pool2d.
inline int64_t forward_workspace(const FusedShape& f) {
  if (pools_in_tile(f) || has_thin_groups(f.conv)) return 0;
  return f.conv.N * f.conv.K * f.conv.P * f.conv.Q;
}

template <class T>
void launch_forward(const FusedShape& f, Dense<const T> x, Dense<const T> w, const ForwardResult<T>& result,
                    const TileChoice& choice, Stream stream) {
  const Conv2dShape& s = f.conv;
  if (f.windows() == 0 || s.K == 0) return;
  if (has_thin_groups(s)) {
    launch_thin_forward<T>(f, x, w, result, stream);
    return;
  }
  constexpr int width = widest_vector<T>;
  const bool vectors = x.channels_last && w.channels_last && s.group_C() % width == 0 && is_aligned<width>(x.data) &&
                       is_aligned<width>(w.data);
  with_tile<T>(Products{f.windows() * f.window(), s.group_K(), s.groups}, vectors, choice, [&](auto tile, auto vector) {
    launch_forward_tiles<T, decltype(tile), decltype(vector)::value>(f, x, w, result, stream);
  });
}

// The instantiations of launch_forward. conv2d.cu compiles them, and conv2d_relu_max_pool2d.cu uses them too.
#define FC_FORWARD_KERNELS(instantiate)      \
  FC_FORWARD_KERNELS_OF(instantiate, float)  \
  FC_FORWARD_KERNELS_OF(instantiate, double) \
  FC_FORWARD_KERNELS_OF(instantiate, half)   \
  FC_FORWARD_KERNELS_OF(instantiate, bf16)
#define FC_FORWARD_KERNELS_OF(instantiate, T)                                                                    \
  instantiate void launch_forward<T>(const FusedShape&, Dense<const T>, Dense<const T>, const ForwardResult<T>&, \
                                     const TileChoice&, Stream);

// x: (N, C, H, W), w: (K, C / groups, R, S), bias: K values or null, y: (N, K, P, Q).
template <class T>
void launch_conv2d(const Conv2dShape& s, Dense<const T> x, Dense<const T> w, const T* bias, Dense<T> y,
                   const TileChoice& choice, Stream stream) {
  const FusedShape f = without_pool(s);
  launch_forward<T>(f, x, w, ForwardResult<T>(f, bias, y, nullptr), choice, stream);
}

// One thread per window and channel. conv has the convolution's results, NHWC.
template <class T>
__global__ void __launch_bounds__(256) relu_max_pool2d(const T* conv, Windows windows, ForwardResult<T> to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= to.windows * to.K) return;
  const PixelAndChannel at(i, to.by_image, to.by_K, to.channels_adjacent);
  WindowMax<T> max;
  for (int position = 0; position < to.positions; ++position) {
    const Windows::Pixel pixel = windows.pixel(at.pixel, position);
    if (pixel.p < 0) continue;
    const int64_t row = static_cast<int64_t>(pixel.n) * windows.P + pixel.p;
    max.take(conv[(row * windows.Q + pixel.q) * to.K + at.channel], position);
  }
  to.store(at.pixel, at.channel, max);
}

// y and argmax: (N, K, P', Q'), where argmax is NHWC. workspace: forward_workspace(f) elements.
template <class T>
void launch_conv2d_relu_max_pool2d(const FusedShape& f, Dense<const T> x, Dense<const T> w, const T* bias, Dense<T> y,
                                   uint8_t* argmax, T* workspace, const TileChoice& choice, Stream stream) {
  const ForwardResult<T> result(f, bias, y, argmax);
  if (forward_workspace(f) == 0) {
    launch_forward<T>(f, x, w, result, choice, stream);
    return;
  }
  if (f.windows() == 0) return;
  launch_conv2d<T>(f.conv, x, w, bias, Dense<T>{workspace, true}, choice, stream);
  FC_LAUNCH(relu_max_pool2d<T>, dim3(static_cast<unsigned>(ceil_div(f.windows() * f.conv.K, 256))), dim3(256), stream,
            workspace, Windows(f.pool), result);
}

}  // namespace fastconv::cuda
