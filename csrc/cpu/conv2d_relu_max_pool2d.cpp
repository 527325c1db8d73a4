#include "conv2d_relu_max_pool2d.h"

#include "activation.h"
#include "algorithms.h"
#include "bands.h"
#include "dot.h"
#include "packed_weights.h"
#include "reduced.h"
#include "winograd.h"

namespace fastconv::cpu {
namespace {

// Windows pooled in registers.
template <class T>
void direct_forward(const FusedShape& f, const Tensor& input, const T* packed, const T* bias, const Tensor& output,
                    uint8_t* argmax) {
  const Conv2dShape& s = f.conv;
  const FusedKernels<T>& kernel = kernels().conv2d<T>().fused;
  const Blocks blocks = channel_blocks(conv2d_kernels<T>(s), s, s.group_K());
  const Activation<T> x(input);
  const Result<T> y(output);
  const Tiles tiles(s.N, f.pool.P, f.pool.Q, ceil_div(y.tile_pixels(tile_pixels), f.window()));
  const int64_t parts = splits(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const int64_t row = tile.row * f.pool.R, rows = tile.rows * f.pool.R;
      const InputTile<T> view =
          x.view(tile.image, tile.images, row * s.stride_h - s.pad_h, reach(rows, s.stride_h, s.R, s.dilation_h),
                 -s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w), Scratch::tile_in);
      uint8_t* at = argmax + (tile.image * f.pool.P + tile.row) * f.pool.Q * s.K;
      const PooledTile<T> to = {y.tile(tile), at, tile.images, tile.row, tile.rows};
      for (int64_t block = first; block < last; ++block) kernel.forward(f, view, {packed, bias}, to, block);
      y.finish(tile, to.data, blocks.first_channel(first), blocks.first_channel(last));
    }
  });
}

// Any pool and any groups: a tile of the convolution's results stays in the thread's scratch.
template <class T>
void tiled_forward(const FusedShape& f, const Tensor& input, const T* packed, const T* bias, const Tensor& output,
                   uint8_t* argmax) {
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  const Activation<T> x(input);
  const Result<T> y(output);
  const Tiles tiles(s.N, pool.P, pool.Q, ceil_div(y.tile_pixels(tile_pixels), pixels_between_windows(pool)));
  parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i];
      const int64_t start = tile.row * pool.stride_h - pool.pad_h;
      const int64_t row = std::clamp<int64_t>(start, 0, s.P);
      const int64_t row_end =
          std::clamp<int64_t>(start + reach(tile.rows, pool.stride_h, pool.R, pool.dilation_h), row, s.P);
      const InputTile<T> view = x.view(tile.image, tile.images, row * s.stride_h - s.pad_h,
                                       reach(row_end - row, s.stride_h, s.R, s.dilation_h), -s.pad_w,
                                       reach(s.Q, s.stride_w, s.S, s.dilation_w), Scratch::tile_in);
      T* results = scratch<T>(Scratch::unit, tile.images * (row_end - row) * s.Q * s.K);
      const OutputTile<T> conv = {results, tile.images, row, row_end - row};
      for (int64_t block = 0; block < blocks.count(); ++block) kernel.forward(s, view, {packed, bias}, conv, block);
      uint8_t* at = argmax + (tile.image * pool.P + tile.row) * pool.Q * s.K;
      const PooledTile<T> to = {y.tile(tile), at, tile.images, tile.row, tile.rows};
      kernels().conv2d<T>().fused.relu_max_pool2d(pool, conv, to);
      y.finish(tile, to.data, 0, s.K);
    }
  });
}

template <class T>
void forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& output, uint8_t* argmax) {
  const Bias<T> b(bias, weight);
  if (dot_serves(f.conv, weight)) {
    const WholeResult<T> y(output);
    T* conv = scratch<T>(Scratch::whole_grad, f.conv.N * f.conv.P * f.conv.Q * f.conv.K);
    dot_forward<T>(f.conv, input, weight, b.data, conv);
    kernels().conv2d<T>().fused.relu_max_pool2d(f.pool, {conv, f.conv.N, 0, f.conv.P},
                                                {y.data(), argmax, f.conv.N, 0, f.pool.P});
    return y.finish();
  }
  const auto cut = winograd_serves(f);
  if (!cut) {
    const auto run = window_kernel_serves(f) ? direct_forward<T> : tiled_forward<T>;
    return run(f, input, direct_weight<T>(f.conv, weight).get(), b.data, output, argmax);
  }
  const WholeResult<T> y(output);
  const WinogradPlan plan = winograd_plan<T>(f, *cut);
  const auto transformed = winograd_weight<T>(f, plan, weight);
  const auto spoilt = winograd_forward<T>(f, plan, input, transformed.get(), b.data, y.data(), argmax);
  y.finish();
  if (spoilt.empty()) return;
  const auto packed = direct_weight<T>(f.conv, weight);
  FusedShape one = f;
  one.conv.N = one.pool.N = 1;
  const int64_t size = f.conv.K * f.pool.P * f.pool.Q;
  for (const int64_t n : spoilt) {
    direct_forward<T>(one, image(input, n), packed.get(), b.data, image(output, n), argmax + n * size);
  }
}

void forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& output, const Tensor& argmax) {
  dispatch_floating(input, "conv2d_relu_max_pool2d", [&](auto type) {
    forward<decltype(type)>(f, input, weight, bias, output, mutable_data<uint8_t>(argmax));
  });
}

}  // namespace

Fused fused_forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const bool channels_last = input.numel() > 0 && (suggests_channels_last(input) || suggests_channels_last(weight));
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, channels_last);
  const Tensor argmax = empty(sizes, input, true, ScalarType::Byte);
  if (output.numel() == 0) return {output, argmax};
  if (is_reduced(input)) {
    const Tensor w = widened(weight, Scratch::wide_weight);
    const auto b = widened(bias, Scratch::wide_bias);
    for_each_band(f, true, wide_limits, [&](const FusedBand& band) {
      const Tensor x = part_of(input, band.images, band.input);
      compute_wide(part_of(output, band.images, band.windows), Scratch::wide_result, [&](const Tensor& wide) {
        forward(band.shape, widened(x, Scratch::wide_input), w, b, wide, part_of(argmax, band.images, band.windows));
      });
    });
  } else {
    forward(f, input, weight, bias, output, argmax);
  }
  return {output, argmax};
}

}  // namespace fastconv::cpu
