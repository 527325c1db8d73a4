#include "tuning.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "forced_choices.h"
#include "gradient.h"
#include "memory/reduced.h"
#include "slower_calls.h"

namespace fastconv::cpu {
namespace tuning {

std::atomic<bool> in_use{false};

namespace {

struct State {
  std::mutex mutex;  // protects `table`
  TunedTable table;
  std::mutex timing;          // held while candidates run, because two timings at once would disturb each other
  std::atomic<int> depth{0};  // of fastconv.tune()
};

// Never destroyed: threads may compute while the process ends.
State& state() {
  static State& state = *new State;
  return state;
}

// Runs f(state) while `mutex` is held.
template <class F>
void change(const F& f) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  f(s);
  in_use = s.depth > 0 || !s.table.choices().empty();
}

thread_local std::array<Candidate, 3> current_choices{};

// ---- what a choice depends on ------------------------------------------------------------------------------------

Order order_of(const Tensor& tensor) {
  const bool nchw = is_nchw(tensor), nhwc = is_nhwc(tensor);
  return nchw && nhwc ? Order::either : nchw ? Order::nchw : nhwc ? Order::nhwc : Order::strided;
}

// NCHW and NHWC are the same for a tensor of one channel or one pixel.
bool has_two_orders(Pass pass, const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  if (pass == Pass::forward) return s.K > 1 && f.pool.P * f.pool.Q > 1;
  return pass == Pass::backward_data ? s.C > 1 && s.H * s.W > 1 : s.group_C() > 1 && s.R * s.S > 1;
}

TunedCall call_of(Pass pass, const Operands& o) {
  return {pass,
          o.shape,
          o.fused,
          o.first.scalar_type(),
          {order_of(o.first), order_of(o.second)},
          o.channels_last && has_two_orders(pass, o.shape) ? Order::nhwc : Order::nchw,
          static_cast<int>(torch::stable::get_num_threads())};
}

bool is_nonzero(const char* element, int64_t bytes) {
  if (bytes == 1) return static_cast<uint8_t>(*element) != no_gradient;
  uint64_t bits = 0;
  std::memcpy(&bits, element, static_cast<size_t>(bytes));
  return bits << (65 - 8 * bytes) != 0;  // without the sign
}

// The share of non-zero values in a 4-D tensor of numbers or an argmax, from a sample that is the same in every call.
double sampled_share(const Tensor& tensor) {
  constexpr int64_t most = 1024;
  const int64_t all = tensor.numel(), samples = std::min(all, most);
  const auto bytes = static_cast<int64_t>(tensor.element_size());
  const char* from = data<char>(tensor);
  const Ints sizes = sizes_of(tensor), strides(tensor.strides().begin(), tensor.strides().end());
  int64_t nonzero = 0;
  for (int64_t i = 0; i < samples; ++i) {
    int64_t index = samples == all ? i : sample_position(i, all);
    int64_t offset = 0;
    for (size_t d = 4; d-- > 0;) {
      offset += index % sizes[d] * strides[d];
      index /= sizes[d];
    }
    nonzero += is_nonzero(from + offset * bytes, bytes);
  }
  return static_cast<double>(nonzero) / static_cast<double>(samples);
}

int eighths_of(const Operands& o) {
  const Conv2dShape& s = o.shape.conv;
  double share = sampled_share(o.argmax ? *o.argmax : o.first);
  if (o.argmax) share *= static_cast<double>(o.shape.windows()) / static_cast<double>(s.N * s.P * s.Q);
  return std::clamp(static_cast<int>(std::ceil(share * 8)), 0, 8);
}

bool all_finite(const Tensor& tensor) {
  const View view{is_reduced(tensor)};
  bool finite = true;
  view.dispatch(tensor, "all_finite", [&](auto type) {
    finite = cpu::all_finite<decltype(type)>(view.read(dense(tensor), Workspace::wide_input));
  });
  return finite;
}

// ---- candidates --------------------------------------------------------------------------------------------------

// Returns whether all tensors but the weight are in NHWC.
bool is_nhwc(const TunedCall& call) {
  const Conv2dShape& s = call.shape.conv;
  if (call.pass == Pass::backward_weight) {
    return call.operands[0] != Order::nchw && call.operands[1] != Order::nchw;
  }
  const bool data = call.pass == Pass::backward_data;
  const int64_t channels = data ? s.C : s.K, pixels = data ? s.H * s.W : s.P * s.Q;
  const bool result = call.result == Order::nhwc || channels == 1 || pixels == 1;
  return call.operands[0] != Order::nchw && result;
}

template <class T>
Candidate planned_in(const TunedCall& call, double nonzero) {
  const bool nhwc = is_nhwc(call);
  if (!call.fused && multiplies_pairs(call.shape.conv, call.pass, call.type, nhwc)) return Candidate::pairs;
  if (!call.fused && torch_is_faster(call.shape.conv, call.pass, call.type, nhwc)) return Candidate::torch;
  if (call.pass == Pass::forward) {
    const bool krsc = call.operands[1] == Order::nhwc || call.operands[1] == Order::either;
    return candidate_of(plan_forward<T>(call.shape, krsc, call.fused), call.fused);
  }
  const GradientFacts facts{call.fused, [=](double) { return nonzero; }, [] { return true; }};
  return candidate_of(plan_backward<T>(call.pass, call.shape, facts));
}

// The candidate that the plan uses now. While a Following exists, this is its candidate, if that can compute the call.
Candidate planned(const TunedCall& call, double nonzero) {
  return call.type == ScalarType::Double ? planned_in<double>(call, nonzero) : planned_in<float>(call, nonzero);
}

std::vector<Candidate> candidates_of(const TunedCall& call) {
  // For calls of the rule `padding`, fastconv's algorithms would need much time and memory.
  const char* rule = call.fused ? nullptr : rule_for_torch(call.shape.conv, call.pass, call.type, is_nhwc(call));
  if (rule && torch_is_allowed() && std::strcmp(rule, "padding") == 0) return {Candidate::torch};
  std::vector<Candidate> result;
  for (int i = 1; i < static_cast<int>(Candidate::candidates); ++i) {
    const auto candidate = static_cast<Candidate>(i);
    const Following following(call.pass, candidate);
    if (planned(call, 1) == candidate) result.push_back(candidate);
  }
  return result;
}

// ---- timing ------------------------------------------------------------------------------------------------------

constexpr double never_ran = std::numeric_limits<double>::infinity();

// Times are in seconds.
struct Timing {
  Candidate candidate;
  double best = never_ran, second = never_ran;
  bool dropped = false;

  void add(double seconds) {
    second = std::min(second, std::max(best, seconds));
    best = std::min(best, seconds);
  }
  // Two runs took nearly the same time, so it is unlikely that both were disturbed.
  bool is_settled() const { return dropped || second <= 1.1 * best; }
};

// Runs one candidate. One that fails, for example because it needs too much memory, is dropped.
void run_once(Pass pass, Timing& timing, const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    const Following following(pass, timing.candidate);
    run();
  } catch (...) {
    timing = {timing.candidate, never_ran, never_ran, true};
    return;
  }
  timing.add(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

// Runs the candidates in turn and takes the least time of each. The first round also fills the caches, and PyTorch
// compiles its kernels in it. The third one is the first that finds the packed weight in the cache. Candidates that are
// much slower than the best are dropped: expensive ones at once, the others after four rounds. While other programs
// disturb the times, there are more rounds.
std::vector<Timing> time_all(Pass pass, const std::vector<Candidate>& candidates, const std::function<void()>& run) {
  constexpr int few_rounds = 2, some_rounds = 4, most_rounds = 20;
  constexpr double much = 4, expensive = 0.05, expensive_to_compile = 0.2, some_seconds = 0.1, most_seconds = 1;
  std::vector<Timing> timings;
  for (const Candidate candidate : candidates) timings.push_back({candidate});
  double spent = 0;
  for (int round = 1; round <= most_rounds; ++round) {
    double best = never_ran, of_round = 0;
    for (Timing& timing : timings) {
      if (timing.dropped) continue;
      run_once(pass, timing, run);
      best = std::min(best, timing.best);
      if (!timing.dropped) of_round += timing.best;
    }
    const double least = round == 1 ? expensive_to_compile : round < some_rounds ? expensive : 0;
    const double hopeless = std::max(much * best, least);
    for (Timing& timing : timings) timing.dropped = timing.dropped || timing.best > hopeless;
    spent += of_round;
    const bool settled = std::all_of(timings.begin(), timings.end(), [](const Timing& t) { return t.is_settled(); });
    if (round >= few_rounds && spent > most_seconds) break;
    if (round >= some_rounds && spent > some_seconds && settled) break;
  }
  return timings;
}

Choice choice_of(const TunedCall& call, int eighths, Candidate planned, const std::vector<Timing>& timings) {
  Choice choice{call, eighths, Candidate::none, planned, {}};
  constexpr double noise = 1.03;  // The plan's own choice wins if it is at most this much slower.
  double best = never_ran;
  for (const Timing& timing : timings) {
    if (timing.best == never_ran) continue;
    choice.microseconds.emplace_back(timing.candidate, timing.best * 1e6);
    const double seconds = timing.candidate == planned ? timing.best / noise : timing.best;
    if (seconds < best) best = seconds, choice.chosen = timing.candidate;
  }
  return choice;
}

bool is_empty(const Conv2dShape& s) { return std::min({s.N, s.C, s.H, s.W, s.K, s.P, s.Q}) == 0; }

}  // namespace

// ---- the interface -----------------------------------------------------------------------------------------------

Candidate current(Pass pass) { return current_choices[static_cast<size_t>(pass)]; }

Following::Following(Pass pass, Candidate candidate) : pass_(pass) {
  current_choices[static_cast<size_t>(pass)] = candidate;
}
Following::~Following() { current_choices[static_cast<size_t>(pass_)] = Candidate::none; }

Candidate choose(Pass pass, const Operands& operands, const std::function<void()>& run) {
  if (algorithms_are_forced() || is_empty(operands.shape.conv)) return Candidate::none;
  State& s = state();
  const TunedCall call = call_of(pass, operands);
  std::optional<int> sampled;
  const auto eighths = [&] { return sampled ? *sampled : *(sampled = eighths_of(operands)); };
  const auto known = [&] {
    const std::lock_guard lock(s.mutex);
    return s.table.find(call, eighths);
  };
  const Candidate found = known();
  if (found != Candidate::none || s.depth == 0) return found;
  const std::lock_guard timing(s.timing);
  if (const Candidate of_other_thread = known(); of_other_thread != Candidate::none) return of_other_thread;
  // Some algorithms cannot compute infinities and NaN. Then other algorithms would run, and be timed in their place.
  if (pass != Pass::forward && !all_finite(operands.second)) return Candidate::none;
  const std::vector<Candidate> candidates = candidates_of(call);
  const bool zeros_matter = std::any_of(candidates.begin(), candidates.end(), skips_zeros);
  const Candidate by_rules = planned(call, zeros_matter ? eighths() / 8.0 : 1);
  const int share = zeros_matter ? eighths() : any_share;
  const Choice choice = choice_of(call, share, by_rules, time_all(pass, candidates, run));
  if (choice.chosen == Candidate::none) return Candidate::none;
  change([&](State& to) { to.table.put(choice); });
  return choice.chosen;
}

void begin() {
  change([](State& s) { ++s.depth; });
}

void end() {
  change([](State& s) { --s.depth; });
}

void restore(const std::vector<Choice>& choices) {
  change([&](State& s) {
    for (const Choice& choice : choices) s.table.put(choice);
  });
}

void forget() {
  change([](State& s) { s.table.clear(); });
}

std::vector<Choice> choices() {
  const std::lock_guard lock(state().mutex);
  std::vector<Choice> result = state().table.choices();
  std::erase_if(result, [](const Choice& choice) { return choice.call.level != &kernels(); });
  return result;
}

Candidate find(const TunedCall& call, int eighths) {
  if (algorithms_are_forced()) return Candidate::none;
  const std::lock_guard lock(state().mutex);
  return state().table.find(call, [=] { return eighths; });
}

}  // namespace tuning
}  // namespace fastconv::cpu
