// The torch-facing side of kernels/winograd.h, for forward and, with the kernel turned around, backward_data.
#pragma once

#include <vector>

#include "activation.h"
#include "conv2d.h"
#include "packed_weights.h"

namespace fastconv::cpu {

// The kinds of tiles that a shape is cut into, and where their weights lie.
struct WinogradPlan {
  struct Kind {
    WinogradTiles tiles;
    int64_t count, units, weight;
  };
  std::vector<Kind> kinds;
  int64_t packed_size = 0;
  int64_t layout = 0;  // the sides of each kind's tiles, as digits
};

template <class T>
WinogradPlan winograd_plan(const FusedShape& f, const WinogradCut& cut) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  WinogradPlan plan;
  for (const WinogradTiles& tiles : cut.kinds) {
    const int64_t count = f.conv.N * tiles.per_image();
    if (count == 0) continue;
    plan.kinds.push_back({tiles, count, ceil_div(count, kernel.unit_tiles), plan.packed_size});
    plan.packed_size += kernel.packed_size(f.conv, tiles);
    plan.layout = plan.layout * 25 + tiles.mh * 5 + tiles.mw;
  }
  return plan;
}

// packed: the weight as pack_weight_forward packs it (or pack_weight_backward, with `rotated`).
template <class T>
void pack_winograd(const FusedShape& f, const WinogradPlan& plan, const T* packed, bool rotated, T* weight) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const Blocks blocks = channel_blocks(conv2d_kernels<T>(f.conv), f.conv, f.conv.K);
  const auto count = static_cast<int64_t>(plan.kinds.size());
  parallel_for(0, blocks.count() * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const WinogradPlan::Kind& kind = plan.kinds[i % count];
      kernel.pack_weight(f.conv, packed, rotated, kind.tiles, i / count, weight + kind.weight);
    }
  });
}

// For forward, kept.
template <class T>
std::shared_ptr<const T> winograd_weight(const FusedShape& f, const WinogradPlan& plan, const Tensor& weight) {
  const Tensor from = dense(weight);
  const auto pack = [&, krsc = is_nhwc(from)](const void* values, void* to) {
    T* packed = scratch<T>(Scratch::weight, conv2d_kernels<T>(f.conv).packed_forward_size(f.conv));
    pack_weight_forward<T>(f.conv, static_cast<const T*>(values), krsc, packed);
    pack_winograd<T>(f, plan, packed, false, static_cast<T*>(to));
  };
  return std::static_pointer_cast<const T>(packed_weight(f.conv, from, {Packing::winograd, plan.layout},
                                                         plan.packed_size * static_cast<int64_t>(sizeof(T)),
                                                         Scratch::winograd_weight, pack));
}

// weight: as pack_winograd leaves it; y and argmax: NHWC; argmax and bias may be null. Returns the images with results
// that are not finite: the direct kernels have to do those again, since an infinity or NaN reaches results here that it
// should not.
template <class T>
std::vector<int64_t> winograd_forward(const FusedShape& f, const WinogradPlan& plan, const Tensor& input,
                                      const T* weight, const T* bias, T* y, uint8_t* argmax) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const auto count = static_cast<int64_t>(plan.kinds.size());
  const Tensor nhwc = to_nhwc<T>(input);
  const T* x = data<T>(nhwc);
  std::vector<uint8_t> spoilt(static_cast<size_t>(f.conv.N));
  // Kinds take turns, since they cost different times, a share of each in every round.
  int64_t rounds = 0;
  for (const WinogradPlan::Kind& kind : plan.kinds) rounds = std::max(rounds, kind.units);
  // Few units are shared out once more, by halves of the channels, and in the order in which the weights were packed,
  // so that a thread has its half of them in its cache. conv3 of MnistCNN has three units: 0.15 to 0.12 ms (2 threads,
  // Zen 5), and 0.24 to 0.16 at times when what one core has written is slow to reach the other; 2 % of a step.
  const Blocks blocks = channel_blocks(conv2d_kernels<T>(f.conv), f.conv, f.conv.K);
  const int64_t turns = rounds * count, parts = turns < wanted_pieces ? std::min<int64_t>(2, blocks.count()) : 1;
  parallel_for(0, turns * parts, 1, [&](int64_t begin, int64_t end) {
    T* workspace = scratch<T>(Scratch::unit, kernel.workspace_size(f.conv));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i / turns, round = i % turns / count, which = i % turns % count;
      const int64_t first_block = blocks.count() * part / parts, last_block = blocks.count() * (part + 1) / parts;
      const WinogradPlan::Kind& kind = plan.kinds[which];
      const int64_t uneven = which * rounds / count;  // so that not all kinds round alike
      const auto units_before = [&](int64_t turn) { return (kind.units * turn + uneven) / rounds; };
      for (int64_t u = units_before(round); u < units_before(round + 1); ++u) {
        const int64_t first = u * kernel.unit_tiles, last = std::min(kind.count, first + kernel.unit_tiles);
        const WinogradUnit<T> unit = {kind.tiles, first, last, first_block, last_block, workspace, spoilt.data()};
        kernel.forward(f, unit, x, {weight + kind.weight, bias}, y, argmax);
      }
    }
  });
  std::vector<int64_t> images;
  for (int64_t n = 0; n < f.conv.N; ++n) {
    if (spoilt[n]) images.push_back(n);
  }
  return images;
}

}  // namespace fastconv::cpu
