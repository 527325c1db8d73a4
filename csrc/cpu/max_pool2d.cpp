#include "max_pool2d.h"

#include <algorithm>
#include <cstring>

#include "capability.h"
#include "reduced.h"
#include "scratch.h"
#include "tiles.h"

namespace fastconv::cpu {
namespace {

template <class T>
void forward(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices, bool nhwc) {
  const MaxPool2dKernels<T>& kernel = kernels().max_pool2d<T>();
  const T* x = data<T>(input);
  T* y = mutable_data<T>(output);
  int64_t* at = mutable_data<int64_t>(indices);
  if (nhwc) {
    const Tiles tiles(s.N, s.P, s.Q, 1024);
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile = tiles[i];
        for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
          const int64_t out = n * s.P * s.Q * s.C;
          kernel.nhwc(s, x + n * s.H * s.W * s.C, y + out, at + out, tile.row, tile.row + tile.rows);
        }
      }
    });
  } else {
    const int64_t grain = ceil_div(32768, s.H * s.W);
    parallel_for(0, s.N * s.C, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t out = i * s.P * s.Q;
        kernel.nchw(s, x + i * s.H * s.W, y + out, at + out);
      }
    });
  }
}

template <class T>
void backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices, const Tensor& grad_input,
              bool nhwc) {
  const MaxPool2dKernels<T>& kernel = kernels().max_pool2d<T>();
  const T* g = data<T>(grad_output);
  const int64_t* at = data<int64_t>(indices);
  T* dx = mutable_data<T>(grad_input);
  const int64_t image = s.H * s.W * s.C, out_image = s.P * s.Q * s.C;
  if (nhwc) {
    // Few images are shared out once more, by channels.
    const int64_t parts = s.N >= wanted_pieces ? 1 : std::min(ceil_div(s.C, 16), ceil_div(wanted_pieces, s.N));
    if (parts > 1) std::memset(dx, 0, static_cast<size_t>(s.N * image) * sizeof(T));
    parallel_for(0, s.N * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / parts, part = i % parts;
        if (parts == 1) std::memset(dx + n * image, 0, static_cast<size_t>(image) * sizeof(T));
        kernel.backward_nhwc(s, g + n * out_image, at + n * out_image, dx + n * image, s.C * part / parts,
                             s.C * (part + 1) / parts);
      }
    });
  } else {
    const int64_t grain = ceil_div(32768, s.H * s.W);
    parallel_for(0, s.N * s.C, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memset(dx + i * s.H * s.W, 0, static_cast<size_t>(s.H * s.W) * sizeof(T));
        kernel.backward_nchw(s, g + i * s.P * s.Q, at + i * s.P * s.Q, dx + i * s.H * s.W);
      }
    });
  }
}

void forward(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices, bool nhwc) {
  const Tensor x = ordered(input, nhwc);
  dispatch_real(input, "max_pool2d", [&](auto type) { forward<decltype(type)>(s, x, output, indices, nhwc); });
}

void backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices, const Tensor& grad_input,
              bool nhwc) {
  const Tensor g = ordered(grad_output, nhwc), at = ordered(indices, nhwc);
  dispatch_floating(grad_output, "max_pool2d_backward",
                    [&](auto type) { backward<decltype(type)>(s, g, at, grad_input, nhwc); });
}

}  // namespace

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const Pool2dShape s = check_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const bool nhwc = suggests_channels_last(input);
  const Tensor output = empty({s.N, s.C, s.P, s.Q}, input, nhwc);
  const Tensor indices = empty({s.N, s.C, s.P, s.Q}, input, nhwc, ScalarType::Long);
  if (is_reduced(input)) {  // exact: a maximum is one of the values
    compute_wide(output, Scratch::wide_result,
                 [&](const Tensor& wide) { forward(s, widened(input, Scratch::wide_input), wide, indices, nhwc); });
  } else {
    forward(s, input, output, indices, nhwc);
  }
  return {output, indices};
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last) {
  const Pool2dShape s =
      check_max_pool2d_backward(grad_output, indices, input_size, kernel_size, stride, padding, dilation);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  if (is_reduced(grad_output)) {
    compute_wide(grad_input, Scratch::wide_result, [&](const Tensor& wide) {
      backward(s, widened(grad_output, Scratch::wide_other), indices, wide, channels_last);
    });
  } else {
    backward(s, grad_output, indices, grad_input, channels_last);
  }
  return grad_input;
}

}  // namespace fastconv::cpu
