// A test of csrc/cpu/memory/weight_cache.cpp under ThreadSanitizer. Threads use shared weights and weights that change.
// The cache is so small that it evicts entries while they are in use. A wrong result exits with 1, and ThreadSanitizer
// exits with 66 at a race. make tsan and tests/test_threads.py compile and run this program.
#include "../../csrc/cpu/memory/weight_cache.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using namespace fastconv::cpu;

namespace {

void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

// Runs body on two threads, like torch's parallel_for.
void in_parallel(int64_t count, const WeightCache::Body& body) {
  std::thread other([&] { body(0, count / 2); });
  body(count / 2, count);
  other.join();
}

// A weight of `words` words that are derived from `value`. Different values give the same hint if `sampled` is false:
// they then differ only in the second word, which the hint does not sample.
std::vector<uint64_t> weight_of(uint64_t value, size_t words, bool sampled) {
  std::vector<uint64_t> weight(words, sampled ? value : 7);
  weight[1] = value;
  return weight;
}

// "Packing" inverts all bits.
void pack(const void* weight, void* packed, size_t words) {
  for (size_t i = 0; i < words; ++i) {
    static_cast<uint64_t*>(packed)[i] = ~static_cast<const uint64_t*>(weight)[i];
  }
}

// Looks up a weight and checks its packed form twice. In between, `between` or other threads may evict the entry.
// Returns false if the cache did not keep the weight.
bool use(WeightCache& cache, const std::vector<uint64_t>& weight, bool between(WeightCache&)) {
  const auto bytes = static_cast<int64_t>(weight.size() * sizeof(uint64_t));
  const WeightKey key{{bytes}, nullptr};
  const auto kept = cache.find_or_keep(key, {weight.data(), bytes}, bytes,
                                       [&](const void* from, void* to) { pack(from, to, weight.size()); });
  if (kept == nullptr) return false;
  for (int turn = 0; turn < 2; ++turn) {
    const auto* packed = static_cast<const uint64_t*>(kept.get());
    for (size_t i = 0; i < weight.size(); ++i) {
      if (packed[i] != ~weight[i]) fail("a stale or overwritten packed weight");
    }
    if (turn == 0 && between != nullptr && !between(cache)) break;
  }
  return true;
}

// 8 KB and 4 MB. The cache compares weights of 4 MB in several threads.
constexpr size_t words = 1024, large_words = 1 << 19;
constexpr int64_t entry = 2 * 8 * words + WeightCache::overhead;

void threads_infer_while_weights_change(int rounds) {
  WeightCache cache(4 * entry, in_parallel);  // room for four of the 27 weights below
  std::vector<std::vector<uint64_t>> shared;
  for (uint64_t i = 0; i < 8; ++i) shared.push_back(weight_of(i + 1, words, i % 2 == 0));
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<uint64_t> own = weight_of(100 + t, words, false);
      for (int round = 0; round < rounds; ++round) {
        for (const auto& weight : shared) use(cache, weight, nullptr);
        for (int again = 0; again < 3; ++again) use(cache, own, nullptr);
        own[1] = 1000 * t + static_cast<uint64_t>(round) % 4;  // in place, with the same hint
        if (cache.state().bytes > 4 * entry) fail("more bytes than the limit");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const WeightCache::State state = cache.state();
  if (state.hits == 0 || state.entries == 0) fail("the cache kept nothing, so nothing was tested");
  std::printf("%lld hits in 4 threads, %lld entries kept\n", static_cast<long long>(state.hits),
              static_cast<long long>(state.entries));
}

void an_evicted_entry_lives_as_long_as_it_is_in_use() {
  WeightCache cache(entry, in_parallel);  // room for one weight
  const std::vector<uint64_t> weight = weight_of(1, words, true);
  use(cache, weight, nullptr);
  use(cache, weight, nullptr);
  const auto evict = [](WeightCache& cache) {
    const int64_t hits = cache.state().hits;
    std::thread other([&] {
      for (int again = 0; again < 3; ++again) use(cache, weight_of(2, words, true), nullptr);
    });
    other.join();
    if (cache.state().hits != hits + 1 || cache.state().entries != 1)
      fail("the cache evicted nothing, so nothing was tested");
    return true;
  };
  if (!use(cache, weight, evict)) fail("the cache did not keep the weight");
}

void large_weights_are_compared_by_several_threads() {
  WeightCache cache(int64_t{1} << 30, in_parallel);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::vector<uint64_t> weight = weight_of(1, large_words, false);
      for (uint64_t round = 0; round < 3; ++round) {
        weight[large_words - 2 - t] = round;
        for (int again = 0; again < 3; ++again) use(cache, weight, nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (cache.state().hits == 0) fail("the cache kept nothing, so nothing was tested");
}

}  // namespace

int main(int count, char** arguments) {
  an_evicted_entry_lives_as_long_as_it_is_in_use();
  large_weights_are_compared_by_several_threads();
  threads_infer_while_weights_change(count > 1 ? std::atoi(arguments[1]) : 200);
}
