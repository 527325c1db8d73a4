// Weights as the kernels read them, kept from call to call until they change: in inference on one small image, packing
// the weight takes longer than the convolution.
//
// A weight that is seen for the first time is packed into scratch: in training, every weight is new in every step. A
// weight that is seen again is kept. weight_cache.h finds it by comparing every byte. The least recently used entries
// are evicted when all take more than FASTCONV_CACHE_MB (512 by default; 0 keeps nothing).
#pragma once

#include <memory>

#include "conv2d.h"
#include "weight_cache.h"

namespace fastconv::cpu {

// What the packed form depends on besides the weight's shape and values.
struct Packing {
  enum Kind { direct, winograd };
  Kind kind;
  int64_t detail;  // of Winograd: the plan's layout
};

// `bytes` bytes that `pack` has filled, now or earlier. `weight` is dense. `use`: the scratch of a weight that is not
// kept.
std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Scratch use, const WeightCache::Pack& pack);

// For tests.
WeightCache::State packed_weights();

// krsc: the order of the elements of `weight`, which is dense.
template <class T>
void pack_weight_forward(const Conv2dShape& s, const T* weight, bool krsc, T* packed) {
  const Conv2dKernels<T>& kernel = conv2d_kernels<T>(s);
  const Blocks blocks = channel_blocks(kernel, s, s.group_K());
  parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.pack_weight_forward(s, weight, krsc, i, packed);
  });
}

// For the direct kernels, kept.
template <class T>
std::shared_ptr<const T> direct_weight(const Conv2dShape& s, const Tensor& weight) {
  const Tensor from = dense(weight);
  if (from.numel() == 0) return {std::shared_ptr<const T>(), scratch<T>(Scratch::weight, 0)};
  const int64_t bytes = conv2d_kernels<T>(s).packed_forward_size(s) * static_cast<int64_t>(sizeof(T));
  return std::static_pointer_cast<const T>(packed_weight(
      s, from, {Packing::direct, 0}, bytes, Scratch::weight, [&, krsc = is_nhwc(from)](const void* values, void* to) {
        pack_weight_forward<T>(s, static_cast<const T*>(values), krsc, static_cast<T*>(to));
      }));
}

}  // namespace fastconv::cpu
