#include <algorithm>
#include <cstring>

#include "activation.h"
#include "conv2d.h"
#include "conv2d_zeros.h"

namespace fastconv::cpu {
namespace {

// The outputs that read a tile's rows: from the last row of taps over its first row, to the first over its last.
Range rows_above(const Conv2dShape& s, const Tile& tile) {
  const Range from_last_tap(tile.row, s.H, s.stride_h, (s.R - 1) * s.dilation_h - s.pad_h, s.P);
  Range rows(0, tile.row + tile.rows, s.stride_h, -s.pad_h, s.P);
  rows.begin = std::min(from_last_tap.begin, rows.end);
  return rows;
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

template <class T>
void dense_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_C());

  const bool krsc = is_nhwc(weight);
  T* packed = scratch<T>(Scratch::weight, kernel.packed_backward_size(s));
  torch::stable::parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.pack_weight_backward(s, data<T>(weight), krsc, i, packed);
  });

  const Activation<T> g(grad_output);
  const Result<T> dx(grad_input);
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(tile_pixels));
  const int64_t parts = splits(tiles, blocks);
  torch::stable::parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const int64_t c0 = blocks.first_channel(first), c1 = blocks.first_channel(last);
      const Range rows = rows_above(s, tile);
      const NhwcView<T> view =
          g.view(tile.image, tile.images, rows.begin, rows.end - rows.begin, 0, s.Q, Scratch::tile_in);
      T* to = dx.tile(tile);
      zero_channels(to, tile.images * tile.rows * s.W, s.C, c0, c1);
      for (int64_t block = first; block < last; ++block) {
        kernel.backward_data(s, view.data, rows.begin, view.strides.image, packed, to, tile.images, tile.row, tile.rows,
                             block);
      }
      dx.finish(tile, to, c0, c1);
    }
  });
}

template <class T>
void sparse_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                          const Tensor& grad_input) {
  const SparseConv2dKernels<T>& kernel = kernels().conv2d<T>().sparse;
  const Activation<T> w(weight), g(grad_output);  // an NHWC view of the weight is KRSC
  const T* krsc = nullptr;
  if (w.readable_in_place(0, s.R, 0, s.S)) {
    krsc = w.in_place(0, 0, 0).data;
  } else {
    T* to = scratch<T>(Scratch::weight, weight.numel());
    torch::stable::parallel_for(0, s.K, 16, [&](int64_t begin, int64_t end) {
      w.copy(begin, end - begin, 0, s.R, 0, s.S, to + begin * s.taps());
    });
    krsc = to;
  }

  const Result<T> dx(grad_input);
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(sparse_tile_pixels));
  torch::stable::parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i];
      const Range rows = rows_above(s, tile);
      const NhwcView<T> view =
          g.view(tile.image, tile.images, rows.begin, rows.end - rows.begin, 0, s.Q, Scratch::tile_in);
      T* to = dx.tile(tile);
      zero_channels(to, tile.images * tile.rows * s.W, s.C, 0, s.C);
      const int64_t g_rows = rows.end - rows.begin, size = kernel.list_size(s, tile.images * g_rows * s.Q);
      kernel.backward_data(s, view.data, rows.begin, g_rows, view.strides.image, krsc, to, tile.images, tile.row,
                           tile.rows, scratch<int64_t>(Scratch::list, size), scratch<T>(Scratch::list, size));
      dx.finish(tile, to, 0, s.C);
    }
  });
}

template <class T>
void backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input) {
  const Tensor g = dense(grad_output), w = dense(weight);
  const auto run = zeros_pay<T>(s, g, w) ? sparse_backward_data<T> : dense_backward_data<T>;
  run(s, g, w, grad_input);
}

}  // namespace

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s = check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  dispatch_floating(grad_output, "conv2d_backward_data",
                    [&](auto type) { backward_data<decltype(type)>(s, grad_output, weight, grad_input); });
  return grad_input;
}

}  // namespace fastconv::cpu
