#include "tuned_table.h"

#include <cstring>
#include <iterator>

namespace fastconv::cpu {

bool skips_zeros(Candidate candidate) {
  return candidate == Candidate::sparse_gradient || candidate == Candidate::weight_as_patches;
}

// The call as numbers.
TunedTable::Key TunedTable::key_of(const TunedCall& call) {
  Key key{static_cast<int64_t>(call.pass),
          call.fused,
          static_cast<int64_t>(call.type),
          static_cast<int64_t>(call.operands[0]),
          static_cast<int64_t>(call.operands[1]),
          static_cast<int64_t>(call.result),
          call.threads,
          reinterpret_cast<intptr_t>(call.level)};
  constexpr size_t first = 8;
  static_assert(first * sizeof(int64_t) + sizeof(FusedShape) ==
                sizeof(Key));  // A shape has no padding between numbers.
  std::memcpy(&key[first], &call.shape, sizeof(FusedShape));
  return key;
}

void TunedTable::put(const Choice& choice) {
  auto& by_share = positions_[key_of(choice.call)];
  const auto [at, is_new] = by_share.try_emplace(choice.eighths, choices_.size());
  if (is_new) {
    choices_.push_back(choice);
  } else {
    choices_[at->second] = choice;
  }
}

Candidate TunedTable::find(const TunedCall& call, const std::function<int()>& eighths) const {
  const auto of_call = positions_.find(key_of(call));
  if (of_call == positions_.end()) return Candidate::none;
  const std::map<int, size_t>& by_share = of_call->second;
  const auto chosen = [&](auto at) { return choices_[at->second].chosen; };
  if (by_share.begin()->first == any_share) return chosen(by_share.begin());
  const int share = eighths();
  const auto above = by_share.lower_bound(share);  // or equal
  if (above != by_share.end() && (above->first == share || skips_zeros(chosen(above)))) return chosen(above);
  // With more non-zero values, a kernel that skips zeros becomes slower, and the others do not.
  if (above != by_share.begin() && !skips_zeros(chosen(std::prev(above)))) return chosen(std::prev(above));
  return Candidate::none;
}

}  // namespace fastconv::cpu
