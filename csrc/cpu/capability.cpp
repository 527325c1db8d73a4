#include "capability.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <fstream>
#include <stdexcept>

#include "../environment.h"

namespace fastconv {
namespace {

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not know f16c before clang 17.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

struct Level {
  const char* name;
  const Kernels* kernels;
  bool (*available)();
};

// Lowest first.
const Level levels[] = {
    {"default", &kernels_default, [] { return true; }},
#if defined(__x86_64__)
    {"avx2", &kernels_avx2,
     [] { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c(); }},
    {"avx512", &kernels_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
              __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
              __builtin_cpu_supports("fma") != 0 && has_f16c();
     }},
#endif
};

const Level& level_named(const std::string& name) {
  std::string have;
  for (const Level& level : levels) {
    if (!level.available()) continue;
    if (name == level.name) return level;
    have += have.empty() ? level.name : std::string(", ") + level.name;
  }
  throw std::invalid_argument("fastconv: CPU capability '" + name + "' is not an ISA level of this machine: " + have);
}

const Level& first_choice() {
  const std::string& chosen = environment().cpu_capability;
  if (!chosen.empty()) return level_named(chosen);
  const Level* best = &levels[0];
  for (const Level& level : levels) {
    if (level.available()) best = &level;
  }
  return *best;
}

std::atomic<const Level*>& current() {
  static std::atomic<const Level*> level{&first_choice()};
  return level;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

const PairsKernels* pairs_kernels() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  if (has && &kernels() == &kernels_avx512) return &kernels_pairs;
#endif
  return nullptr;
}

std::string cpu_capability() { return current().load()->name; }

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Level& level : levels) {
    if (level.available()) names.emplace_back(level.name);
  }
  return names;
}

bool has_wide_avx512() {
#if defined(__x86_64__)
  static const bool is = [] {  // the CPU
    unsigned a, b, c, d;
    if (__get_cpuid(0, &a, &b, &c, &d) == 0 || b != signature_AMD_ebx || __get_cpuid(1, &a, &b, &c, &d) == 0) {
      return false;
    }
    const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
    return family >= 26;
  }();
  return is && &kernels() == &kernels_avx512;
#else
  return false;
#endif
}

// Reads the file, because sysconf returns the sum over all groups of cores on AMD: 320 MB instead of 32 on one machine.
int64_t last_level_cache() {
  static const int64_t size = [] {
    constexpr int64_t unknown = 32 << 20;
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
    int64_t kilobytes = 0;
    return file >> kilobytes && kilobytes > 0 ? kilobytes * 1024 : unknown;
  }();
  return size;
}

void set_cpu_capability(const std::string& name) { current().store(&level_named(name)); }

}  // namespace fastconv
