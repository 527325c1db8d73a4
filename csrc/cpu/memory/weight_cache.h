// A cache of packed weights. It never returns the packed form of another weight. It includes no torch header, so that
// ThreadSanitizer can see all of it (tests/threads/weight_cache.cpp).
//
// An entry holds the packed weight and a copy of the bytes that were packed. A lookup is a hit only if every byte of
// the caller's weight equals the copy. Addresses and version counters prove nothing: other code may write a weight's
// memory through a pointer, and the allocator reuses addresses.
//
// A hint of 64 bits chooses the entries to compare. It samples at most 64 words of the weight. Different weights may
// share a hint. They then cost a comparison, never a wrong result.
//
// Alternatives were measured: microseconds of one lookup, one thread of Zen 4. The weight is in the CPU's caches,
// except in the last row. A plain hash is unsafe: different weights can have the same one.
//
//        bytes      plain hash of 128 bits   NH, 3 lanes of 32 bits   NH, 2 lanes of 64 bits   this comparison
//        1,152                      0.11                     0.06                     0.22                0.01
//       73,728                       4.9                      4.6                      7.1                 1.3
//      294,912                      19.5                     18.4                     28.3                 5.3
//    9,437,184                       629                      588                      911                 230
//   94,371,840                     7,308                    6,457                    9,287               6,796
//
// Inference of one image with one thread, relative to the plain hash: MnistCNN takes 0.76 of the time with the
// comparison and 1.03 with NH. A 3x3 convolution 512->512 of 7x7 pixels takes 0.77 and 1.06. The comparison does not
// change the time of a training step.
//
// NH is the keyed universal hash of UMAC and VMAC (Dai and Krovetz, VHASH Security, 2007). It needs no copy, but it is
// slower. It makes wrong results improbable, and the comparison makes them impossible.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace fastconv::cpu {

// Everything that the packed form depends on, except the weight's bytes.
struct WeightKey {
  std::array<int64_t, 10> numbers;
  const void* kernels;  // of the ISA level
  bool operator==(const WeightKey&) const = default;
};

// A dense weight in memory.
struct WeightBytes {
  const void* data;
  int64_t count;
};

class WeightCache {
 public:
  // Fills `packed` from `weight`, a copy of the caller's bytes.
  using Pack = std::function<void(const void* weight, void* packed)>;
  // Calls body(begin, end) on parts of [0, count), possibly on several threads.
  using Body = std::function<void(int64_t begin, int64_t end)>;
  using Parallel = void (*)(int64_t count, const Body& body);

  // most_bytes: the limit on the sum of all entries. An entry counts its packed weight, its copy and `overhead`.
  WeightCache(int64_t most_bytes, Parallel parallel) : most_bytes_(most_bytes), parallel_(parallel) {}

  // Returns the packed form of `weight` from the cache. If it is not there, but an earlier call probably had the same
  // bytes, packs and keeps it. Returns null if the weight is new or too large. The caller then packs into its own
  // memory. The result is valid as long as the caller holds the pointer, even if the cache evicts the entry.
  std::shared_ptr<const void> find_or_keep(const WeightKey& key, const WeightBytes& weight, int64_t packed_bytes,
                                           const Pack& pack);

  struct State {
    int64_t bytes, entries, hits;
  };
  State state() const;

  static constexpr int64_t overhead = 512;  // bytes of bookkeeping for an entry, at most
  static constexpr size_t most_entries = 1024;
  // The most entries with the same hint. Weights share a hint if all their samples are equal.
  static constexpr size_t most_twins = 4;

 private:
  struct Entry {
    WeightKey key;
    uint64_t hint;
    int64_t weight_bytes, bytes;
    std::shared_ptr<char> memory;  // the packed weight, then the copy
    const char* copy;
  };
  using Entries = std::list<Entry>;

  std::shared_ptr<const void> find(uint64_t hint, const WeightKey& key, const WeightBytes& weight, int64_t bytes);
  bool equal(const void* a, const void* b, int64_t count) const;
  bool seen_before(uint64_t hint);
  void insert(Entry entry);
  void move_out(Entries::iterator entry, Entries& to);

  const int64_t most_bytes_;
  const Parallel parallel_;
  mutable std::mutex mutex_;  // protects all members below; not held while bytes are compared, copied or packed
  Entries entries_;           // the most recently used first
  std::unordered_multimap<uint64_t, Entries::iterator> by_hint_;
  std::array<uint64_t, 1024> seen_{};  // hints of weights that were packed, but not kept
  int64_t bytes_ = 0, hits_ = 0;
};

}  // namespace fastconv::cpu
