// Weights in the order in which the kernels read them. Inference keeps them from call to call until they change,
// because packing the weight takes longer than the convolution of one small image.
//
// The first call with a weight packs it into workspace, because in training every step has new weights. The second call
// with the same weight keeps it in a cache (weight_cache.h). The cache compares every byte. It evicts the least
// recently used entries when its size exceeds FASTCONV_CACHE_MB (512 by default; 0 turns the cache off).
#pragma once

#include <memory>

#include "../../tensor.h"
#include "tiles.h"
#include "weight_cache.h"
#include "workspace.h"

namespace fastconv::cpu {

// Everything that the packed form depends on, except the weight's shape and values.
struct Packing {
  enum Kind { direct, thin_groups, winograd };
  Kind kind;
  int64_t detail;  // for winograd: the sides of its tiles
};

// Returns `bytes` bytes that `pack` has filled, now or in an earlier call. `weight` is dense. A weight that the cache
// does not keep is packed into workspace `use`.
std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Workspace use, const WeightCache::Pack& pack);

// The weight at this address will not change and is not freed until release_weight. It is packed once and never
// compared (fastconv.freeze).
void freeze_weight(const void* weight);
void release_weight(const void* weight);
bool is_frozen(const Tensor& weight);

// For tests.
WeightCache::State packed_weights();

// krsc: the order of the elements of `weight`, which is dense.
template <class T>
void pack_weight_forward(const Conv2dShape& s, const T* weight, bool krsc, T* packed) {
  const Conv2dKernels<T>& kernel = direct_kernels<T>();
  const Blocks blocks = channel_blocks<T>(s, s.group_K());
  parallel_for_each(blocks.count(), [&](int64_t i) { kernel.pack_weight_forward(s, weight, krsc, i, packed); });
}

// The weight of a forward call for the direct kernels.
template <class T>
std::shared_ptr<const T> packed_for_direct(const Conv2dShape& s, const Tensor& weight) {
  const Tensor from = dense(weight);
  if (from.numel() == 0) return {std::shared_ptr<const T>(), workspace<T>(Workspace::packed_weight, 0)};
  const int64_t bytes = direct_kernels<T>().packed_forward_size(s) * static_cast<int64_t>(sizeof(T));
  return std::static_pointer_cast<const T>(packed_weight(s, from, {Packing::direct, 0}, bytes, Workspace::packed_weight,
                                                         [&, krsc = is_nhwc(from)](const void* values, void* to) {
                                                           pack_weight_forward<T>(s, static_cast<const T*>(values),
                                                                                  krsc, static_cast<T*>(to));
                                                         }));
}

// The blocks [first, last) of the weight of backward_data, in the thread's workspace.
template <class T>
const T* packed_for_backward_data(const Conv2dShape& s, const Tensor& weight, int64_t first, int64_t last) {
  const bool krsc = is_nhwc(weight);
  const int64_t block_size = direct_kernels<T>().block_lanes * s.R * s.S * s.group_K();
  T* packed = workspace<T>(Workspace::packed_weight, (last - first) * block_size);
  parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      direct_kernels<T>().pack_weight_backward(s, data<T>(weight), krsc, i, first, packed);
    }
  });
  return packed;
}

// All blocks.
template <class T>
const T* packed_for_backward_data(const Conv2dShape& s, const Tensor& weight) {
  return packed_for_backward_data<T>(s, weight, 0, channel_blocks<T>(s, s.group_C()).count());
}

}  // namespace fastconv::cpu
