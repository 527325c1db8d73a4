// Convolutions of few channels with a stride of 1, such as filters of images. Each channel is copied to a plane, and
// the lanes of a vector are neighbouring pixels (kernels/image_filter.h).
#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

template <class T>
const ImageFilterKernels<T>& kernel() {
  return kernels().conv2d<T>().image_filter;
}

// The pixels of a tile: a plane of 16 KB and more. A tile has as many rows as the largest register block, or more.
int64_t filter_pixels(int64_t width) { return std::max<int64_t>(4096, 8 * width); }

// Copies parts of the channels of an (N, C, H, W) tensor to planes. Pixels outside of the image become zero.
template <class T>
class PlaneReader {
 public:
  explicit PlaneReader(const Tensor& tensor)
      : tensor_(dense(tensor)),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)),
        pixel_(is_nchw(tensor_) ? 1 : C_) {}

  // The size of a plane for these rows and columns. Its rows end with zeros for the last vector of a kernel.
  static int64_t row_size(int64_t columns) { return (ceil_div(columns, kernel<T>().lanes) + 1) * kernel<T>().lanes; }

  void copy(int64_t image, int64_t channel, const Rows& rows, const Rows& columns, T* to) const {
    const int64_t step = row_size(columns.count), plane = pixel_ == 1 ? H_ * W_ : 1;
    const int64_t left = std::clamp<int64_t>(-columns.first, 0, columns.count);
    const int64_t right = std::clamp<int64_t>(W_ - columns.first, left, columns.count);
    const T* from = data<T>(tensor_) + image * C_ * H_ * W_ + channel * plane;
    for (int64_t h = rows.first; h < rows.end(); ++h, to += step) {
      if (h < 0 || h >= H_ || left == right) {
        std::fill(to, to + step, T(0));
        continue;
      }
      const T* row = from + (h * W_ + columns.first + left) * pixel_;
      std::fill(to, to + left, T(0)), std::fill(to + right, to + step, T(0));
      if (pixel_ == 1) {
        std::copy(row, row + right - left, to + left);
      } else {
        for (int64_t i = left; i < right; ++i, row += pixel_) to[i] = *row;
      }
    }
  }

 private:
  Tensor tensor_;
  int64_t C_, H_, W_, pixel_;
};

// Where a tile of results goes. The elements of a channel are `pixel` elements apart.
template <class T>
struct TileResult {
  T* data;
  int64_t image, channel, pixel;
};

// A convolution. `weight` is [K][C / groups][R][S]. `bias` has K elements.
template <class T>
class Filter {
 public:
  Filter(const Conv2dShape& s, const Tensor& input, const T* weight, const T* bias)
      : s_(s), x_(input), weight_(weight), bias_(bias) {}

  // Computes the rows of a tile.
  void compute(const Tile& tile, const TileResult<T>& to) const {
    const Rows rows{tile.row - s_.pad_h, reach(tile.rows, 1, s_.R, s_.dilation_h)};
    const Rows columns{-s_.pad_w, reach(s_.Q, 1, s_.S, s_.dilation_w)};
    const int64_t x_row = x_.row_size(columns.count), y_row = x_.row_size(s_.Q), inputs = s_.group_C();
    T* x = workspace<T>(Workspace::input_tile, inputs * rows.count * x_row);
    T* y = workspace<T>(Workspace::intermediate, tile.rows * y_row);
    const PlaneSize size{tile.rows, s_.Q};
    for (int64_t n = 0; n < tile.images; ++n) {
      for (int64_t k = 0; k < s_.K; ++k) {
        const int64_t group = k / s_.group_K();
        const T bias = bias_ ? bias_[k] : T(0);
        for (int64_t i = 0; i < inputs; ++i) {
          T* plane = x + i * rows.count * x_row;
          if (k % s_.group_K() == 0) x_.copy(tile.image + n, group * inputs + i, rows, columns, plane);
          kernel<T>().forward(s_, {plane, x_row}, weight_ + (k * inputs + i) * s_.R * s_.S, i == 0 ? &bias : nullptr,
                              {y, y_row}, size);
        }
        write(y, y_row, size, to.data + n * to.image + k * to.channel, to.pixel);
      }
    }
  }

  // Computes all of an NCHW tensor, or an NHWC tensor.
  void compute_all(const Tensor& output) const {
    const Tiles tiles(s_.N, s_.P, s_.Q, filter_pixels(s_.Q));
    T* const data = mutable_data<T>(output);
    const bool nchw = is_nchw(output);
    for_each_tile(tiles, [&](const Tile& tile) {
      const int64_t image = s_.K * s_.P * s_.Q, first = tile.row * s_.Q, pixel = nchw ? 1 : s_.K;
      compute(tile, {data + tile.image * image + first * pixel, image, nchw ? s_.P * s_.Q : 1, pixel});
    });
  }

 private:
  static void write(const T* from, int64_t step, const PlaneSize& size, T* to, int64_t pixel) {
    for (int64_t p = 0; p < size.rows; ++p, from += step) {
      if (pixel == 1) {
        to = std::copy(from, from + size.columns, to);
      } else {
        for (int64_t q = 0; q < size.columns; ++q, to += pixel) *to = from[q];
      }
    }
  }

  Conv2dShape s_;
  PlaneReader<T> x_;
  const T *weight_, *bias_;
};

// The tile of an NHWC result.
template <class T>
TileResult<T> nhwc_tile(const Conv2dShape& s, const Tile& tile, T* to) {
  return {to, tile.rows * s.Q * s.K, 1, s.K};
}

template <class T>
void filter_and_pool(const Forward& call, const Filter<T>& filter) {
  const FusedShape& f = call.shape;
  const NhwcWriter<T> y(call.output);
  const int64_t pixels = ceil_div(filter_pixels(f.conv.Q), pixels_between_windows(f.pool));
  for_each_tile(Tiles(f.conv.N, f.pool.P, f.pool.Q, pixels), [&](const Tile& tile) {
    const Tile rows = convolution_rows(f, tile);
    T* conv = workspace<T>(Workspace::output_tile, rows.images * rows.rows * f.conv.Q * f.conv.K);
    filter.compute(rows, nhwc_tile(f.conv, rows, conv));
    T* to = y.tile(tile);
    kernels().conv2d<T>().fused.relu_max_pool2d(
        f.pool, {conv, rows.images, rows.row, rows.rows},
        {to, call.argmax_from(tile.image, tile.row), tile.images, tile.row, tile.rows});
    y.finish(tile, to, 0, f.conv.K);
  });
}

template <class T>
void filter_with_epilogue(const Forward& call, const Filter<T>& filter) {
  const Conv2dShape& s = call.shape.conv;
  const NhwcWriter<T> y(call.output);
  const TileEpilogue<T> epilogue(call);
  for_each_tile(Tiles(s.N, s.P, s.Q, filter_pixels(s.Q)), [&](const Tile& tile) {
    T* to = y.tile(tile);
    filter.compute(tile, nhwc_tile(s, tile, to));
    epilogue.apply(to, s.K, (tile.image * s.P + tile.row) * s.Q, tile.images * tile.rows * s.Q, {0, s.K});
    y.finish(tile, to, 0, s.K);
  });
}

}  // namespace

template <class T>
void image_filter_forward(const Forward& call) {
  const Tensor weight = as_contiguous(call.weight);
  const Bias<T> bias(call.bias, call.weight);
  const Filter<T> filter(call.shape.conv, call.input, data<T>(weight), bias.data);
  if (call.argmax) return filter_and_pool(call, filter);
  if (call.epilogue) return filter_with_epilogue(call, filter);
  filter.compute_all(call.output);
}

// A convolution of grad_output, with the kernel rotated and the channels of each group exchanged.
template <class T>
void image_filter_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                const Tensor& grad_input) {
  const Tensor from = as_contiguous(weight);
  const int64_t taps = s.R * s.S, C = s.group_C(), K = s.group_K();
  T* turned = workspace<T>(Workspace::packed_weight, s.C * K * taps);
  for (int64_t k = 0; k < s.K; ++k) {
    for (int64_t c = 0; c < C; ++c) {
      const T* plane = data<T>(from) + (k * C + c) * taps;
      std::reverse_copy(plane, plane + taps, turned + ((k / K * C + c) * K + k % K) * taps);
    }
  }
  Filter<T>(turned_around(s), grad_output, turned, nullptr).compute_all(grad_input);
}

template <class T>
void image_filter_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                                  const Tensor& grad_weight, const Tensor& grad_bias) {
  const Tiles tiles(s.N, s.P, s.Q, filter_pixels(s.Q));
  const Pieces<T> pieces(s, std::min(affordable_pieces<T>(s), tiles.count()));
  const PlaneReader<T> x(input), g(grad_output);
  const int64_t taps = s.R * s.S, inputs = s.group_C();
  const Rows columns{-s.pad_w, reach(s.Q, 1, s.S, s.dilation_w)};
  const int64_t x_row = x.row_size(columns.count), g_row = g.row_size(s.Q);
  pieces.for_each(1, [&](int64_t piece, int64_t) {
    const WeightSums<T> sums = pieces.at(piece, s.K * s.taps());
    std::fill(sums.weight, sums.weight + pieces.size, T(0));
    pieces.for_each_tile(tiles, piece, [&](const Tile& tile) {
      const Rows rows{tile.row - s.pad_h, reach(tile.rows, 1, s.R, s.dilation_h)};
      const PlaneSize size{tile.rows, s.Q};
      T* planes = workspace<T>(Workspace::input_tile, inputs * rows.count * x_row);
      T* gradient = workspace<T>(Workspace::output_tile, tile.rows * g_row);
      T* of_taps = workspace<T>(Workspace::list_values, taps);
      for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
        for (int64_t k = 0; k < s.K; ++k) {
          g.copy(n, k, {tile.row, tile.rows}, {0, s.Q}, gradient);
          sums.bias[k] += static_cast<T>(kernel<T>().sum({gradient, g_row}, size));
          for (int64_t i = 0; i < inputs; ++i) {
            T* plane = planes + i * rows.count * x_row;
            if (k % s.group_K() == 0) x.copy(n, k / s.group_K() * inputs + i, rows, columns, plane);
            std::fill(of_taps, of_taps + taps, T(0));
            kernel<T>().backward_weight(s, {plane, x_row}, {gradient, g_row}, size, of_taps);
            for (int64_t t = 0; t < taps; ++t) sums.weight[k * s.taps() + t * inputs + i] += of_taps[t];
          }
        }
      }
    });
  });
  pieces.finish_krsc(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(T)                                                                                  \
  template void image_filter_forward<T>(const Forward&);                                                         \
  template void image_filter_backward_data<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&);  \
  template void image_filter_backward_weight<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&, \
                                                const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
