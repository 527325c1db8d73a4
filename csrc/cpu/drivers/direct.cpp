// Multiplies every tap of every pixel (kernels/direct_forward.h, direct_backward.h).
#include "epilogue.h"
#include "forward_tiles.h"
#include "weight_sums.h"

namespace fastconv::cpu {

// With `pool_in_registers`, or without an argmax, the kernels write the results. Otherwise they write a tile of the
// convolution to workspace, and relu_max_pool2d reads it there.
template <class T>
void direct_forward(const Forward& call, bool pool_in_registers) {
  const FusedShape& f = call.shape;
  const Conv2dShape& s = f.conv;
  const Conv2dKernels<T>& kernel = direct_kernels<T>();
  const FusedKernels<T>& fused = kernels().conv2d<T>().fused;
  const bool pools_later = call.argmax && !pool_in_registers;
  const Blocks blocks = channel_blocks<T>(s, s.group_K());
  const Bias<T> bias(call.bias, call.weight);
  const NhwcReader<T> x(call.input);
  const NhwcWriter<T> y(call.output);
  const int64_t pixels = pools_later ? pixels_between_windows(f.pool) : f.window();
  const TileEpilogue<T> epilogue(call);
  const bool in_registers = call.epilogue && call.epilogue->fits_registers(), later = call.epilogue && !in_registers;
  const bool streamed = !call.argmax && !later && y.streamed(s.group_K());
  const int64_t most_parts = pools_later ? 1 : blocks.count();  // a pool needs all channels of a tile
  const Tiles tiles =
      forward_tiles<T>(f, ceil_div(y.tile_pixels(tile_pixels), pixels), ceil_div(least_pixels, pixels), most_parts);
  const ForwardWeight<T> weights(s, call.weight, tiles);
  const int64_t parts = std::min(most_parts, parts_of_tile(tiles, blocks));
  for_each_part(tiles, blocks.count(), parts, [&](const Tile& tile, int64_t first, int64_t last) {
    const Tile rows = convolution_rows(f, tile);
    const InputTile<T> from = input_of(s, x, rows, Workspace::input_tile);
    const int64_t first_pixel = (tile.image * s.P + tile.row) * s.Q;
    const StoredForm<T> form = in_registers ? epilogue.form(first_pixel) : StoredForm<T>{};
    const OutputTile<T> to{y.tile(tile), tile.images, tile.row, tile.rows, streamed, in_registers ? &form : nullptr};
    const PooledTile<T> pooled{to.data, call.argmax_from(tile.image, tile.row), tile.images, tile.row, tile.rows};
    OutputTile<T> conv = to;
    if (pools_later) {
      const int64_t size = rows.images * rows.rows * s.Q * s.K;
      conv = {workspace<T>(Workspace::intermediate, size), rows.images, rows.row, rows.rows};
    }
    for (int64_t block = first; block < last; ++block) {
      const PackedWeight<T> weight = weights.block(block, bias.data);
      if (call.argmax && pool_in_registers) {
        fused.forward(f, from, weight, pooled, block);
      } else {
        kernel.forward(s, from, weight, conv, block);
      }
      if (later) {
        const ChannelRange c{blocks.first_channel(block), blocks.first_channel(block + 1)};
        epilogue.apply(to.data + c.first, s.K, first_pixel, tile.images * tile.rows * s.Q, c);
      }
    }
    if (pools_later) fused.relu_max_pool2d(f.pool, conv, pooled);
    y.finish(tile, to.data, blocks.first_channel(first), blocks.first_channel(last));
  });
}

namespace {

// The gradient of a 1x1 convolution is a forward convolution of grad_output with the transposed weight.
template <class T>
void backward_data_1x1(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                       const Tensor& grad_input) {
  const Conv2dShape turned = turned_around(s);
  const Blocks blocks = channel_blocks<T>(turned, turned.group_K());
  const NhwcReader<T> g(grad_output);
  const NhwcWriter<T> dx(grad_input);
  const bool streamed = dx.streamed(s.group_C());
  const Tiles tiles = forward_tiles<T>(without_pool(turned), dx.tile_pixels(tile_pixels), least_pixels, blocks.count());
  // Packing block by block, as forward does, is slower here: 145 instead of 149 GFLOP/s for 2048->512, one 7x7 image.
  // But workspace of more than 32 MB is freed after each call, so every call would have page faults. dx of a linear
  // layer 4096->4096 with 8 rows: 25 ms if it is packed at once, 9 in ranges (2 threads of Zen 5).
  constexpr int64_t most_bytes = 16 << 20;
  const int64_t block_size = blocks.width * s.group_K();
  const int64_t affordable = std::max<int64_t>(1, most_bytes / (block_size * static_cast<int64_t>(sizeof(T))));
  const int64_t at_once = s.groups == 1 ? std::min(affordable, blocks.count()) : blocks.count();
  for (int64_t begin = 0; begin < blocks.count(); begin += at_once) {
    const int64_t end = std::min(begin + at_once, blocks.count());
    const T* packed = packed_for_backward_data<T>(s, weight, begin, end);
    const PackedWeight<T> range{packed, nullptr, begin * block_size};
    const int64_t parts = std::min(parts_of_tile(tiles, blocks), end - begin);
    for_each_part(tiles, end - begin, parts, [&](const Tile& tile, int64_t first, int64_t last) {
      const InputTile<T> from = input_of(turned, g, tile, Workspace::input_tile);
      const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows, streamed};
      for (int64_t block = begin + first; block < begin + last; ++block) {
        direct_kernels<T>().forward(turned, from, range, to, block);
      }
      dx.finish(tile, to.data, blocks.first_channel(begin + first), blocks.first_channel(begin + last));
    });
  }
}

}  // namespace

template <class T>
void direct_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                          const Tensor& grad_input) {
  const bool one_tap = s.R * s.S == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0;
  if (one_tap) return backward_data_1x1<T>(s, grad_output, weight, grad_input);
  const Conv2dKernels<T>& kernel = direct_kernels<T>();
  const Blocks blocks = channel_blocks<T>(s, s.group_C());
  const T* packed = packed_for_backward_data<T>(s, weight);
  const NhwcReader<T> g(grad_output);
  const NhwcWriter<T> dx(grad_input);
  const FusedShape turned = without_pool(turned_around(s));
  const Tiles tiles = forward_tiles<T>(turned, dx.tile_pixels(tile_pixels), least_pixels, blocks.count());
  const int64_t parts = parts_of_tile(tiles, blocks);
  for_each_part(tiles, blocks.count(), parts, [&](const Tile& tile, int64_t first, int64_t last) {
    const int64_t c0 = blocks.first_channel(first), c1 = blocks.first_channel(last);
    const Rows rows = outputs_that_read(s, {tile.row, tile.rows});
    const InputTile<T> from = g.view(tile.image, tile.images, rows.first, rows.count, 0, s.Q, Workspace::input_tile);
    const GradientTile<T> gradient{from.data, from.strides.image, tile.images, rows.first, rows.count};
    const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows};
    zero_channels(to.data, tile.images * tile.rows * s.W, s.C, c0, c1);
    for (int64_t block = first; block < last; ++block) kernel.backward_data(s, gradient, packed, to, block);
    dx.finish(tile, to.data, c0, c1);
  });
}

template <class T>
void direct_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                            const Tensor& grad_weight, const Tensor& grad_bias) {
  constexpr int64_t pixels = 96;  // x and g stay in the first-level cache while all taps pass over them
  const Conv2dKernels<T>& kernel = direct_kernels<T>();
  const Blocks blocks = channel_blocks<T>(s, s.group_K());
  const int64_t most = affordable_pieces<T>(s);
  const Tiles tiles = tiles_of_pieces(s, pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const int64_t taps = s.taps(), tap_blocks = ceil_div(taps, kernel.block_taps);
  const int64_t units = pieces.count * blocks.count();
  const int64_t parts = std::max<int64_t>(1, std::min(tap_blocks, ceil_div(wanted_pieces, units)));
  const bool read_once = blocks.count() * parts == 1;
  const SummedInput<T> x(s, input, read_once, Workspace::whole_input, Workspace::input_tile);
  const SummedInput<T> g(one_tap(s), grad_output, read_once, Workspace::whole_gradient, Workspace::output_tile);
  pieces.for_each(blocks.count() * parts, [&](int64_t piece, int64_t i) {
    const int64_t part = i % parts, block = i / parts;
    const TapRange range{std::min(taps, tap_blocks * part / parts * kernel.block_taps),
                         std::min(taps, tap_blocks * (part + 1) / parts * kernel.block_taps)};
    WeightSums<T> sums = pieces.at(piece, taps * s.K);
    const int64_t k0 = blocks.first_channel(block), k1 = blocks.first_channel(block + 1);
    zero_channels(sums.weight + range.first * s.K, range.last - range.first, s.K, k0, k1);
    if (part > 0) sums.bias = nullptr;
    if (sums.bias) zero_channels(sums.bias, 1, s.K, k0, k1);
    pieces.for_each_tile(tiles, piece, [&](const Tile& tile) {
      const InputTile<T> from = g.tile(tile);
      const GradientTile<T> gradient{from.data, from.strides.image, tile.images, tile.row, tile.rows};
      kernel.backward_weight(s, x.tile(tile), gradient, sums, range, block);
    });
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(T)                                                                            \
  template void direct_forward<T>(const Forward&, bool);                                                   \
  template void direct_backward_data<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&);  \
  template void direct_backward_weight<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&, \
                                          const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
