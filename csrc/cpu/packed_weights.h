// Weights as the kernels want them, kept from call to call while their values stay what they are: in inference, packing
// costs more than the convolution of one small image.
//
// They are found by their content, a hash of 128 bits of all values, and not by address or version: no way to change a
// weight, `weight.data.copy_()` or a foreign pointer, can leave a stale copy in use, and reading a weight is cheap
// beside packing it. What is seen for the first time is packed into scratch, as a weight in training is each time; what
// is seen again is kept. The least recently used go when all take more than FASTCONV_CACHE_MB (256 by default; 0: keep
// none).
#pragma once

#include <functional>
#include <memory>

#include "conv2d.h"

namespace fastconv::cpu {

// What the packed form depends on besides the values.
struct Packing {
  enum Kind { direct, winograd };
  Kind kind;
  int64_t detail;  // of Winograd: the plan's layout
};

// `bytes` bytes that `pack` has filled, now or earlier. `use`: the scratch of what is not kept.
std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Scratch use, const std::function<void(void*)>& pack);

// Bytes kept now, and calls that found what they looked for: for tests.
struct PackedWeights {
  int64_t bytes, hits;
};
PackedWeights packed_weights();

// `weight` is dense.
template <class T>
void pack_weight_forward(const Conv2dShape& s, const Tensor& weight, T* packed) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  const bool krsc = is_nhwc(weight);
  parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.pack_weight_forward(s, data<T>(weight), krsc, i, packed);
  });
}

// For the direct kernels, kept.
template <class T>
std::shared_ptr<const T> direct_weight(const Conv2dShape& s, const Tensor& weight) {
  const Tensor from = dense(weight);
  if (from.numel() == 0) return {std::shared_ptr<const T>(), scratch<T>(Scratch::weight, 0)};
  const int64_t bytes = conv2d_kernels<T>(s).packed_forward_size(s) * static_cast<int64_t>(sizeof(T));
  return std::static_pointer_cast<const T>(
      packed_weight(s, from, {Packing::direct, 0}, bytes, Scratch::weight,
                    [&](void* to) { pack_weight_forward<T>(s, from, static_cast<T*>(to)); }));
}

}  // namespace fastconv::cpu
