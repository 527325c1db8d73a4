// The gradient of the weight, dense (sums.h) or without the zeros of grad_output (live.h).
#include <algorithm>

#include "activation.h"
#include "bands.h"
#include "conv2d.h"
#include "live.h"
#include "reduced.h"
#include "sums.h"

namespace fastconv::cpu {
namespace {

// Pixels whose x and g stay in the first-level cache while all taps pass over them.
constexpr int64_t sum_pixels = 96;

// grad_output is read as it is: one tap, no padding.
Conv2dShape pointwise(const Conv2dShape& s) {
  Conv2dShape g{};
  g.N = s.N, g.C = s.K, g.H = s.P, g.W = s.Q;
  g.R = g.S = 1, g.P = s.P, g.Q = s.Q;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  return g;
}

template <class T>
void dense_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  const int64_t most = affordable_pieces<T>(s);
  const Tiles tiles(s.N, s.P, s.Q, sum_pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const int64_t taps = s.taps(), tap_blocks = ceil_div(taps, kernel.block_taps);
  const int64_t units = pieces.count * blocks.count();
  const int64_t parts = std::max<int64_t>(1, std::min(tap_blocks, ceil_div(wanted_pieces, units)));

  const bool read_once = blocks.count() * parts == 1;
  const SummedInput<T> x(s, input, read_once, Scratch::whole_input, Scratch::tile_in);
  const SummedInput<T> g(pointwise(s), grad_output, read_once, Scratch::whole_grad, Scratch::tile_out);
  parallel_for(0, units * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, block = i / parts % blocks.count(), piece = i / parts / blocks.count();
      const int64_t first_tap = std::min(taps, tap_blocks * part / parts * kernel.block_taps);
      const int64_t last_tap = std::min(taps, tap_blocks * (part + 1) / parts * kernel.block_taps);
      T* dw = pieces.sums + piece * pieces.size;
      T* db = part == 0 ? dw + taps * s.K : nullptr;
      const int64_t k0 = blocks.first_channel(block), k1 = blocks.first_channel(block + 1);
      zero_channels(dw + first_tap * s.K, last_tap - first_tap, s.K, k0, k1);
      if (db) zero_channels(db, 1, s.K, k0, k1);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const InputTile<T> values = g.tile(tile);
        const GradientTile<T> gradient = {values.data, values.strides.image, tile.images, tile.row, tile.rows};
        kernel.backward_weight(s, x.tile(tile), gradient, {dw, db}, {first_tap, last_tap}, block);
      }
    }
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

template <class T>
void backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  const Tensor g = dense(grad_output), x = dense(input);
  const FusedShape f = without_pool(s);
  if (live_serves_weight<T>(f)) {
    const LiveGradient<T> live(g, live_weight_below());
    if (live.pays && all_finite<T>(x)) {
      return live_backward_weight<T>(f, live.g(), live.argmax, x, grad_weight, grad_bias);
    }
  }
  dense_backward_weight<T>(s, g, x, grad_weight, grad_bias);
}

}  // namespace

void backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  dispatch_floating(input, "conv2d_backward_weight",
                    [&](auto type) { backward_weight<decltype(type)>(s, grad_output, input, grad_weight, grad_bias); });
}

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const Tensor grad_weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
  const Tensor grad_bias = empty({s.K}, input, false);
  if (s.N == 0) {
    zero(grad_weight), zero(grad_bias);
    return {grad_weight, grad_bias};
  }
  if (is_reduced(input)) {
    compute_wide(grad_weight, Scratch::wide_result, [&](const Tensor& wide_weight) {
      compute_wide(grad_bias, Scratch::wide_bias, [&](const Tensor& wide_bias) {
        BandSum sum(wide_weight, wide_bias);
        for_each_band(
            s, input, grad_output, true, wide_limits, [&](const Conv2dShape& band, const Tensor& x, const Tensor& g) {
              sum.add([&](const Tensor& dw, const Tensor& db) {
                backward_weight(band, widened(g, Scratch::wide_other), widened(x, Scratch::wide_input), dw, db);
              });
            });
      });
    });
  } else {
    BandSum sum(grad_weight, grad_bias);
    const bool by_rows = is_nhwc(input) && is_nhwc(grad_output);
    for_each_band(s, input, grad_output, by_rows, plain_limits,
                  [&](const Conv2dShape& band, const Tensor& x, const Tensor& g) {
                    sum.add([&](const Tensor& dw, const Tensor& db) { backward_weight(band, g, x, dw, db); });
                  });
  }
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
