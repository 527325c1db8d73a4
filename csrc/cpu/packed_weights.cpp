#include "packed_weights.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <vector>

#include "capability.h"

namespace fastconv::cpu {
namespace {

using Hash = std::array<uint64_t, 2>;

// Multiply and fold, over words of 64 bits in eight lanes that a vector or a superscalar core takes at once.
Hash hash_chunk(const char* bytes, int64_t count, uint64_t seed) {
  constexpr int lanes = 8;
  constexpr uint64_t prime = 0x9e3779b97f4a7c15;
  uint64_t state[lanes];
  for (int lane = 0; lane < lanes; ++lane) state[lane] = seed + prime * static_cast<uint64_t>(lane + 1);
  const auto mix = [&](const uint64_t* words) {
    for (int lane = 0; lane < lanes; ++lane) {
      const uint64_t mixed = (state[lane] ^ words[lane]) * prime;
      state[lane] = mixed ^ mixed >> 32;
    }
  };
  constexpr int64_t step = lanes * sizeof(uint64_t);
  uint64_t words[lanes];
  int64_t at = 0;
  for (; at + step <= count; at += step) {
    std::memcpy(words, bytes + at, step);
    mix(words);
  }
  std::memset(words, 0, step);
  std::memcpy(words, bytes + at, static_cast<size_t>(count - at));
  mix(words);
  Hash hash{seed, ~seed};
  for (int lane = 0; lane < lanes; ++lane) {
    uint64_t& half = hash[lane % 2];
    half = (half ^ state[lane]) * prime;
    half ^= half >> 29;
  }
  return hash;
}

Hash hash_of(const Tensor& weight) {
  constexpr int64_t chunk = 64 * 1024;
  const int64_t bytes = weight.numel() * static_cast<int64_t>(weight.element_size());
  const auto* from = static_cast<const char*>(weight.const_data_ptr());
  std::vector<Hash> parts(static_cast<size_t>(ceil_div(bytes, chunk)));
  parallel_for(0, static_cast<int64_t>(parts.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      parts[i] = hash_chunk(from + i * chunk, std::min(chunk, bytes - i * chunk), static_cast<uint64_t>(i));
    }
  });
  if (parts.size() == 1) return parts[0];
  return hash_chunk(reinterpret_cast<const char*>(parts.data()), static_cast<int64_t>(parts.size() * sizeof(Hash)), 0);
}

// Values, sizes, order, element type, packing, ISA level.
using Key = std::tuple<Hash, std::array<int64_t, 8>, Packing::Kind, int64_t, const Kernels*>;

class Cache {
 public:
  std::shared_ptr<const void> find(const Key& key, int64_t bytes, Scratch use, const std::function<void(void*)>& pack) {
    bool seen = false;
    {
      const std::lock_guard lock(mutex_);
      const auto found = where_.find(key);
      seen = found != where_.end();
      if (!seen) {
        insert({key, nullptr, 0});
      } else if (found->second->packed) {
        entries_.splice(entries_.begin(), entries_, found->second);
        ++hits_;
        return found->second->packed;
      }
    }
    if (!seen || bytes > most_bytes_) {
      void* to = scratch<char>(use, bytes);
      pack(to);
      return {std::shared_ptr<const void>(), to};  // the thread's own, which nobody gives back
    }
    void* to = std::aligned_alloc(64, static_cast<size_t>(ceil_div(bytes, 64) * 64));
    if (to == nullptr) throw std::bad_alloc();
    const std::shared_ptr<const void> packed(to, [](const void* memory) { std::free(const_cast<void*>(memory)); });
    pack(to);
    const std::lock_guard lock(mutex_);
    insert({key, packed, bytes});
    return packed;
  }

  PackedWeights state() {
    const std::lock_guard lock(mutex_);
    return {bytes_, hits_};
  }

 private:
  struct Entry {
    Key key;
    std::shared_ptr<const void> packed;  // null after the first sight
    int64_t bytes;
  };

  // In place of what is there by that key: what was seen only, or what another thread packed meanwhile.
  void insert(Entry entry) {
    const auto found = where_.find(entry.key);
    if (found != where_.end()) remove(found->second);
    bytes_ += entry.bytes;
    entries_.push_front(std::move(entry));
    where_[entries_.front().key] = entries_.begin();
    constexpr size_t most_entries = 1024;
    while (entries_.size() > most_entries || bytes_ > most_bytes_) remove(std::prev(entries_.end()));
  }

  void remove(std::list<Entry>::iterator entry) {
    bytes_ -= entry->bytes;
    where_.erase(entry->key);
    entries_.erase(entry);
  }

  static int64_t limit() {
    const char* megabytes = std::getenv("FASTCONV_CACHE_MB");
    return (megabytes && *megabytes ? std::strtoll(megabytes, nullptr, 10) : 256) << 20;
  }

  const int64_t most_bytes_ = limit();
  std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  std::map<Key, std::list<Entry>::iterator> where_;
  int64_t bytes_ = 0, hits_ = 0;
};

// Never destroyed: threads may compute while the process ends.
Cache& cache() {
  static Cache& cache = *new Cache;
  return cache;
}

}  // namespace

std::shared_ptr<const void> packed_weight(const Conv2dShape& s, const Tensor& weight, const Packing& packing,
                                          int64_t bytes, Scratch use, const std::function<void(void*)>& pack) {
  const std::array<int64_t, 8> numbers{
      s.K, s.C, s.R, s.S, s.groups, is_nhwc(weight), is_nchw(weight), static_cast<int64_t>(weight.scalar_type())};
  return cache().find({hash_of(weight), numbers, packing.kind, packing.detail, &kernels()}, bytes, use, pack);
}

PackedWeights packed_weights() { return cache().state(); }

}  // namespace fastconv::cpu
