// y = max_pool2d(relu(batch_norm(x))), without a tensor for relu(batch_norm(x)).
//
// Forward normalizes the rows that a tile of windows reads into workspace, and pools them there. Backward spreads the
// gradient of y by the argmax (shapes.h) into dx. The batch norm's backward then overwrites it in place.
#include <cstring>

#include "normalize.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

// The pixels of a tile that has about 16,384 elements of x, which fit into the second-level cache of most CPUs.
int64_t tile_pixels(int64_t channels) { return ceil_div(16384, channels); }

// Writes `pixels` normalized pixels. In NCHW, all belong to channel c, and the matrix has rows of plane_columns pixels.
template <class T>
void normalize_pixels(const ChannelConstants<T, 3>& constants, const T* x, T* y, int64_t pixels, bool nhwc, int64_t c) {
  const auto run = [&](const ColumnConstants<T, 3>& columns, int64_t first, const MatrixSize& size) {
    if (size.pixels == 0 || size.channels == 0) return;
    kernels().conv2d<T>().batch_norm.normalize({columns[0], columns[1], columns[2], Activation::relu},
                                               {x + first, size.channels}, {nullptr, size.channels},
                                               {y + first, size.channels}, size);
  };
  if (nhwc) return run(ColumnConstants<T, 3>(constants), 0, {pixels, static_cast<int64_t>(constants[0].size())});
  const ColumnConstants<T, 3> columns(constants, c, std::min(pixels, plane_columns));
  const int64_t rows = pixels / plane_columns;
  run(columns, 0, {rows, plane_columns});
  run(columns, rows * plane_columns, {1, pixels - rows * plane_columns});
}

template <class T>
void forward(const Pool2dShape& pool, const ChannelConstants<T, 3>& constants, const Tensor& x, const Tensor& y,
             const Tensor& argmax, bool nhwc) {
  const Pool2dShape s = images_of(pool, nhwc);
  const auto kernel = nhwc ? kernels().max_pool2d<T>().argmax_nhwc : kernels().max_pool2d<T>().argmax_nchw;
  const T* from = data<T>(x);
  T* to = mutable_data<T>(y);
  uint8_t* at = mutable_data<uint8_t>(argmax);
  const int64_t row = s.W * s.C, out_row = s.Q * s.C;
  const Tiles tiles(s.N, s.P, s.Q, ceil_div(tile_pixels(s.C), s.stride_h * s.stride_w));
  for_each_tile(tiles, [&](const Tile& tile) {
    const Rows rows = rows_read_by(s, {tile.row, tile.rows});
    T* normalized = workspace<T>(Workspace::intermediate, rows.count * row);
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
      normalize_pixels(constants, from + (n * s.H + rows.first) * row, normalized, rows.count * s.W, nhwc, n % pool.C);
      // The kernel expects pointers to row 0 of the image.
      kernel(s, normalized - rows.first * row, to + n * s.P * out_row, at + n * s.P * out_row, tile.row,
             tile.row + tile.rows);
    }
  });
}

// Writes the gradient before the pool and ReLU, tile by tile. A tile adds the gradients of all windows that reach its
// rows.
template <class T>
void unpool(const Pool2dShape& pool, const Tensor& grad_output, const Tensor& argmax, const Tensor& result, bool nhwc) {
  const Pool2dShape s = images_of(pool, nhwc);
  const auto kernel = nhwc ? kernels().conv2d<T>().fused.unpool : kernels().conv2d<T>().fused.unpool_nchw;
  const T* g = data<T>(grad_output);
  const uint8_t* at = data<uint8_t>(argmax);
  T* to = mutable_data<T>(result);
  const int64_t row = s.W * s.C, out_row = s.Q * s.C;
  for_each_tile(Tiles(s.N, s.H, s.W, tile_pixels(s.C)), [&](const Tile& tile) {
    const Rows windows = outputs_that_read(s, {tile.row, tile.rows});
    Pool2dShape part = s;
    part.H = tile.rows, part.P = windows.count;
    part.pad_h = s.pad_h + tile.row - windows.first * s.stride_h;
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
      T* first = to + (n * s.H + tile.row) * row;
      std::memset(first, 0, static_cast<size_t>(tile.rows * row) * sizeof(T));
      const int64_t window = (n * s.P + windows.first) * out_row;
      kernel(part, g + window, at + window, first);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> batch_norm_relu_max_pool2d(const Tensor& input, const std::optional<Tensor>& weight,
                                                      const std::optional<Tensor>& bias, const Tensor& mean,
                                                      const Tensor& spread, bool training, double eps,
                                                      const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                      const Ints& dilation, bool ceil_mode) {
  check_batch_norm(input, weight, bias, mean, spread);
  check(input.dim() == 4, "expected a 4-dimensional input");
  const Pool2dShape s =
      check_max_pool2d_sizes(sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode, true);
  const Tensor x = channel_ordered(input);
  const bool nhwc = is_channels_last(x);
  const Ints sizes{s.N, s.C, s.P, s.Q};
  const Tensor y = empty(sizes, x, nhwc), argmax = empty(sizes, x, nhwc, ScalarType::Byte);
  const auto constants = constants_of({weight, bias, mean, spread, training, eps}, {}, s.C, x.scalar_type());
  dispatch_floating(x, "batch_norm_relu_max_pool2d", [&](auto type) {
    using T = decltype(type);
    forward<T>(s, constants.of<T>(), x, y, argmax, nhwc);
  });
  return {y, argmax};
}

Gradients batch_norm_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                              const std::optional<Tensor>& weight, const Tensor& mean,
                                              const Tensor& spread, bool training, double eps, bool needs_input,
                                              const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                              const Ints& dilation) {
  const std::optional<Tensor> bias;  // only the argmax depends on it
  check_batch_norm(input, weight, bias, mean, spread);
  check(input.dim() == 4, "expected a 4-dimensional input");
  const Pool2dShape s =
      check_max_pool2d_backward(grad_output, argmax, sizes_of(input), kernel_size, stride, padding, dilation, true);
  check_same_type(input, grad_output, "grad_output");
  const Tensor x = channel_ordered(input), dx = empty_as(x);
  const bool nhwc = is_channels_last(x);
  const Tensor grad_weight = empty({s.C}, x, false), grad_bias = empty({s.C}, x, false);
  dispatch_floating(x, "batch_norm_relu_max_pool2d_backward", [&](auto type) {
    unpool<decltype(type)>(s, ordered(grad_output, nhwc), ordered(argmax, nhwc), dx, nhwc);
  });
  batch_norm_gradients({weight, bias, mean, spread, training, eps}, dx, x, needs_input, grad_weight, grad_bias);
  return {needs_input ? dx : empty({0}, x, false), grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
