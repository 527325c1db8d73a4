// The choices that fastconv.tune() made or fastconv.tuning.load() read.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "candidates.h"
#include "capability.h"

namespace fastconv::cpu {

// The memory order of a tensor. `either`: it has one channel or one pixel, so the first two are the same. `strided`:
// neither of them.
enum class Order : uint8_t { nchw, nhwc, either, strided };

// The facts that a choice depends on, except the zeros of a gradient. The operands are input and weight in forward,
// grad_output and weight in backward_data, grad_output and input in backward_weight.
struct TunedCall {
  Pass pass;
  FusedShape shape;
  bool fused;
  ScalarType type;
  std::array<Order, 2> operands;
  Order result;  // nchw or nhwc; nchw for a result of one channel or one pixel
  int threads;
  const Kernels* level = &kernels();  // the ISA level
};

struct Choice {
  TunedCall call;
  // The eighths of the convolution's results that the gradient reaches, rounded up: 0 to 8. -1: they do not matter.
  int eighths;
  Candidate chosen, planned;  // `planned`: the choice of the plan's rules
  std::vector<std::pair<Candidate, double>> microseconds;
};

// Choice::eighths if the zeros of the gradient do not matter.
constexpr int any_share = -1;

// Returns whether the time of a candidate depends on the number of zeros in the gradient.
bool skips_zeros(Candidate candidate);

// Not thread safe.
class TunedTable {
 public:
  // Adds a choice, or replaces the one for the same call.
  void put(const Choice& choice);

  // Returns none if no choice is known. Calls `eighths` only if the choice depends on it.
  Candidate find(const TunedCall& call, const std::function<int()>& eighths) const;

  // In the order in which they were added.
  const std::vector<Choice>& choices() const { return choices_; }

  void clear() { choices_.clear(), positions_.clear(); }

 private:
  using Key = std::array<int64_t, 38>;
  static Key key_of(const TunedCall& call);

  std::vector<Choice> choices_;
  std::map<Key, std::map<int, size_t>> positions_;  // in `choices_`, by call and `eighths`
};

}  // namespace fastconv::cpu
