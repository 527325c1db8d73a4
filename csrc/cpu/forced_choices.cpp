#include "forced_choices.h"

#include <array>
#include <atomic>
#include <stdexcept>

#include "../environment.h"
#include "plan.h"

namespace fastconv::cpu {
namespace {

enum class Choice { unset, measured, always, never };

constexpr std::array<const char*, options> option_names{"torch",
                                                        "winograd",
                                                        "small_output",
                                                        "sparse_gradient",
                                                        "few_channels",
                                                        "pool_in_registers",
                                                        "weight_as_patches",
                                                        "thin_groups",
                                                        "gemm",
                                                        "pairs",
                                                        "image_filter"};
std::array<std::atomic<Choice>, options> choices{};
std::atomic<int> winograd_side{-1};
std::atomic<int64_t> band_size{0};

Choice choice_of(Option option) { return choices[option].load(std::memory_order_relaxed); }

}  // namespace

bool always(Option option) { return choice_of(option) == Choice::always; }
bool never(Option option) { return choice_of(option) == Choice::never; }

bool torch_is_allowed() {
  if (always(torch_itself)) return true;
  const bool measured = choice_of(torch_itself) == Choice::measured;
  return !never(torch_itself) && (measured || !environment().own_algorithms);
}

bool algorithms_are_forced() {
  for (int option = 0; option < options; ++option) {
    if (always(static_cast<Option>(option)) || never(static_cast<Option>(option))) return true;
  }
  return false;
}

int most_winograd_side() {
  const int forced = winograd_side.load(std::memory_order_relaxed);
  return forced < 0 ? environment().winograd : forced;
}

int64_t forced_band() { return band_size.load(std::memory_order_relaxed); }

void set_algorithms(const std::map<std::string, std::string>& wanted, int side, int64_t band) {
  std::array<Choice, options> found{};
  size_t known = 0;
  for (int option = 0; option < options; ++option) {
    const auto at = wanted.find(option_names[option]);
    if (at == wanted.end()) continue;
    ++known;
    if (at->second != "always" && at->second != "never" && at->second != "measured") {
      throw std::invalid_argument("fastconv: expected 'always', 'never' or 'measured' for an algorithm, but got '" +
                                  at->second + "'");
    }
    found[option] = at->second == "always" ? Choice::always : at->second == "never" ? Choice::never : Choice::measured;
  }
  if (known != wanted.size()) {
    std::string names;
    for (const char* name : option_names) names += (names.empty() ? "" : ", ") + std::string(name);
    throw std::invalid_argument("fastconv: unknown algorithm; expected any of " + names);
  }
  if (side < -1 || side == 1 || side > 4) {
    throw std::invalid_argument("fastconv: expected winograd to be -1, 0, 2, 3 or 4");
  }
  if (band < 0) throw std::invalid_argument("fastconv: expected band to be at least 0");
  for (int option = 0; option < options; ++option) choices[option] = found[option];
  winograd_side = side;
  band_size = band;
}

}  // namespace fastconv::cpu
