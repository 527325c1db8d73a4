// fastconv.tune(): times the candidates of each convolution that it meets, and keeps the fastest for the process.
// fastconv/tuning.py is the Python side. docs/howto/tuning.md describes it for users.
//
// An operator creates a Tuned object for each of its passes. While the object exists, the plan follows the choice for
// that pass: it asks tuned_choice(). Within fastconv.tune(), the object's constructor first times the pass, if no
// choice for it is known. If nothing is tuned, an operator reads one flag.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "tuned_table.h"

namespace fastconv::cpu {

// The operands of one pass of an operator.
struct Operands {
  FusedShape shape;
  Tensor first, second;
  bool channels_last;                           // of the result
  std::optional<Tensor> argmax = std::nullopt;  // of fused backward operators
  bool fused = false;
};

namespace tuning {

// True if there are choices, or if fastconv.tune() is active.
extern std::atomic<bool> in_use;

// The candidate that this thread's plans of a pass follow now. none: they follow the plan's rules.
Candidate current(Pass pass);

// While an object exists, this thread's plans of a pass use its candidate, if that can compute the call.
class Following {
 public:
  Following(Pass pass, Candidate candidate);
  ~Following();
  Following(const Following&) = delete;
  Following& operator=(const Following&) = delete;

 private:
  Pass pass_;
};

// Returns the choice for a call. Within fastconv.tune(), makes it if it is missing: calls `run` with each candidate.
Candidate choose(Pass pass, const Operands& operands, const std::function<void()>& run);

// ---- for Python --------------------------------------------------------------------------------------------------

// Begin and end fastconv.tune(), for all threads. The calls nest.
void begin();
void end();

// The choices for the ISA level in use, in the order in which they were made or loaded.
std::vector<Choice> choices();

// Adds choices, and replaces those for the same calls.
void restore(const std::vector<Choice>& choices);
void forget();

// The choice for a call, without a tensor.
Candidate find(const TunedCall& call, int eighths);

}  // namespace tuning

// The candidate stays the same throughout a call, even if another thread forgets or loads choices.
inline Candidate tuned_choice(Pass pass) { return tuning::current(pass); }

class Tuned {
 public:
  // `operands` returns the Operands of the pass, and `run` computes the pass. Does nothing unless `wanted`.
  template <class MakeOperands, class Run>
  Tuned(Pass pass, bool wanted, const MakeOperands& operands, const Run& run) {
    if (!tuning::in_use.load(std::memory_order_relaxed) || !wanted) return;
    following_.emplace(pass, tuning::choose(pass, operands(), run));
  }

 private:
  std::optional<tuning::Following> following_;
};

}  // namespace fastconv::cpu
