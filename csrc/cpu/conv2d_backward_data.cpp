#include <cstring>

#include "activation.h"
#include "conv2d.h"

namespace fastconv::cpu {
namespace {

template <class T>
void backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks<T>(s, s.group_C());

  const Tensor weight_dense = dense(weight);
  const bool krsc = is_nhwc(weight_dense);
  const Tensor packed = empty({kernel.packed_backward_size(s)}, weight, false);
  T* packed_data = mutable_data<T>(packed);
  torch::stable::parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel.pack_weight_backward(s, data<T>(weight_dense), krsc, i, packed_data);
    }
  });

  const Activation<T> g(grad_output);
  const Result<T> dx(grad_input);

  const Tiles tiles(s.N, s.H, s.W, tile_pixels);
  const int64_t parts = splits(tiles, blocks);
  torch::stable::parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const int64_t c0 = blocks.first_channel(first), c1 = blocks.first_channel(last);
      // The outputs that read the tile's rows: from the last row of taps over the first row, to the reverse.
      const int64_t reach_down = (s.R - 1) * s.dilation_h - s.pad_h;
      const int64_t p0 = Range(tile.row, s.H, s.stride_h, reach_down, s.P).begin;
      const int64_t p1 = Range(0, tile.row + tile.rows, s.stride_h, -s.pad_h, s.P).end;
      const int64_t g_rows = p1 > p0 ? p1 - p0 : 0;
      const NhwcView<T> view = g.view(tile.image, tile.images, p0, g_rows, 0, s.Q, 0);
      T* to = dx.tile(tile, 1);
      const int64_t pixels = tile.images * tile.rows * s.W;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        std::memset(to + pixel * s.C + c0, 0, static_cast<size_t>(c1 - c0) * sizeof(T));
      }
      for (int64_t block = first; block < last; ++block) {
        kernel.backward_data(s, view.data, p0, view.strides.image, packed_data, to, tile.images, tile.row, tile.rows,
                             block);
      }
      dx.finish(tile, to, c0, c1);
    }
  });
}

}  // namespace

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                            const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                            bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  dispatch_floating(grad_output, "conv2d_backward_data",
                    [&](auto type) { backward_data<decltype(type)>(s, grad_output, weight, grad_input); });
  return grad_input;
}

}  // namespace fastconv::cpu
