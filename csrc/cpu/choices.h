// For tests: choose algorithms in place of the measurements of algorithms.h. Programs leave every choice as measured.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <stdexcept>
#include <string>

namespace fastconv::cpu {

// Every algorithm that may be forced on the shapes that it can compute, or forbidden. What is left is the direct
// kernels' work.
enum class Algorithm { dot, winograd, window, live, patch, narrow };
constexpr std::array<const char*, 6> algorithm_names{"dot", "winograd", "window", "live", "patch", "narrow"};

enum class Choice { measured, always, never };

inline std::array<std::atomic<Choice>, algorithm_names.size()> choices{};
// In place of FASTCONV_WINOGRAD; -1: none.
inline std::atomic<int> winograd_choice{-1};

inline bool always(Algorithm algorithm) {
  return choices[static_cast<size_t>(algorithm)].load(std::memory_order_relaxed) == Choice::always;
}

inline bool never(Algorithm algorithm) {
  return choices[static_cast<size_t>(algorithm)].load(std::memory_order_relaxed) == Choice::never;
}

// An algorithm that is not named is chosen as measured.
inline void set_algorithms(const std::map<std::string, std::string>& wanted, int winograd) {
  std::array<Choice, algorithm_names.size()> found{};
  size_t known = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const auto at = wanted.find(algorithm_names[i]);
    if (at == wanted.end()) continue;
    ++known;
    if (at->second != "always" && at->second != "never") {
      throw std::invalid_argument("fastconv: expected 'always' or 'never' for an algorithm, but got '" + at->second +
                                  "'");
    }
    found[i] = at->second == "always" ? Choice::always : Choice::never;
  }
  if (known != wanted.size()) {
    throw std::invalid_argument("fastconv: expected algorithms out of dot, winograd, window, live, patch, narrow");
  }
  if (winograd < -1 || winograd == 1 || winograd > 4) {
    throw std::invalid_argument("fastconv: expected winograd to be -1, 0, 2, 3 or 4");
  }
  for (size_t i = 0; i < found.size(); ++i) choices[i] = found[i];
  winograd_choice = winograd;
}

}  // namespace fastconv::cpu
