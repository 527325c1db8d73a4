// Winograd's convolution (kernels/winograd.h), for forward and, with the kernel rotated, for backward_data.
#include <vector>

#include "../memory/packed_weights.h"
#include "epilogue.h"
#include "tiling.h"

namespace fastconv::cpu {
namespace {

// The kinds of tiles that a shape is cut into, and where their weights are.
struct Layout {
  struct Kind {
    WinogradTileKind tiles;
    int64_t count, units, weight;
  };
  std::vector<Kind> kinds;
  int64_t packed_size = 0;
  int64_t id = 0;  // the sides of each kind's tiles, as digits in base 5
};

template <class T>
Layout layout_of(const FusedShape& f, const WinogradCut& cut) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  Layout layout;
  for (const WinogradTileKind& kind : cut.kinds) {
    const int64_t count = f.conv.N * kind.per_image();
    if (count == 0) continue;
    layout.kinds.push_back({kind, count, ceil_div(count, kernel.unit_tiles), layout.packed_size});
    layout.packed_size += kernel.packed_size(f.conv, kind);
    layout.id = layout.id * 25 + kind.mh * 5 + kind.mw;
  }
  return layout;
}

// `packed`: the weight as pack_weight_forward packs it. With `rotated`: as pack_weight_backward packs it.
template <class T>
void transform_weight(const FusedShape& f, const Layout& layout, const T* packed, bool rotated, T* weight) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const Blocks blocks = channel_blocks<T>(f.conv, f.conv.K);
  const auto count = static_cast<int64_t>(layout.kinds.size());
  parallel_for_each(blocks.count() * count, [&](int64_t i) {
    const Layout::Kind& kind = layout.kinds[i % count];
    kernel.pack_weight(f.conv, packed, rotated, kind.tiles, i / count, weight + kind.weight);
  });
}

// The transformed weight of a forward call, from the cache if it is there.
template <class T>
std::shared_ptr<const T> transformed_weight(const FusedShape& f, const Layout& layout, const Tensor& weight) {
  const Tensor from = dense(weight);
  const auto pack = [&, krsc = is_nhwc(from)](const void* values, void* to) {
    T* packed = workspace<T>(Workspace::packed_weight, direct_kernels<T>().packed_forward_size(f.conv));
    pack_weight_forward<T>(f.conv, static_cast<const T*>(values), krsc, packed);
    transform_weight<T>(f, layout, packed, false, static_cast<T*>(to));
  };
  return std::static_pointer_cast<const T>(packed_weight(f.conv, from, {Packing::winograd, layout.id},
                                                         layout.packed_size * static_cast<int64_t>(sizeof(T)),
                                                         Workspace::winograd_weight, pack));
}

// y and argmax: NHWC; argmax may be null. Returns the images whose results are not finite. Their results are not valid,
// because the transforms spread an infinity or NaN over a whole tile.
template <class T>
std::vector<int64_t> convolve(const FusedShape& f, const Layout& layout, const Tensor& input,
                              const PackedWeight<T>& weight, T* y, uint8_t* argmax) {
  const WinogradKernels<T>& kernel = kernels().conv2d<T>().winograd;
  const auto count = static_cast<int64_t>(layout.kinds.size());
  const Tensor nhwc = to_nhwc<T>(input);
  std::vector<uint8_t> non_finite(static_cast<size_t>(f.conv.N));
  // Tiles of different kinds take different times. So each round computes a share of every kind, and all threads get a
  // similar mix.
  int64_t rounds = 0;
  for (const Layout::Kind& kind : layout.kinds) rounds = std::max(rounds, kind.units);
  // If there are few units, the work is also divided by halves of the output channels. A thread then reads the half of
  // the weight that it packed, which is in its cache. conv3 of MnistCNN has three units and takes 0.12 ms instead of
  // 0.15 (2 threads of Zen 5). At times when data moves slowly between the cores, it takes 0.16 instead of 0.24. The
  // halves save 2 % of a step.
  const Blocks blocks = channel_blocks<T>(f.conv, f.conv.K);
  const int64_t turns = rounds * count, parts = turns < wanted_pieces ? std::min<int64_t>(2, blocks.count()) : 1;
  parallel_for(0, turns * parts, 1, [&](int64_t begin, int64_t end) {
    T* transforms = workspace<T>(Workspace::intermediate, kernel.workspace_size(f.conv));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i / turns, round = i % turns / count, which = i % turns % count;
      const int64_t first_block = blocks.count() * part / parts, last_block = blocks.count() * (part + 1) / parts;
      const Layout::Kind& kind = layout.kinds[which];
      const int64_t uneven = which * rounds / count;  // so that the extra units of the kinds fall into different rounds
      const auto units_before = [&](int64_t r) { return (kind.units * r + uneven) / rounds; };
      for (int64_t u = units_before(round); u < units_before(round + 1); ++u) {
        const int64_t first = u * kernel.unit_tiles, last = std::min(kind.count, first + kernel.unit_tiles);
        const WinogradUnit<T> unit{kind.tiles, first, last, first_block, last_block, transforms, non_finite.data()};
        kernel.forward(f, unit, data<T>(nhwc), {weight.data + kind.weight, weight.bias}, y, argmax);
      }
    }
  });
  std::vector<int64_t> images;
  for (int64_t n = 0; n < f.conv.N; ++n) {
    if (non_finite[n]) images.push_back(n);
  }
  return images;
}

}  // namespace

template <class T>
void winograd_forward(const Forward& call, const WinogradCut& cut) {
  const FusedShape& f = call.shape;
  const Bias<T> bias(call.bias, call.weight);
  const WholeResult<T> y(call.output);
  const Layout layout = layout_of<T>(f, cut);
  const auto weight = transformed_weight<T>(f, layout, call.weight);
  const auto again = convolve<T>(f, layout, call.input, {weight.get(), bias.data}, y.data(), call.argmax);
  TileEpilogue<T>(call).apply_to_all(y.data(), f.conv.N * f.conv.P * f.conv.Q);
  y.finish();
  Forward one = call;
  std::optional<Epilogue> epilogue;
  one.shape.conv.N = one.shape.pool.N = 1;
  for (const int64_t n : again) {
    one.input = image(call.input, n), one.output = image(call.output, n);
    one.argmax = call.argmax_from(n, 0);
    if (call.epilogue) {
      epilogue = *call.epilogue;
      if (epilogue->residual) epilogue->residual = image(*epilogue->residual, n);
      one.epilogue = &*epilogue;
    }
    direct_forward<T>(one, true);
  }
}

template <class T>
void winograd_backward_data(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                            const Tensor& weight, const Tensor& grad_input) {
  const WholeResult<T> dx(grad_input);
  const T* packed = packed_for_backward_data<T>(s, weight);
  const FusedShape turned = without_pool(turned_around(s));
  const Layout layout = layout_of<T>(turned, cut);
  T* transformed = workspace<T>(Workspace::winograd_weight, layout.packed_size);
  transform_weight<T>(turned, layout, packed, true, transformed);
  const auto again = convolve<T>(turned, layout, grad_output, {transformed, nullptr}, dx.data(), nullptr);
  dx.finish();
  Conv2dShape one = s;
  one.N = 1;
  for (const int64_t n : again) direct_backward_data<T>(one, image(grad_output, n), weight, image(grad_input, n));
}

#define FASTCONV_INSTANTIATE(T)                                                                                 \
  template void winograd_forward<T>(const Forward&, const WinogradCut&);                                        \
  template void winograd_backward_data<T>(const Conv2dShape&, const WinogradCut&, const Tensor&, const Tensor&, \
                                          const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
