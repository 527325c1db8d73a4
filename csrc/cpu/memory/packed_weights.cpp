#include "packed_weights.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

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

// The packed forms of weights that do not change, by the address of the weight.
class FrozenWeights {
 public:
  void add(const void* weight) {
    const std::lock_guard lock(mutex_);
    packed_.try_emplace(weight);
    count_ = packed_.size();
  }
  void remove(const void* weight) {
    const std::lock_guard lock(mutex_);
    packed_.erase(weight);
    count_ = packed_.size();
  }
  bool has(const void* weight) {
    if (count_.load(std::memory_order_relaxed) == 0) return false;
    const std::lock_guard lock(mutex_);
    return packed_.count(weight) > 0;
  }

  // Returns the packed form, and makes it in the first call. Null if the weight is not frozen.
  std::shared_ptr<const void> find_or_pack(const WeightKey& key, const void* weight, int64_t bytes,
                                           const WeightCache::Pack& pack) {
    if (!has(weight)) return nullptr;
    if (auto found = find(key, weight)) return found;
    const size_t size = (static_cast<size_t>(bytes) + 63) / 64 * 64;
    const std::shared_ptr<void> memory(std::aligned_alloc(64, size), std::free);
    if (memory == nullptr) return nullptr;
    pack(weight, memory.get());
    const std::lock_guard lock(mutex_);
    const auto forms = packed_.find(weight);
    if (forms != packed_.end()) forms->second.push_back({key, memory});
    return memory;
  }

 private:
  struct Form {
    WeightKey key;
    std::shared_ptr<const void> packed;
  };

  std::shared_ptr<const void> find(const WeightKey& key, const void* weight) {
    const std::lock_guard lock(mutex_);
    const auto forms = packed_.find(weight);
    if (forms == packed_.end()) return nullptr;
    for (const Form& form : forms->second) {
      if (form.key == key) return form.packed;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::unordered_map<const void*, std::vector<Form>> packed_;
  std::atomic<size_t> count_ = 0;
};

FrozenWeights& frozen_weights() {
  static FrozenWeights& weights = *new FrozenWeights;
  return weights;
}

}  // namespace

void freeze_weight(const void* weight) { frozen_weights().add(weight); }
void release_weight(const void* weight) { frozen_weights().remove(weight); }
bool is_frozen(const Tensor& weight) { return frozen_weights().has(data<void>(weight)); }

std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Workspace use, const WeightCache::Pack& pack) {
  const WeightKey key{{s.K, s.C, s.R, s.S, s.groups, is_nhwc(weight), is_nchw(weight),
                       static_cast<int64_t>(weight.scalar_type()), packing.kind, packing.detail},
                      &kernels()};
  const WeightBytes from{data<void>(weight), weight.numel() * static_cast<int64_t>(weight.element_size())};
  if (auto frozen = frozen_weights().find_or_pack(key, from.data, bytes, pack)) return frozen;
  if (auto kept = cache().find_or_keep(key, from, bytes, pack)) return kept;
  void* to = workspace<char>(use, bytes);
  pack(from.data, to);
  return {std::shared_ptr<const void>(), to};  // workspace: the pointer owns nothing
}

WeightCache::State packed_weights() { return cache().state(); }

}  // namespace fastconv::cpu
