// Multiplies every tap of every pixel (kernels/direct_forward.h, direct_backward.h).
#include "../memory/packed_weights.h"
#include "../memory/reduced.h"
#include "../plan.h"
#include "epilogue.h"
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t least_pixels = 24;  // of a tile: two register blocks of AVX-512

// The tiles of a forward call without a large weight. If there are few tiles and few blocks of channels, images are cut
// into more tiles, of `least` pixels or more, until there are 8 units of work and an even number of them, or 16.
// Microseconds without / with that, one image, 2 threads of Zen 4 (10 of them for the call from Python):
//   96->24 1x1, 32x32    72 / 45        144->24    101 / 60        24->144    70 / 54        192->32, 16x16    43 / 30
//   384->96 1x1, 8x8     51 / 42        576->96     70 / 54
Tiles small_tiles(const FusedShape& f, int64_t pixels, int64_t least, int64_t blocks) {
  const int64_t image = f.pool.P * f.pool.Q;
  for (;;) {
    const Tiles tiles(f.conv.N, f.pool.P, f.pool.Q, pixels);
    const int64_t units = tiles.count() * blocks, in_image = ceil_div(tiles.count(), f.conv.N);
    if (units >= wanted_pieces || (units >= 8 && units % 2 == 0)) return tiles;
    if (image < 2 * in_image * least || f.pool.P < 2 * in_image) return tiles;
    pixels = ceil_div(image, 4 * in_image);
  }
}

// The tiles of a forward call. Each tile can be divided into up to `parts` parts that run in parallel. If the weight is
// large, there are fewer and larger tiles, with up to 512 KB of input, because each tile reads the whole weight.
// GFLOP/s with 16 small tiles / with these tiles, batch of 8, 2 threads of Zen 4:
//   512->2048 1x1, 7x7    171 / 197        1024->1024 1x1, 7x7    163 / 179        256->512 3x3 /2, 14x14    179 / 195
template <class T>
Tiles forward_tiles(const FusedShape& f, int64_t pixels, int64_t least, int64_t parts) {
  const Conv2dShape& s = f.conv;
  if (!has_large_weight(s)) return small_tiles(f, pixels, least, parts);
  const int64_t pixel_bytes = s.C * s.stride_h * s.stride_w * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max<int64_t>(48, 512 * 1024 / pixel_bytes);
  return {s.N, f.pool.P, f.pool.Q, std::min(pixels, most), std::max<int64_t>(2, ceil_div(wanted_pieces, parts))};
}

// The packed weight of a forward call. If there are only one or two tiles, the weight is packed block by block, just
// before its use. So it is read from memory only once, and not compared with a copy in the cache. GFLOP/s with a packed
// weight from the cache / packed by block, one image, 2 threads of Zen 4:
//   512->2048 1x1, 7x7    105 / 161        1024->1024    81 / 151        512->512 3x3, 8x8    159 / 180
// Weights of 0.2 to 0.6 MB that are not in the CPU's caches take 0.85 to 0.9 of the time. Packing a small weight that
// is NCHW in memory takes longer, so it is cached.
template <class T>
class ForwardWeight {
 public:
  ForwardWeight(const Conv2dShape& s, const Tensor& weight, const Tiles& tiles)
      : s_(s),
        blocks_(channel_blocks<T>(s, s.group_K())),
        plain_(dense(weight)),
        by_block_(tiles.count() <= 2 && s.groups == 1 && (has_large_weight(s) || is_nhwc(plain_)) &&
                  !is_frozen(weight)) {
    if (!by_block_) whole_ = packed_for_direct<T>(s, plain_);
  }

  PackedWeight<T> block(int64_t index, const T* bias) const {
    if (!by_block_) return {whole_.get(), bias};
    const int64_t k = blocks_.first_channel(index), taps = s_.taps();
    Conv2dShape part = s_;
    part.K = std::min(blocks_.width, s_.K - k);
    T* packed = workspace<T>(Workspace::weight_block, direct_kernels<T>().packed_forward_size(part));
    direct_kernels<T>().pack_weight_forward(part, data<T>(plain_) + k * taps, is_nhwc(plain_), 0, packed);
    return {packed, bias, k * taps};
  }

 private:
  const Conv2dShape& s_;
  Blocks blocks_;
  Tensor plain_;
  bool by_block_;
  std::shared_ptr<const T> whole_;
};

}  // namespace

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
  const bool in_registers = epilogue.fits_registers(), later = call.epilogue && !in_registers;
  const bool streamed = !call.argmax && !later && y.streamed(s.group_K());
  const int64_t most_parts = pools_later ? 1 : blocks.count();  // a pool needs all channels of a tile
  const Tiles tiles =
      forward_tiles<T>(f, ceil_div(y.tile_pixels(tile_pixels), pixels), ceil_div(least_pixels, pixels), most_parts);
  const ForwardWeight<T> weights(s, call.weight, tiles);
  const int64_t parts = std::min(most_parts, parts_of_tile(tiles, blocks));
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts], rows = convolution_rows(f, tile);
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
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
    }
  });
}

namespace {

// The tensor as pairs of adjacent channels, each in the place of a float32. It is NHWC and has an even number of
// channels.
Tensor as_pairs(const Tensor& tensor) {
  const int64_t C = tensor.size(1) / 2, H = tensor.size(2), W = tensor.size(3);
  return torch::stable::from_blob(const_cast<void*>(tensor.const_data_ptr()), {tensor.size(0), C, H, W},
                                  {H * W * C, 1, W * C, C}, tensor.device(), ScalarType::Float);
}

}  // namespace

void pairs_forward(const Forward& call) {
  Conv2dShape s = call.shape.conv;
  s.C /= 2;
  const Tensor input = as_pairs(call.input), weight = as_pairs(ordered(call.weight, true));
  const std::optional<Tensor> wide_bias = widened(call.bias, Workspace::wide_bias);
  const Blocks blocks = channel_blocks<float>(s, s.K);
  const Bias<float> bias(wide_bias, weight);
  const NhwcReader<float> x(input);
  const NhwcWriter<uint16_t> y(call.output);
  const bool streamed = y.streamed(s.K);
  const Tiles tiles = forward_tiles<float>(without_pool(s), y.tile_pixels(tile_pixels), least_pixels, blocks.count());
  const ForwardWeight<float> weights(s, weight, tiles);
  const int64_t parts = parts_of_tile(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const InputTile<float> from = input_of(s, x, tile, Workspace::input_tile);
      const OutputTile<uint16_t> to{y.tile(tile), tile.images, tile.row, tile.rows, streamed};
      for (int64_t block = first; block < last; ++block) {
        pairs_kernels()->forward(s, from, weights.block(block, bias.data), to, block);
      }
    }
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
  // Packing it block by block, as forward does, is not faster here: 2048->512, 7x7, one image: 149 / 145 GFLOP/s.
  const T* packed = packed_for_backward_data<T>(s, weight);
  const int64_t parts = parts_of_tile(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const InputTile<T> from = input_of(turned, g, tile, Workspace::input_tile);
      const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows, streamed};
      for (int64_t block = first; block < last; ++block) {
        direct_kernels<T>().forward(turned, from, {packed, nullptr}, to, block);
      }
      dx.finish(tile, to.data, blocks.first_channel(first), blocks.first_channel(last));
    }
  });
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
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(tile_pixels));
  const int64_t parts = parts_of_tile(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const int64_t c0 = blocks.first_channel(first), c1 = blocks.first_channel(last);
      const Rows rows = outputs_that_read(s, {tile.row, tile.rows});
      const InputTile<T> from = g.view(tile.image, tile.images, rows.first, rows.count, 0, s.Q, Workspace::input_tile);
      const GradientTile<T> gradient{from.data, from.strides.image, tile.images, rows.first, rows.count};
      const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows};
      zero_channels(to.data, tile.images * tile.rows * s.W, s.C, c0, c1);
      for (int64_t block = first; block < last; ++block) kernel.backward_data(s, gradient, packed, to, block);
      dx.finish(tile, to.data, c0, c1);
    }
  });
}

template <class T>
void direct_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                            const Tensor& grad_weight, const Tensor& grad_bias) {
  constexpr int64_t pixels = 96;  // x and g stay in the first-level cache while all taps pass over them
  const Conv2dKernels<T>& kernel = direct_kernels<T>();
  const Blocks blocks = channel_blocks<T>(s, s.group_K());
  const int64_t most = affordable_pieces<T>(s);
  const Tiles tiles(s.N, s.P, s.Q, pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const int64_t taps = s.taps(), tap_blocks = ceil_div(taps, kernel.block_taps);
  const int64_t units = pieces.count * blocks.count();
  const int64_t parts = std::max<int64_t>(1, std::min(tap_blocks, ceil_div(wanted_pieces, units)));
  const bool read_once = blocks.count() * parts == 1;
  const SummedInput<T> x(s, input, read_once, Workspace::whole_input, Workspace::input_tile);
  const SummedInput<T> g(one_tap(s), grad_output, read_once, Workspace::whole_gradient, Workspace::output_tile);
  parallel_for(0, units * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, block = i / parts % blocks.count(), piece = i / parts / blocks.count();
      const TapRange range{std::min(taps, tap_blocks * part / parts * kernel.block_taps),
                           std::min(taps, tap_blocks * (part + 1) / parts * kernel.block_taps)};
      WeightSums<T> sums = pieces.at(piece, taps * s.K);
      const int64_t k0 = blocks.first_channel(block), k1 = blocks.first_channel(block + 1);
      zero_channels(sums.weight + range.first * s.K, range.last - range.first, s.K, k0, k1);
      if (part > 0) sums.bias = nullptr;
      if (sums.bias) zero_channels(sums.bias, 1, s.K, k0, k1);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const InputTile<T> from = g.tile(tile);
        const GradientTile<T> gradient{from.data, from.strides.image, tile.images, tile.row, tile.rows};
        kernel.backward_weight(s, x.tile(tile), gradient, sums, range, block);
      }
    }
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
