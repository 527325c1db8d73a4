#include "conv2d.h"

#include "activation.h"
#include "algorithms.h"
#include "bands.h"
#include "dot.h"
#include "packed_weights.h"
#include "reduced.h"
#include "winograd.h"

namespace fastconv::cpu {
namespace {

template <class T>
void direct_forward(const Conv2dShape& s, const Tensor& input, const T* packed, const T* bias, const Tensor& output) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  const Activation<T> x(input);
  const Result<T> y(output);
  const Tiles tiles(s.N, s.P, s.Q, y.tile_pixels(tile_pixels));
  const int64_t parts = splits(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const InputTile<T> view = x.view(tile.image, tile.images, tile.row * s.stride_h - s.pad_h,
                                       reach(tile.rows, s.stride_h, s.R, s.dilation_h), -s.pad_w,
                                       reach(s.Q, s.stride_w, s.S, s.dilation_w), Scratch::tile_in);
      const OutputTile<T> to = {y.tile(tile), tile.images, tile.row, tile.rows};
      for (int64_t block = first; block < last; ++block) kernel.forward(s, view, {packed, bias}, to, block);
      y.finish(tile, to.data, blocks.first_channel(first), blocks.first_channel(last));
    }
  });
}

template <class T>
void forward(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& output) {
  const Bias<T> b(bias, weight);
  const FusedShape f = without_pool(s);
  if (dot_serves(s, weight)) {
    const WholeResult<T> y(output);
    dot_forward<T>(s, input, weight, b.data, y.data());
    return y.finish();
  }
  const auto cut = winograd_serves(f);
  if (!cut) return direct_forward<T>(s, input, direct_weight<T>(s, weight).get(), b.data, output);
  const WholeResult<T> y(output);
  const WinogradPlan plan = winograd_plan<T>(f, *cut);
  const auto transformed = winograd_weight<T>(f, plan, weight);
  const auto spoilt = winograd_forward<T>(f, plan, input, transformed.get(), b.data, y.data(), nullptr);
  y.finish();
  if (spoilt.empty()) return;
  const auto packed = direct_weight<T>(s, weight);
  Conv2dShape one = s;
  one.N = 1;
  for (const int64_t n : spoilt) direct_forward<T>(one, image(input, n), packed.get(), b.data, image(output, n));
}

void forward(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& output) {
  dispatch_floating(input, "conv2d", [&](auto type) { forward<decltype(type)>(s, input, weight, bias, output); });
}

}  // namespace

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups) {
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  const bool channels_last = input.numel() > 0 && (suggests_channels_last(input) || suggests_channels_last(weight));
  const Tensor output = empty({s.N, s.K, s.P, s.Q}, input, channels_last);
  if (output.numel() == 0) return output;
  if (is_reduced(input)) {
    const Tensor w = widened(weight, Scratch::wide_weight);
    const auto b = widened(bias, Scratch::wide_bias);
    for_each_band(s, input, output, true, wide_limits, [&](const Conv2dShape& band, const Tensor& x, const Tensor& y) {
      compute_wide(y, Scratch::wide_result,
                   [&](const Tensor& wide) { forward(band, widened(x, Scratch::wide_input), w, b, wide); });
    });
  } else {
    forward(s, input, weight, bias, output);
  }
  return output;
}

}  // namespace fastconv::cpu
