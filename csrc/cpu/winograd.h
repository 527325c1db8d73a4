// The torch-facing side of kernels/winograd.h, for forward and, with the kernel turned around, backward_data.
#pragma once

#include <atomic>

#include "activation.h"
#include "conv2d.h"

namespace fastconv::cpu {

// packed: the weight as pack_weight_forward packs it (or pack_weight_backward, with `rotated`); y and argmax: NHWC; argmax
// and bias may be null. False if some result is not finite: then the direct kernels have to do it all again, since an
// infinity or NaN reaches results here that it should not.
template <class T>
bool winograd_forward(const FusedShape& f, const Tensor& input, const T* packed, bool rotated, const T* bias, T* y,
                      uint8_t* argmax) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const Blocks blocks = channel_blocks(conv2d_kernels<T>(f.conv), f.conv, f.conv.K);
  T* weight = scratch<T>(Scratch::winograd_weight, kernel.packed_size(f.conv));
  torch::stable::parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.pack_weight(f.conv, packed, rotated, i, weight);
  });

  const Tensor nhwc = to_nhwc<T>(input);
  const T* x = data<T>(nhwc);
  const int64_t tiles = kernel.tile_count(f), units = ceil_div(tiles, kernel.unit_tiles);
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    T* unit = scratch<T>(Scratch::unit, kernel.scratch_size(f.conv));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kernel.unit_tiles, last = std::min(tiles, first + kernel.unit_tiles);
      if (!kernel.forward(f, x, weight, bias, y, argmax, first, last, unit)) finite = false;
    }
  });
  return finite;
}

}  // namespace fastconv::cpu
