#include "max_pool2d.h"

#include <algorithm>
#include <cstring>

#include "capability.h"
#include "reduced.h"
#include "scratch.h"
#include "tiles.h"

namespace fastconv::cpu {
namespace {

// Of a reduced type: some rows of an image in NHWC, or a plane in NCHW, are widened at a time, in a thread's scratch.
// Exact: a maximum is one of the values.
void reduced_forward(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices,
                     bool nhwc) {
  const MaxPool2dKernels<float>& kernel = kernels().max_pool2d<float>();
  const ReducedKernels& reduced = reduced_kernels(input.scalar_type());
  const auto* x = data<uint16_t>(input);
  auto* y = mutable_data<uint16_t>(output);
  int64_t* at = mutable_data<int64_t>(indices);
  if (nhwc) {
    const Tiles tiles(s.N, s.P, s.Q, 1024);
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile = tiles[i];
        const int64_t first = tile.row * s.stride_h - s.pad_h;
        const int64_t row = std::clamp<int64_t>(first, 0, s.H);
        const int64_t row_end =
            std::clamp<int64_t>(first + (tile.rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1, row, s.H);
        const int64_t in = (row_end - row) * s.W * s.C, out = tile.rows * s.Q * s.C;
        float* wide = scratch<float>(Scratch::tile_in, in);
        float* largest = scratch<float>(Scratch::tile_out, out);
        for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
          const int64_t to = (n * s.P + tile.row) * s.Q * s.C;
          reduced.widen(x + (n * s.H + row) * s.W * s.C, wide, in);
          // The kernel counts from the image's first row.
          kernel.nhwc(s, wide - row * s.W * s.C, largest - tile.row * s.Q * s.C, at + n * s.P * s.Q * s.C, tile.row,
                      tile.row + tile.rows);
          reduced.round(largest, y + to, out);
        }
      }
    });
  } else {
    const int64_t in = s.H * s.W, out = s.P * s.Q;
    parallel_for(0, s.N * s.C, ceil_div(32768, in), [&](int64_t begin, int64_t end) {
      float* wide = scratch<float>(Scratch::tile_in, in);
      float* largest = scratch<float>(Scratch::tile_out, out);
      for (int64_t i = begin; i < end; ++i) {
        reduced.widen(x + i * in, wide, in);
        kernel.nchw(s, wide, largest, at + i * out);
        reduced.round(largest, y + i * out, out);
      }
    });
  }
}

// The gradients of a plane, or of some rows in NHWC, are added up in float32. Windows that reach a row are those that
// forward gave it to.
void reduced_backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices, const Tensor& grad_input,
                      bool nhwc) {
  const MaxPool2dKernels<float>& kernel = kernels().max_pool2d<float>();
  const ReducedKernels& reduced = reduced_kernels(grad_output.scalar_type());
  const auto* g = data<uint16_t>(grad_output);
  const int64_t* at = data<int64_t>(indices);
  auto* dx = mutable_data<uint16_t>(grad_input);
  if (nhwc) {
    const Tiles tiles(s.N, s.H, s.W, 4096);
    parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Tile tile = tiles[i];
        const Range from_last(tile.row, tile.row + tile.rows, s.stride_h, (s.R - 1) * s.dilation_h - s.pad_h, s.P);
        const Range from_first(0, tile.row + tile.rows, s.stride_h, -s.pad_h, s.P);
        const int64_t first = std::min(from_last.begin, from_first.end), windows = from_first.end - first;
        const int64_t in = tile.rows * s.W * s.C, out = windows * s.Q * s.C;
        float* sums = scratch<float>(Scratch::tile_in, in);
        float* wide = scratch<float>(Scratch::tile_out, out);
        int64_t* places = scratch<int64_t>(Scratch::list, out);
        Pool2dShape part = s;
        part.H = tile.rows, part.P = windows;
        for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
          const int64_t from = (n * s.P + first) * s.Q * s.C;
          reduced.widen(g + from, wide, out);
          for (int64_t j = 0; j < out; ++j) places[j] = at[from + j] - tile.row * s.W;
          std::fill(sums, sums + in, 0.0f);
          kernel.backward_nhwc(part, wide, places, sums, 0, s.C);
          reduced.round(sums, dx + (n * s.H + tile.row) * s.W * s.C, in);
        }
      }
    });
  } else {
    const int64_t in = s.H * s.W, out = s.P * s.Q;
    parallel_for(0, s.N * s.C, ceil_div(32768, in), [&](int64_t begin, int64_t end) {
      float* sums = scratch<float>(Scratch::tile_in, in);
      float* wide = scratch<float>(Scratch::tile_out, out);
      for (int64_t i = begin; i < end; ++i) {
        reduced.widen(g + i * out, wide, out);
        std::fill(sums, sums + in, 0.0f);
        kernel.backward_nchw(s, wide, at + i * out, sums);
        reduced.round(sums, dx + i * in, in);
      }
    });
  }
}

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
  if (is_reduced(input)) return reduced_forward(s, x, output, indices, nhwc);
  dispatch_real(input, "max_pool2d", [&](auto type) { forward<decltype(type)>(s, x, output, indices, nhwc); });
}

void backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices, const Tensor& grad_input,
              bool nhwc) {
  const Tensor g = ordered(grad_output, nhwc), at = ordered(indices, nhwc);
  if (is_reduced(grad_output)) return reduced_backward(s, g, at, grad_input, nhwc);
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
  forward(s, input, output, indices, nhwc);
  return {output, indices};
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last) {
  const Pool2dShape s =
      check_max_pool2d_backward(grad_output, indices, input_size, kernel_size, stride, padding, dilation);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  backward(s, grad_output, indices, grad_input, channels_last);
  return grad_input;
}

}  // namespace fastconv::cpu
