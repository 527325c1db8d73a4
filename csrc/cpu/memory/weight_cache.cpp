#include "weight_cache.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastconv::cpu {
namespace {

uint64_t mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * 0x9e3779b97f4a7c15;
  return state ^ state >> 32;
}

// Hashes the key and 64 words that are spread evenly over the weight, including the first and the last. Never 0.
uint64_t hint_of(const WeightKey& key, const WeightBytes& weight) {
  uint64_t hint = static_cast<uint64_t>(weight.count);
  for (const int64_t number : key.numbers) hint = mix(hint, static_cast<uint64_t>(number));
  hint = mix(hint, reinterpret_cast<uintptr_t>(key.kernels));
  const auto* bytes = static_cast<const char*>(weight.data);
  constexpr int64_t samples = 64, size = sizeof(uint64_t);
  uint64_t word = 0;
  if (weight.count <= samples * size) {
    for (int64_t at = 0; at < weight.count; at += size) {
      word = 0;
      std::memcpy(&word, bytes + at, static_cast<size_t>(std::min(size, weight.count - at)));
      hint = mix(hint, word);
    }
  } else {
    for (int64_t i = 0; i < samples; ++i) {
      // Quotient and remainder are multiplied separately, so that no product overflows.
      const int64_t last = weight.count - size,
                    at = last / (samples - 1) * i + last % (samples - 1) * i / (samples - 1);
      std::memcpy(&word, bytes + at, size);
      hint = mix(hint, word);
    }
  }
  return hint == 0 ? 1 : hint;
}

}  // namespace

std::shared_ptr<const void> WeightCache::find_or_keep(const WeightKey& key, const WeightBytes& weight,
                                                      int64_t packed_bytes, const Pack& pack) {
  // These sums do not overflow, because memory of both sizes exists or is about to be allocated.
  const int64_t padded = (packed_bytes + 63) / 64 * 64, bytes = padded + weight.count + overhead;
  if (weight.count == 0 || bytes > most_bytes_) return nullptr;
  const uint64_t hint = hint_of(key, weight);
  if (auto found = find(hint, key, weight, bytes)) return found;
  if (!seen_before(hint)) return nullptr;

  const int64_t size = (padded + weight.count + 63) / 64 * 64;
  const std::shared_ptr<char> memory(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(size))), std::free);
  if (memory == nullptr) return nullptr;  // the caller packs into its own memory
  char* copy = memory.get() + padded;
  // Packs the copy and not the weight. If another thread writes the weight meanwhile, copy and packed form still agree.
  std::memcpy(copy, weight.data, static_cast<size_t>(weight.count));
  pack(copy, memory.get());
  if (auto found = find(hint, key, {copy, weight.count}, bytes)) return found;  // another thread was faster
  insert({key, hint, weight.count, bytes, memory, copy});
  return memory;
}

std::shared_ptr<const void> WeightCache::find(uint64_t hint, const WeightKey& key, const WeightBytes& weight,
                                              int64_t bytes) {
  struct Candidate {
    std::shared_ptr<char> memory;
    const char* copy;
  };
  std::array<Candidate, most_twins> candidates;
  size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto [begin, end] = by_hint_.equal_range(hint);
    for (auto i = begin; i != end && count < most_twins; ++i) {
      const Entry& entry = *i->second;
      if (entry.key == key && entry.weight_bytes == weight.count && entry.bytes == bytes) {
        candidates[count++] = {entry.memory, entry.copy};
      }
    }
  }
  for (size_t c = 0; c < count; ++c) {
    if (!equal(candidates[c].copy, weight.data, weight.count)) continue;
    const std::lock_guard lock(mutex_);
    ++hits_;
    const auto [begin, end] = by_hint_.equal_range(hint);
    for (auto i = begin; i != end; ++i) {  // unless it was evicted meanwhile
      if (i->second->memory == candidates[c].memory) entries_.splice(entries_.begin(), entries_, i->second);
    }
    return candidates[c].memory;
  }
  return nullptr;
}

bool WeightCache::equal(const void* a, const void* b, int64_t count) const {
  // Below two parts, starting threads takes longer than the comparison.
  constexpr int64_t part = 1 << 20;
  if (count < 2 * part) return std::memcmp(a, b, static_cast<size_t>(count)) == 0;
  std::atomic<bool> same = true;
  parallel_((count + part - 1) / part, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && same.load(std::memory_order_relaxed); ++i) {
      const auto size = static_cast<size_t>(std::min(part, count - i * part));
      if (std::memcmp(static_cast<const char*>(a) + i * part, static_cast<const char*>(b) + i * part, size) != 0) {
        same.store(false, std::memory_order_relaxed);
      }
    }
  });
  return same;
}

// The answer may be wrong. A wrong "yes" costs the memory of an entry, and a wrong "no" costs one more packing.
bool WeightCache::seen_before(uint64_t hint) {
  const std::lock_guard lock(mutex_);
  uint64_t& slot = seen_[hint % seen_.size()];
  const bool seen = slot == hint;
  slot = seen ? 0 : hint;
  return seen;
}

void WeightCache::insert(Entry entry) {
  Entries evicted;  // freed after the lock is released, because to free large memory takes time
  const std::lock_guard lock(mutex_);
  const uint64_t hint = entry.hint;
  bytes_ += entry.bytes;
  entries_.push_front(std::move(entry));
  by_hint_.emplace(hint, entries_.begin());
  if (by_hint_.count(hint) > most_twins) {
    const auto oldest =
        std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& e) { return e.hint == hint; });
    move_out(std::prev(oldest.base()), evicted);
  }
  while (entries_.size() > most_entries || bytes_ > most_bytes_) move_out(std::prev(entries_.end()), evicted);
}

void WeightCache::move_out(Entries::iterator entry, Entries& to) {
  const auto [begin, end] = by_hint_.equal_range(entry->hint);
  by_hint_.erase(std::find_if(begin, end, [&](const auto& pair) { return pair.second == entry; }));
  bytes_ -= entry->bytes;
  to.splice(to.end(), entries_, entry);
}

WeightCache::State WeightCache::state() const {
  const std::lock_guard lock(mutex_);
  return {bytes_, static_cast<int64_t>(entries_.size()), hits_};
}

}  // namespace fastconv::cpu
