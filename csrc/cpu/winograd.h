// The torch-facing side of kernels/winograd.h, for forward and, with the kernel turned around, backward_data.
#pragma once

#include <vector>

#include "activation.h"
#include "conv2d.h"

namespace fastconv::cpu {

// One kind of tiles: how many, and where its weights lie.
struct Kind {
  int index;
  int64_t tiles, weight;
};

// packed: the weight as pack_weight_forward packs it (or pack_weight_backward, with `rotated`); y and argmax: NHWC;
// argmax and bias may be null. Returns the images with results that are not finite: the direct kernels have to do those
// again, since an infinity or NaN reaches results here that it should not.
template <class T>
std::vector<int64_t> winograd_forward(const FusedShape& f, const Tensor& input, const T* packed, bool rotated,
                                      const T* bias, T* y, uint8_t* argmax) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const Blocks blocks = channel_blocks(conv2d_kernels<T>(f.conv), f.conv, f.conv.K);
  std::vector<Kind> kinds;
  int64_t packed_size = 0, rounds = 0;
  for (int kind = 0; kind < kernel.kinds; ++kind) {
    const int64_t tiles = kernel.tile_count(f, kind);
    if (tiles == 0) continue;
    kinds.push_back({kind, tiles, packed_size});
    packed_size += kernel.packed_size(f.conv, kind);
    rounds = std::max(rounds, ceil_div(tiles, kernel.unit_tiles));
  }
  T* weight = scratch<T>(Scratch::winograd_weight, packed_size);
  const auto count = static_cast<int64_t>(kinds.size());
  torch::stable::parallel_for(0, blocks.count() * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Kind& kind = kinds[i % count];
      kernel.pack_weight(f.conv, packed, rotated, kind.index, i / count, weight + kind.weight);
    }
  });

  const Tensor nhwc = to_nhwc<T>(input);
  const T* x = data<T>(nhwc);
  std::vector<uint8_t> spoilt(static_cast<size_t>(f.conv.N));
  // Kinds take turns, since they cost different times.
  torch::stable::parallel_for(0, rounds * count, 1, [&](int64_t begin, int64_t end) {
    T* unit = scratch<T>(Scratch::unit, kernel.scratch_size(f.conv));
    for (int64_t i = begin; i < end; ++i) {
      const Kind& kind = kinds[i % count];
      const int64_t first = i / count * kernel.unit_tiles, last = std::min(kind.tiles, first + kernel.unit_tiles);
      if (first >= last) continue;
      kernel.forward(f, kind.index, x, weight + kind.weight, bias, y, argmax, first, last, unit, spoilt.data());
    }
  });
  std::vector<int64_t> images;
  for (int64_t n = 0; n < f.conv.N; ++n) {
    if (spoilt[n]) images.push_back(n);
  }
  return images;
}

}  // namespace fastconv::cpu
