// Convolutions to few channels with a stride of 1, such as filters of images. Each channel is copied to a plane, and
// the lanes of a vector are neighbouring pixels (kernels/image_filter.h).
#include <algorithm>

#include "epilogue.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

template <class T>
const ImageFilterKernels<T>& kernel() {
  return kernels().conv2d<T>().image_filter;
}

// The pixels of a tile. The planes of all channels stay in the second-level cache. A tile has as many rows as the
// largest register block, or more.
int64_t filter_pixels(const Conv2dShape& s) {
  return std::max({std::min<int64_t>(4096, (1 << 16) / s.C), 8 * s.Q, int64_t{64}});
}

// Copies elements whose distances are `from_step` and `to_step`.
template <class T>
void copy_apart(const T* from, int64_t from_step, int64_t count, T* to, int64_t to_step) {
  if (from_step == 1 && to_step == 1) {
    std::copy(from, from + count, to);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_step] = from[i * from_step];
}

// The transposition of the other kernels takes twice as long for 3 channels.
constexpr int64_t least_transposed = 8;

// Copies rows of an (N, C, H, W) tensor to C planes. Pixels outside of the image become zero.
template <class T>
class PlaneReader {
 public:
  explicit PlaneReader(const Tensor& tensor)
      : tensor_(dense(tensor)), C_(tensor.size(1)), H_(tensor.size(2)), W_(tensor.size(3)), nchw_(is_nchw(tensor_)) {}

  // The length of a plane's rows. They end with zeros for the last vector of a kernel.
  static int64_t row_size(int64_t columns) { return (ceil_div(columns, kernel<T>().lanes) + 1) * kernel<T>().lanes; }

  // Returns the planes, one after the other.
  T* read(int64_t image, const Rows& rows, const Rows& columns, Workspace use) const {
    const int64_t step = row_size(columns.count), plane = rows.count * step;
    T* const planes = workspace<T>(use, C_ * plane);
    const int64_t left = std::clamp<int64_t>(-columns.first, 0, columns.count);
    const int64_t right = std::clamp<int64_t>(W_ - columns.first, left, columns.count);
    const T* from = data<T>(tensor_) + image * C_ * H_ * W_;
    T* to = planes;
    for (int64_t h = rows.first; h < rows.end(); ++h, to += step) {
      const bool inside = h >= 0 && h < H_ && left < right;
      for (int64_t c = 0; c < C_; ++c) {
        T* row = to + c * plane;
        std::fill(row, row + (inside ? left : step), T(0));
        if (inside) std::fill(row + right, row + step, T(0));
      }
      if (!inside) continue;
      const T* pixel = from + (h * W_ + columns.first + left) * (nchw_ ? 1 : C_);
      if (!nchw_ && C_ >= least_transposed) {
        kernels().conv2d<T>().transpose(pixel, C_, right - left, C_, to + left, plane);
        continue;
      }
      for (int64_t c = 0; c < C_; ++c) {
        copy_apart(pixel + c * (nchw_ ? H_ * W_ : 1), nchw_ ? 1 : C_, right - left, to + c * plane + left, 1);
      }
    }
    return planes;
  }

 private:
  Tensor tensor_;
  int64_t C_, H_, W_;
  bool nchw_;
};

// Where the results of a tile go: the distances of its images, and of the channels of an image in NCHW (0: NHWC).
template <class T>
struct TileResult {
  T* data;
  int64_t image, channel;
};

// A convolution. `weight` is [K][C / groups][R][S]. `bias` has K elements, or is null.
template <class T>
class Filter {
 public:
  Filter(const Conv2dShape& s, const Tensor& input, const T* weight, const T* bias)
      : s_(s), x_(input), weight_(weight), bias_(bias) {}

  // Computes the rows of a tile.
  void compute(const Tile& tile, const TileResult<T>& to) const {
    const Rows rows{tile.row - s_.pad_h, reach(tile.rows, 1, s_.R, s_.dilation_h)};
    const Rows columns{-s_.pad_w, reach(s_.Q, 1, s_.S, s_.dilation_w)};
    const int64_t x_row = x_.row_size(columns.count), y_row = x_.row_size(s_.Q);
    const int64_t x_plane = rows.count * x_row, y_plane = tile.rows * y_row;
    T* y = workspace<T>(Workspace::intermediate, s_.K * y_plane);
    for (int64_t n = 0; n < tile.images; ++n) {
      const T* x = x_.read(tile.image + n, rows, columns, Workspace::input_tile);
      for (int64_t k = 0; k < s_.K; ++k) {
        const T* of_group = x + k / s_.group_K() * s_.group_C() * x_plane;
        kernel<T>().forward(s_, {of_group, x_row, x_plane}, weight_ + k * s_.taps(), bias_ ? bias_[k] : T(0),
                            {y + k * y_plane, y_row}, {tile.rows, s_.Q});
      }
      write(y, y_row, tile.rows, {to.data + n * to.image, 0, to.channel});
    }
  }

  // Computes all of a tensor in NCHW or NHWC.
  void compute_all(const Tensor& output) const {
    const Tiles tiles(s_.N, s_.P, s_.Q, filter_pixels(s_));
    T* const data = mutable_data<T>(output);
    const bool nchw = is_nchw(output);
    for_each_tile(tiles, [&](const Tile& tile) {
      const int64_t image = s_.K * s_.P * s_.Q, first = tile.row * s_.Q * (nchw ? 1 : s_.K);
      compute(tile, {data + tile.image * image + first, image, nchw ? s_.P * s_.Q : 0});
    });
  }

 private:
  // Writes the planes y of an image.
  void write(const T* y, int64_t y_row, int64_t rows, const TileResult<T>& to) const {
    for (int64_t p = 0; p < rows; ++p, y += y_row) {
      for (int64_t k = 0; k < s_.K; ++k) {
        const T* row = y + k * rows * y_row;
        if (to.channel == 0) {
          copy_apart(row, 1, s_.Q, to.data + p * s_.Q * s_.K + k, s_.K);
        } else {
          copy_apart(row, 1, s_.Q, to.data + k * to.channel + p * s_.Q, 1);
        }
      }
    }
  }

  Conv2dShape s_;
  PlaneReader<T> x_;
  const T *weight_, *bias_;
};

template <class T>
void filter_with_epilogue(const Forward& call, const Filter<T>& filter) {
  const Conv2dShape& s = call.shape.conv;
  const NhwcWriter<T> y(call.output);
  const TileEpilogue<T> epilogue(call);
  for_each_tile(Tiles(s.N, s.P, s.Q, filter_pixels(s)), [&](const Tile& tile) {
    T* to = y.tile(tile);
    filter.compute(tile, {to, tile.rows * s.Q * s.K, 0});
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
  const Tiles tiles(s.N, s.P, s.Q, filter_pixels(s));
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
      T* of_taps = workspace<T>(Workspace::list_values, taps);
      for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
        const T* x_planes = x.read(n, rows, columns, Workspace::input_tile);
        const T* g_planes = g.read(n, {tile.row, tile.rows}, {0, s.Q}, Workspace::output_tile);
        for (int64_t k = 0; k < s.K; ++k) {
          const Plane<const T> of_g{g_planes + k * tile.rows * g_row, g_row};
          sums.bias[k] += static_cast<T>(kernel<T>().sum(of_g, size));
          for (int64_t i = 0; i < inputs; ++i) {
            const T* plane = x_planes + (k / s.group_K() * inputs + i) * rows.count * x_row;
            std::fill(of_taps, of_taps + taps, T(0));
            kernel<T>().backward_weight(s, {plane, x_row}, of_g, size, of_taps);
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
