// The names that Python uses for passes and element types.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/plan.h"

namespace fastconv {

template <class Value, size_t count>
using Names = std::array<std::pair<const char*, Value>, count>;

constexpr Names<cpu::Pass, 3> passes{{{"forward", cpu::Pass::forward},
                                      {"backward_data", cpu::Pass::backward_data},
                                      {"backward_weight", cpu::Pass::backward_weight}}};
constexpr Names<ScalarType, 4> types{{{"float32", ScalarType::Float},
                                      {"float64", ScalarType::Double},
                                      {"bfloat16", ScalarType::BFloat16},
                                      {"float16", ScalarType::Half}}};

template <class Value, size_t count>
const char* name_in(const Names<Value, count>& names, Value value) {
  return std::find_if(names.begin(), names.end(), [&](const auto& pair) { return pair.second == value; })->first;
}

// Throws std::invalid_argument for an unknown name of `what`.
template <class Value, size_t count>
Value value_in(const Names<Value, count>& names, const std::string& name, const std::string& what) {
  std::string known;
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i].first) return names[i].second;
    known += (i == 0 ? "" : i + 1 < count ? ", " : " or ") + std::string(names[i].first);
  }
  throw std::invalid_argument("expected " + what + " to be " + known + ", but got '" + name + "'");
}

}  // namespace fastconv
