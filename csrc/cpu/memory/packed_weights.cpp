#include "packed_weights.h"

#include "../../environment.h"
#include "../capability.h"

namespace fastconv::cpu {
namespace {

void in_parallel(int64_t count, const WeightCache::Body& body) { parallel_for(0, count, 1, body); }

// Never destroyed: threads may compute while the process ends.
WeightCache& cache() {
  static WeightCache& cache = *new WeightCache(environment().cache_bytes, in_parallel);
  return cache;
}

}  // namespace

std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Workspace use, const WeightCache::Pack& pack) {
  const WeightKey key{{s.K, s.C, s.R, s.S, s.groups, is_nhwc(weight), is_nchw(weight),
                       static_cast<int64_t>(weight.scalar_type()), packing.kind, packing.detail},
                      &kernels()};
  const WeightBytes from{weight.const_data_ptr(), weight.numel() * static_cast<int64_t>(weight.element_size())};
  if (auto kept = cache().find_or_keep(key, from, bytes, pack)) return kept;
  void* to = workspace<char>(use, bytes);
  pack(from.data, to);
  return {std::shared_ptr<const void>(), to};  // workspace: the pointer owns nothing
}

WeightCache::State packed_weights() { return cache().state(); }

}  // namespace fastconv::cpu
