// The CPU's convolution: forward and the gradients of input, weight and bias. Schemas: ops.cpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../checks.h"
#include "capability.h"
#include "scratch.h"
#include "tiles.h"

namespace fastconv::cpu {

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups);

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last);

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last);

// ---- what the three passes share ----

// The gradients of any element type but the reduced ones, into tensors that are there.
void backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input);
void backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
                     const Tensor& grad_bias);

template <class T>
const Conv2dKernels<T>& conv2d_kernels(const Conv2dShape& s) {
  const Conv2dFamily<T>& family = kernels().conv2d<T>();
  return s.depthwise() ? family.depthwise : family.direct;
}

// Blocks over C or K, whichever `group_channels` counts. The depthwise kernels cut all channels at once.
template <class T>
Blocks channel_blocks(const Conv2dKernels<T>& kernel, const Conv2dShape& s, int64_t group_channels) {
  return s.depthwise() ? Blocks{1, s.C, kernel.block_lanes} : Blocks{s.groups, group_channels, kernel.block_lanes};
}

// The input rows, or columns, that `outputs` neighbouring outputs read.
inline int64_t reach(int64_t outputs, int64_t stride, int64_t taps, int64_t dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

// K adjacent values; null where there are none.
template <class T>
struct Bias {
  Tensor owner;
  const T* data;

  Bias(const std::optional<Tensor>& bias, const Tensor& weight)
      : owner(bias ? torch::stable::contiguous(*bias) : weight), data(bias ? fastconv::data<T>(owner) : nullptr) {}
};

// Few tiles are shared out once more, by channel blocks.
inline int64_t splits(const Tiles& tiles, const Blocks& blocks) {
  const int64_t wanted = ceil_div(wanted_pieces, tiles.count() > 0 ? tiles.count() : 1);
  return wanted < blocks.count() ? wanted : blocks.count();
}

// Output pixels in a tile: some multiples of the kernels' rows, and little enough to stay in the cache.
constexpr int64_t tile_pixels = 720;

// The outputs that read a tile's rows: from the last row of taps over its first row, to the first over its last.
inline Range rows_above(const Conv2dShape& s, const Tile& tile) {
  const Range from_last_tap(tile.row, s.H, s.stride_h, (s.R - 1) * s.dilation_h - s.pad_h, s.P);
  Range rows(0, tile.row + tile.rows, s.stride_h, -s.pad_h, s.P);
  rows.begin = std::min(from_last_tap.begin, rows.end);
  return rows;
}

template <class T>
void zero_channels(T* tile, int64_t pixels, int64_t C, int64_t c0, int64_t c1) {
  if (c0 == 0 && c1 == C) {
    std::memset(tile, 0, static_cast<size_t>(pixels * C) * sizeof(T));
    return;
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    std::memset(tile + pixel * C + c0, 0, static_cast<size_t>(c1 - c0) * sizeof(T));
  }
}

}  // namespace fastconv::cpu
