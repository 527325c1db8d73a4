// The gradient of the weight is one long sum over all pixels of all images. It is cut into
//   pieces of the images, each with a partial sum of its own, while the weight is small (512 KiB for all of them), and
//   ranges of (r, s, c), each over all images, where pieces alone do not make enough independent work.
// Partial sums are then added in order, so the result does not depend on the number of threads.
#include <algorithm>
#include <cstring>

#include "activation.h"
#include "conv2d.h"

namespace fastconv::cpu {
namespace {

// Pixels whose x and g stay in the first-level cache while all taps pass over them.
constexpr int64_t sum_pixels = 96;
constexpr int64_t partial_sums_bytes = 512 * 1024;

// The pixels behind a tile of the sum, NHWC and with their padding. What has to be copied for that is copied tile by tile
// where each tile is read once, and else whole, before the sum.
template <class T>
class SummedInput {
 public:
  SummedInput(const Conv2dShape& s, const Tensor& input, bool read_once, int slot)
      : s_(s), x_(input), columns_(reach(s.Q, s.stride_w, s.S, s.dilation_w)), slot_(slot) {
    const int64_t rows = reach(s.P, s.stride_h, s.R, s.dilation_h), image = rows * columns_ * s.C;
    if (read_once || x_.readable_in_place(-s.pad_h, rows, -s.pad_w, columns_)) return;
    copy_ = empty({s.N * image}, input, false);
    whole_ = {mutable_data<T>(copy_), {image, columns_ * s.C, s.C}};
    torch::stable::parallel_for(0, s.N, 1, [&](int64_t begin, int64_t end) {
      x_.copy(begin, end - begin, -s.pad_h, rows, -s.pad_w, columns_, mutable_data<T>(copy_) + begin * image);
    });
  }

  NhwcView<T> tile(const Tile& tile) const {
    const int64_t row = tile.row * s_.stride_h;
    if (whole_.data) {
      const Strides& strides = whole_.strides;
      return {whole_.data + tile.image * strides.image + row * strides.row, strides};
    }
    return x_.view(tile.image, tile.images, row - s_.pad_h, reach(tile.rows, s_.stride_h, s_.R, s_.dilation_h),
                   -s_.pad_w, columns_, slot_);
  }

 private:
  const Conv2dShape s_;
  const Activation<T> x_;
  const int64_t columns_;
  const int slot_;
  Tensor copy_;
  NhwcView<T> whole_{};
};

// grad_output is read as it is: one tap, no padding.
Conv2dShape pointwise(const Conv2dShape& s) {
  Conv2dShape g{};
  g.N = s.N, g.C = s.K, g.H = s.P, g.W = s.Q;
  g.R = g.S = 1, g.P = s.P, g.Q = s.Q;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  return g;
}

// Adds up the partial sums, each [r, s, c][K] and then [K] of the bias, and writes the weight's own order.
template <class T>
void finish(const Conv2dShape& s, const T* partial, int64_t pieces, T* grad_weight, bool krsc, T* grad_bias) {
  const int64_t taps = s.taps(), RS = s.R * s.S, C = s.group_C(), size = (taps + 1) * s.K;
  constexpr int64_t width = 32;
  torch::stable::parallel_for(0, ceil_div(s.K, width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t k0 = block * width, count = std::min(width, s.K - k0);
      T* sums = scratch<T>(0, (taps + 1) * width);
      for (int64_t tap = 0; tap <= taps; ++tap) {
        const bool bias = tap == taps;
        T* sum = sums + (krsc || bias ? tap : tap % C * RS + tap / C) * width;
        const T* from = partial + tap * s.K + k0;
        std::memcpy(sum, from, static_cast<size_t>(count) * sizeof(T));
        for (int64_t piece = 1; piece < pieces; ++piece) {
          for (int64_t k = 0; k < count; ++k) sum[k] += from[piece * size + k];
        }
      }
      kernels().conv2d<T>().transpose(sums, width, taps, count, grad_weight + k0 * taps, taps);
      std::memcpy(grad_bias + k0, sums + taps * width, static_cast<size_t>(count) * sizeof(T));
    }
  });
}

template <class T>
void backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks<T>(s, s.group_K());
  const Tiles tiles(s.N, s.P, s.Q, sum_pixels);
  const int64_t taps = s.taps(), size = (taps + 1) * s.K;

  const int64_t affordable = std::max<int64_t>(1, partial_sums_bytes / (size * static_cast<int64_t>(sizeof(T))));
  const int64_t pieces = std::max<int64_t>(1, std::min({wanted_pieces, affordable, tiles.count()}));
  const int64_t tap_blocks = ceil_div(taps, kernel.block_taps);
  const int64_t ranges = std::max<int64_t>(1, std::min(tap_blocks, ceil_div(wanted_pieces, pieces * blocks.count())));

  const bool read_once = blocks.count() * ranges == 1;
  const SummedInput<T> x(s, input, read_once, 0), g(pointwise(s), grad_output, read_once, 1);

  const Tensor partial = empty({pieces * size}, input, false);
  T* partial_data = mutable_data<T>(partial);
  std::memset(partial_data, 0, static_cast<size_t>(pieces * size) * sizeof(T));

  torch::stable::parallel_for(0, pieces * blocks.count() * ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t range = i % ranges, block = i / ranges % blocks.count(), piece = i / ranges / blocks.count();
      const int64_t first_tap = std::min(taps, tap_blocks * range / ranges * kernel.block_taps);
      const int64_t last_tap = std::min(taps, tap_blocks * (range + 1) / ranges * kernel.block_taps);
      T* dw = partial_data + piece * size;
      T* db = range == 0 ? dw + taps * s.K : nullptr;
      for (int64_t t = tiles.count() * piece / pieces; t < tiles.count() * (piece + 1) / pieces; ++t) {
        const Tile tile = tiles[t];
        const NhwcView<T> from = x.tile(tile);
        kernel.backward_weight(s, from.data, from.strides, g.tile(tile).data, dw, db, tile.images, tile.rows,
                               first_tap, last_tap, block);
      }
    }
  });
  finish(s, partial_data, pieces, mutable_data<T>(grad_weight), is_nhwc(grad_weight), mutable_data<T>(grad_bias));
}

}  // namespace

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const Tensor grad_weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
  const Tensor grad_bias = empty({s.K}, input, false);
  dispatch_floating(input, "conv2d_backward_weight", [&](auto type) {
    backward_weight<decltype(type)>(s, grad_output, input, grad_weight, grad_bias);
  });
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
