// The gradient of the weight is one long sum over all pixels of all images. It is cut into
//   pieces of the images, each with a partial sum of its own, while the weight is small, and
//   parts of the sum's elements, each over all images, where pieces alone do not make enough independent work.
// Partial sums are then added in order, so the result does not depend on the number of threads.
#include <algorithm>
#include <cstring>

#include "activation.h"
#include "conv2d.h"
#include "conv2d_zeros.h"

namespace fastconv::cpu {
namespace {

// Pixels whose x and g stay in the first-level cache while all taps pass over them.
constexpr int64_t sum_pixels = 96;

// Partial sums, each of the weight and then of the bias: about 1 MiB in all, since they are written and read once more.
template <class T>
struct Pieces {
  int64_t size, count;
  T* sums;

  Pieces(const Conv2dShape& s, int64_t tiles) : size((s.taps() + 1) * s.K) {
    const int64_t affordable = (1 << 20) / (size * static_cast<int64_t>(sizeof(T)));
    const int64_t most = std::min({wanted_pieces, affordable, tiles});
    for (count = 1; 2 * count <= most;) count *= 2;  // a power of two divides the images evenly, as a rule
    sums = scratch<T>(Scratch::sums, count * size);
    std::memset(sums, 0, static_cast<size_t>(count * size) * sizeof(T));
  }

  // sum[i] = the i-th elements from `first` on, of all pieces, in order.
  void add_up(int64_t first, int64_t elements, T* sum) const {
    std::memcpy(sum, sums + first, static_cast<size_t>(elements) * sizeof(T));
    for (int64_t piece = 1; piece < count; ++piece) {
      const T* from = sums + piece * size + first;
      for (int64_t i = 0; i < elements; ++i) sum[i] += from[i];
    }
  }
};

// The pixels behind a tile of the sum, NHWC and with their padding. What has to be copied for that is copied tile by
// tile where each tile is read once, and else whole, before the sum.
template <class T>
class SummedInput {
 public:
  SummedInput(const Conv2dShape& s, const Tensor& input, bool read_once, Scratch whole, Scratch tile)
      : s_(s), x_(input), columns_(reach(s.Q, s.stride_w, s.S, s.dilation_w)), tile_use_(tile) {
    const int64_t rows = reach(s.P, s.stride_h, s.R, s.dilation_h), image = rows * columns_ * s.C;
    if (read_once || x_.readable_in_place(-s.pad_h, rows, -s.pad_w, columns_)) return;
    T* to = scratch<T>(whole, s.N * image);
    whole_ = {to, {image, columns_ * s.C, s.C}};
    torch::stable::parallel_for(0, s.N, 1, [&](int64_t begin, int64_t end) {
      x_.copy(begin, end - begin, -s.pad_h, rows, -s.pad_w, columns_, to + begin * image);
    });
  }

  NhwcView<T> tile(const Tile& tile) const {
    const int64_t row = tile.row * s_.stride_h;
    if (whole_.data) {
      const Strides& strides = whole_.strides;
      return {whole_.data + tile.image * strides.image + row * strides.row, strides};
    }
    return x_.view(tile.image, tile.images, row - s_.pad_h, reach(tile.rows, s_.stride_h, s_.R, s_.dilation_h),
                   -s_.pad_w, columns_, tile_use_);
  }

 private:
  const Conv2dShape s_;
  const Activation<T> x_;
  const int64_t columns_;
  const Scratch tile_use_;
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

// Pieces [r, s, c][K] into the weight's own order.
template <class T>
void finish_dense(const Conv2dShape& s, const Pieces<T>& pieces, const Tensor& grad_weight, const Tensor& grad_bias) {
  const int64_t taps = s.taps(), RS = s.R * s.S, C = s.group_C();
  const bool krsc = is_nhwc(grad_weight);
  T* to = mutable_data<T>(grad_weight);
  constexpr int64_t width = 32;
  torch::stable::parallel_for(0, ceil_div(s.K, width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t k0 = block * width, count = std::min(width, s.K - k0);
      T* sums = scratch<T>(Scratch::tile_in, taps * width);
      for (int64_t tap = 0; tap < taps; ++tap) {
        pieces.add_up(tap * s.K + k0, count, sums + (krsc ? tap : tap % C * RS + tap / C) * width);
      }
      kernels().conv2d<T>().transpose(sums, width, taps, count, to + k0 * taps, taps);
    }
  });
  pieces.add_up(taps * s.K, s.K, mutable_data<T>(grad_bias));
}

template <class T>
void dense_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  const Tiles tiles(s.N, s.P, s.Q, sum_pixels);
  const Pieces<T> pieces(s, tiles.count());
  const int64_t taps = s.taps(), tap_blocks = ceil_div(taps, kernel.block_taps);
  const int64_t units = pieces.count * blocks.count();
  const int64_t parts = std::max<int64_t>(1, std::min(tap_blocks, ceil_div(wanted_pieces, units)));

  const bool read_once = blocks.count() * parts == 1;
  const SummedInput<T> x(s, input, read_once, Scratch::whole_input, Scratch::tile_in);
  const SummedInput<T> g(pointwise(s), grad_output, read_once, Scratch::whole_grad, Scratch::tile_out);
  torch::stable::parallel_for(0, units * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, block = i / parts % blocks.count(), piece = i / parts / blocks.count();
      const int64_t first_tap = std::min(taps, tap_blocks * part / parts * kernel.block_taps);
      const int64_t last_tap = std::min(taps, tap_blocks * (part + 1) / parts * kernel.block_taps);
      T* dw = pieces.sums + piece * pieces.size;
      T* db = part == 0 ? dw + taps * s.K : nullptr;
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const NhwcView<T> from = x.tile(tile);
        kernel.backward_weight(s, from.data, from.strides, g.tile(tile).data, dw, db, tile.images, tile.rows, first_tap,
                               last_tap, block);
      }
    }
  });
  finish_dense(s, pieces, grad_weight, grad_bias);
}

// Pieces [K][r, s, c] into the weight's own order.
template <class T>
void finish_sparse(const Conv2dShape& s, const Pieces<T>& pieces, const Tensor& grad_weight, const Tensor& grad_bias) {
  const int64_t taps = s.taps();
  const bool krsc = is_nhwc(grad_weight);
  T* to = mutable_data<T>(grad_weight);
  torch::stable::parallel_for(0, s.K, 16, [&](int64_t begin, int64_t end) {
    T* sums = scratch<T>(Scratch::tile_in, taps);
    for (int64_t k = begin; k < end; ++k) {
      pieces.add_up(k * taps, taps, krsc ? to + k * taps : sums);
      if (!krsc) kernels().conv2d<T>().transpose(sums, s.C, s.R * s.S, s.C, to + k * taps, s.R * s.S);
    }
  });
  pieces.add_up(taps * s.K, s.K, mutable_data<T>(grad_bias));
}

template <class T>
void sparse_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                            const Tensor& grad_weight, const Tensor& grad_bias) {
  const SparseConv2dKernels<T>& kernel = kernels().conv2d<T>().sparse;
  const Tiles tiles(s.N, s.P, s.Q, sparse_tile_pixels);
  const Pieces<T> pieces(s, tiles.count());
  const int64_t blocks = ceil_div(s.K, kernel.channels);
  const int64_t parts = std::min(blocks, ceil_div(wanted_pieces, pieces.count));

  const bool read_once = parts == 1;
  const SummedInput<T> x(s, input, read_once, Scratch::whole_input, Scratch::tile_in);
  const SummedInput<T> g(pointwise(s), grad_output, read_once, Scratch::whole_grad, Scratch::tile_out);
  torch::stable::parallel_for(0, pieces.count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, piece = i / parts;
      T* dw = pieces.sums + piece * pieces.size;
      T* db = dw + s.taps() * s.K;
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const NhwcView<T> from = x.tile(tile);
        const T* g_tile = g.tile(tile).data;
        const int64_t size = kernel.list_size(s, tile.images * tile.rows * s.Q);
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
          kernel.backward_weight(s, from.data, from.strides, g_tile, dw, db, tile.images, tile.rows,
                                 block * kernel.channels, scratch<int64_t>(Scratch::list, size),
                                 scratch<T>(Scratch::list, size));
        }
      }
    }
  });
  finish_sparse(s, pieces, grad_weight, grad_bias);
}

template <class T>
void backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  const Tensor g = dense(grad_output), x = dense(input);
  const auto run = zeros_pay<T>(s, g, x) ? sparse_backward_weight<T> : dense_backward_weight<T>;
  run(s, g, x, grad_weight, grad_bias);
}

}  // namespace

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const Tensor grad_weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
  const Tensor grad_bias = empty({s.K}, input, false);
  dispatch_floating(input, "conv2d_backward_weight",
                    [&](auto type) { backward_weight<decltype(type)>(s, grad_output, input, grad_weight, grad_bias); });
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
