// The torch-facing side of kernels/sparse_gradient.h: gradients from the values of grad_output that are not zero.
// Shared by conv2d's backward operators and the fused ones.
#pragma once

#include "activation.h"
#include "algorithms.h"
#include "sums.h"

namespace fastconv::cpu {

// grad_output of a convolution alone, as the kernels want it, if it is so full of zeros that they pay. The argmax lives
// in the calling thread's scratch.
template <class T>
struct LiveGradient {
  Tensor nhwc;
  uint8_t* argmax;
  bool pays;

  // `grad_output` is dense; `below`: the share of live values below which they pay.
  LiveGradient(const Tensor& grad_output, double below)
      : nhwc(grad_output),
        argmax(scratch<uint8_t>(Scratch::argmax, grad_output.numel())),
        pays(mark_zeros<T>(grad_output, argmax) < below) {
    if (!pays || is_nhwc(grad_output)) return;
    nhwc = to_nhwc<T>(grad_output);
    mark_zeros<T>(nhwc, argmax);
  }

  const T* g() const { return data<T>(nhwc); }
};

inline Tiles live_tiles(const FusedShape& f, int64_t pieces) {
  const int64_t pixels = ceil_div(live_weight_pixels, pixels_between_windows(f.pool));
  return Tiles(f.pool.N, f.pool.P, f.pool.Q, pixels, pieces);
}

// The rows of the convolution that a tile of windows may look at.
inline Tile convolution_tile(const FusedShape& f, const Tile& tile) {
  return {tile.image, tile.images, tile.row * f.pool.stride_h,
          reach(tile.rows, f.pool.stride_h, f.pool.R, f.pool.dilation_h)};
}

// g and argmax: NHWC.
template <class T>
void live_backward_weight(const FusedShape& f, const T* g, const uint8_t* argmax, const Tensor& input,
                          const Tensor& grad_weight, const Tensor& grad_bias) {
  const Conv2dShape& s = f.conv;
  const SparseGradientKernels<T>& kernel = kernels().conv2d<T>().sparse_gradient;
  // Channels are independent work, too, and cost no partial sums. But each part reads all of x: with 8 channels a part,
  // AVX2's backward of conv2 of MnistCNN takes 4 % longer.
  constexpr int64_t part_channels = 16;
  const int64_t blocks = ceil_div(s.K, kernel.channels), most_parts = ceil_div(s.K, part_channels);
  const int64_t most = std::min(affordable_pieces<T>(s), ceil_div(wanted_pieces, most_parts));
  const Tiles tiles = live_tiles(f, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const int64_t parts = std::min(most_parts, ceil_div(wanted_pieces, pieces.count));

  const SummedInput<T> x(s, input, parts == 1, Scratch::whole_input, Scratch::tile_in);
  parallel_for(0, pieces.count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, piece = i / parts;
      T* dw = pieces.sums + piece * pieces.size;
      T* db = dw + s.taps() * s.K;
      const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      const int64_t k0 = first * kernel.channels, k1 = std::min(last * kernel.channels, s.K);
      zero_channels(dw + k0 * s.taps(), k1 - k0, s.taps(), 0, s.taps());
      zero_channels(db, 1, s.K, k0, k1);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t], rows = convolution_tile(f, tile);
        const InputTile<T> from = x.tile(rows);
        const int64_t window = (tile.image * f.pool.P + tile.row) * f.pool.Q * s.K;
        const SparseGradientTile<T> gradient = {g + window, argmax + window, tile.images, tile.row, tile.rows};
        const int64_t size = kernel.list_size(f, tile.images * tile.rows * f.pool.Q);
        const NonZeroList<T> list = {scratch<Offset<T>>(Scratch::list, size), scratch<T>(Scratch::list_values, size)};
        for (int64_t block = first; block < last; ++block) {
          kernel.backward_weight(f, from, gradient, {dw, db}, block * kernel.channels, list);
        }
      }
    }
  });
  pieces.finish_krsc(s, grad_weight, grad_bias);
}

// For few input channels (kernels/few_channels.h).
template <class T>
void narrow_backward_weight(const FusedShape& f, const T* g, const uint8_t* argmax, const Tensor& input,
                            const Tensor& grad_weight, const Tensor& grad_bias) {
  const Conv2dShape& s = f.conv;
  const FewChannelsKernels<T>& kernel = kernels().conv2d<T>().few_channels;
  const int64_t most = affordable_pieces<T>(s);
  const Tiles tiles(f.pool.N, f.pool.P, f.pool.Q, tile_pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const SummedInput<T> x(s, input, true, Scratch::whole_input, Scratch::tile_in);
  parallel_for(0, pieces.count, 1, [&](int64_t begin, int64_t end) {
    T* patches = scratch<T>(Scratch::unit, kernel.workspace_size(f));
    for (int64_t piece = begin; piece < end; ++piece) {
      T* dw = pieces.sums + piece * pieces.size;
      zero_channels(dw, 1, pieces.size, 0, pieces.size);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t], rows = convolution_tile(f, tile);
        const int64_t window = (tile.image * f.pool.P + tile.row) * f.pool.Q * s.K;
        const SparseGradientTile<T> gradient = {g + window, argmax + window, tile.images, tile.row, tile.rows};
        kernel.backward_weight(f, x.tile(rows), gradient, {dw, dw + s.taps() * s.K}, patches);
      }
    }
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

// The windows that reach a tile's rows: the first by its last row of taps, the last by its first.
inline Range windows_above(const FusedShape& f, const Range& rows) {
  const Pool2dShape& pool = f.pool;
  const int64_t last_tap = (pool.R - 1) * pool.dilation_h - pool.pad_h;
  const Range from_last_tap(rows.begin, rows.end, pool.stride_h, last_tap, pool.P);
  Range windows(0, rows.end, pool.stride_h, -pool.pad_h, pool.P);
  windows.begin = std::min(from_last_tap.begin, windows.end);
  return windows;
}

// Runs compute(tile, windows, to, list) for each tile of dx; list_size(f, windows): elements that its lists need.
template <class T, class Compute>
void for_each_live_tile(const FusedShape& f, const Tensor& grad_input, int64_t (*list_size)(const FusedShape&, int64_t),
                        const Compute& compute) {
  const Conv2dShape& s = f.conv;
  const Result<T> dx(grad_input);
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(live_data_pixels));
  parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i];
      const Range windows = windows_above(f, rows_above(s, tile));
      const OutputTile<T> to = {dx.tile(tile), tile.images, tile.row, tile.rows};
      zero_channels(to.data, tile.images * tile.rows * s.W, s.C, 0, s.C);
      const int64_t size = list_size(f, tile.images * (windows.end - windows.begin) * f.pool.Q);
      const NonZeroList<T> list = {scratch<Offset<T>>(Scratch::list, size), scratch<T>(Scratch::list_values, size)};
      compute(tile, windows, to, list);
      dx.finish(tile, to.data, 0, s.C);
    }
  });
}

// g and argmax: NHWC.
template <class T>
void live_backward_data(const FusedShape& f, const T* g, const uint8_t* argmax, const Tensor& weight,
                        const Tensor& grad_input) {
  const Conv2dShape& s = f.conv;
  const SparseGradientKernels<T>& kernel = kernels().conv2d<T>().sparse_gradient;
  const SparseGradient3x3Kernels<T>& patch = kernels().conv2d<T>().sparse_gradient_3x3;
  const Tensor krsc = to_nhwc<T>(weight);
  const T* w = data<T>(krsc);
  const bool by_patch = patch.supports(f) && !never(Algorithm::patch);
  if (by_patch) {
    T* packed = scratch<T>(Scratch::weight, patch.packed_size(s));
    parallel_for(0, s.K, ceil_div(32768, s.taps()),
                 [&](int64_t begin, int64_t end) { patch.pack_weight(s, data<T>(krsc), begin, end, packed); });
    w = packed;
  }
  const auto run = by_patch ? patch.backward_data : kernel.backward_data;
  for_each_live_tile<T>(
      f, grad_input, by_patch ? patch.list_size : kernel.list_size,
      [&](const Tile& tile, const Range& windows, const OutputTile<T>& to, const NonZeroList<T>& list) {
        const int64_t window = (tile.image * f.pool.P + windows.begin) * f.pool.Q * s.K;
        run(f, {g + window, argmax + window, tile.images, windows.begin, windows.end - windows.begin}, w, to, list);
      });
}

}  // namespace fastconv::cpu
