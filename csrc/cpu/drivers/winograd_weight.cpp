// Winograd's gradient of the weight (kernels/winograd_weight.h): all tiles are transformed, multiplied frequency by
// frequency, and the sums are transformed to the weight.
#include <atomic>

#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

// The transformed tiles of a part of the call have about this many bytes, so that they stay in the caches.
constexpr int64_t part_bytes = 8 << 20;

template <class T>
WinogradSums<T> sums_of(const Conv2dShape& s, const WinogradTileKind& kind) {
  const int64_t of_tile = kind.frequencies() * (s.C + s.K) * static_cast<int64_t>(sizeof(T));
  WinogradSums<T> sums{};
  sums.kind = kind;
  sums.tiles = std::min(s.N * kind.per_image(), std::max<int64_t>(128, part_bytes / of_tile));
  kernels().conv2d<T>().winograd.set_sum_steps(s, sums);
  sums.x = workspace<T>(Workspace::whole_input, kind.frequencies() * sums.x_step);
  sums.gradient = workspace<T>(Workspace::whole_gradient, kind.frequencies() * sums.gradient_step);
  sums.product = workspace<T>(Workspace::winograd_weight, kind.frequencies() * sums.product_step);
  return sums;
}

}  // namespace

template <class T>
void winograd_backward_weight(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                              const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
  constexpr int64_t unit_tiles = 16, unit_channels = 4;
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const Tensor x = to_nhwc<T>(input), g = to_nhwc<T>(grad_output);
  WinogradSums<T> sums = sums_of<T>(s, cut.kinds[0]);
  const int64_t all = s.N * sums.kind.per_image(), frequencies = sums.kind.frequencies();
  const Blocks blocks = channel_blocks<T>(s, s.K);
  const int64_t units = ceil_div(sums.tiles, unit_tiles);
  const Pieces<T> pieces(s, 1);
  const WeightSums<T> dw = pieces.at(0, s.taps() * s.K);
  T* bias = workspace<T>(Workspace::phase_weight, units * s.K);  // a sum for each unit
  std::memset(bias, 0, static_cast<size_t>(units * s.K) * sizeof(T));
  for (int64_t first = 0; first < all; first += sums.tiles) {
    sums.first_tile = first;
    const int64_t tiles = std::min(sums.tiles, all - first);
    WinogradSums<T> part = sums;
    part.tiles = tiles;
    kernel.set_sum_steps(s, part);
    part.product_step = sums.product_step;
    parallel_for(0, ceil_div(tiles, unit_tiles), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t last = std::min(tiles, (i + 1) * unit_tiles);
        kernel.transform_tiles(s, part, i * unit_tiles, last, data<T>(x), data<T>(g), bias + i * s.K);
      }
    });
    parallel_for(0, frequencies * blocks.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernel.multiply_tiles(s, part, i / blocks.count(), i % blocks.count());
    });
  }
  std::atomic<bool> finite{true};
  parallel_for(0, ceil_div(s.C, unit_channels), 1, [&](int64_t begin, int64_t end) {
    const int64_t c0 = begin * unit_channels, c1 = std::min(s.C, end * unit_channels);
    if (!kernel.finish_weight(s, sums, c0, c1, dw.weight)) finite = false;
  });
  // The transforms spread an infinity or NaN over all taps.
  if (!finite) return direct_backward_weight<T>(s, grad_output, input, grad_weight, grad_bias);
  std::memcpy(dw.bias, bias, static_cast<size_t>(s.K) * sizeof(T));
  for (int64_t i = 1; i < units; ++i) {
    for (int64_t k = 0; k < s.K; ++k) dw.bias[k] += bias[i * s.K + k];
  }
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(T)                                                                                   \
  template void winograd_backward_weight<T>(const Conv2dShape&, const WinogradCut&, const Tensor&, const Tensor&, \
                                            const Tensor&, const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
