#include "activation.h"
#include "algorithms.h"
#include "bands.h"
#include "conv2d.h"
#include "live.h"
#include "reduced.h"
#include "winograd.h"

namespace fastconv::cpu {
namespace {

template <class T>
T* pack_weight(const Conv2dShape& s, const Tensor& weight) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_C());
  const bool krsc = is_nhwc(weight);
  T* packed = scratch<T>(Scratch::weight, kernel.packed_backward_size(s));
  parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.pack_weight_backward(s, data<T>(weight), krsc, i, packed);
  });
  return packed;
}

template <class T>
void dense_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_C());
  const T* packed = pack_weight<T>(s, weight);

  const Activation<T> g(grad_output);
  const Result<T> dx(grad_input);
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(tile_pixels));
  const int64_t parts = splits(tiles, blocks);
  parallel_for(0, tiles.count() * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / parts];
      const int64_t first = blocks.count() * (i % parts) / parts, last = blocks.count() * (i % parts + 1) / parts;
      const int64_t c0 = blocks.first_channel(first), c1 = blocks.first_channel(last);
      const Range rows = rows_above(s, tile);
      const InputTile<T> view =
          g.view(tile.image, tile.images, rows.begin, rows.end - rows.begin, 0, s.Q, Scratch::tile_in);
      const GradientTile<T> from = {view.data, view.strides.image, tile.images, rows.begin, rows.end - rows.begin};
      const OutputTile<T> to = {dx.tile(tile), tile.images, tile.row, tile.rows};
      zero_channels(to.data, tile.images * tile.rows * s.W, s.C, c0, c1);
      for (int64_t block = first; block < last; ++block) kernel.backward_data(s, from, packed, to, block);
      dx.finish(tile, to.data, c0, c1);
    }
  });
}

template <class T>
void winograd_backward_data(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                            const Tensor& weight, const Tensor& grad_input) {
  const WholeResult<T> dx(grad_input);
  const T* packed = pack_weight<T>(s, weight);
  const FusedShape turned = without_pool(turned_around(s));
  const WinogradPlan plan = winograd_plan<T>(turned, cut);
  T* transformed = scratch<T>(Scratch::winograd_weight, plan.packed_size);
  pack_winograd<T>(turned, plan, packed, true, transformed);
  const auto spoilt = winograd_forward<T>(turned, plan, grad_output, transformed, nullptr, dx.data(), nullptr);
  dx.finish();
  Conv2dShape one = s;
  one.N = 1;
  for (const int64_t n : spoilt) dense_backward_data<T>(one, image(grad_output, n), weight, image(grad_input, n));
}

template <class T>
void backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input) {
  const Tensor g = dense(grad_output), w = dense(weight);
  const FusedShape f = without_pool(s);
  const auto cut = winograd_serves_data(s);
  if (live_serves<T>(f)) {
    const LiveGradient<T> live(g, live_data_below(s, cut));
    if (live.pays && all_finite<T>(w)) return live_backward_data<T>(f, live.g(), live.argmax, w, grad_input);
  }
  if (cut) return winograd_backward_data<T>(s, *cut, g, w, grad_input);
  dense_backward_data<T>(s, g, w, grad_input);
}

}  // namespace

void backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input) {
  // The first rows of grad_output that reach no input, as a band may have, would keep Winograd's algorithm away.
  const int64_t unused = std::min((s.pad_h - (s.R - 1) * s.dilation_h) / s.stride_h, s.P - 1);
  if (unused > 0) {
    Conv2dShape rest = s;
    rest.P -= unused, rest.pad_h -= unused * s.stride_h;
    Tensor g = grad_output;
    return backward_data(rest, torch::stable::narrow(g, 2, unused, rest.P), weight, grad_input);
  }
  dispatch_floating(grad_output, "conv2d_backward_data",
                    [&](auto type) { backward_data<decltype(type)>(s, grad_output, weight, grad_input); });
}

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s = check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  if (is_reduced(grad_output)) {
    const Tensor w = widened(weight, Scratch::wide_weight);
    for_each_data_band(
        s, grad_output, grad_input, true, wide_limits, [&](const Conv2dShape& band, const Tensor& g, const Tensor& dx) {
          compute_wide(dx, Scratch::wide_result,
                       [&](const Tensor& wide) { backward_data(band, widened(g, Scratch::wide_other), w, wide); });
        });
  } else {
    const bool by_rows = is_nhwc(grad_output) && is_nhwc(grad_input);
    for_each_data_band(
        s, grad_output, grad_input, by_rows, plain_limits,
        [&](const Conv2dShape& band, const Tensor& g, const Tensor& dx) { backward_data(band, g, weight, dx); });
  }
  return grad_input;
}

}  // namespace fastconv::cpu
