// Division by a number that is constant during a launch, as one multiplication and a shift (Granlund and Montgomery,
// "Division by Invariant Integers using Multiplication", 1994). A GPU has no instruction that divides integers.
#pragma once

#include "platform.cuh"

namespace fastconv::cuda {

class Divisor {
 public:
  Divisor() = default;
  // Nothing is divided by the size of an empty dimension. 1 is a placeholder.
  explicit Divisor(int64_t size) : divisor_(size > 0 ? size : 1) {
    const int64_t divisor = divisor_;
    while (shift_ < 31 && (int64_t{1} << shift_) < divisor) ++shift_;
    // For a divisor above `most`, every 32-bit quotient is 0. The multiplier 0 and the shift by 31 give this result.
    if (divisor > most) return;
    multiplier_ = static_cast<uint32_t>(((int64_t{1} << 32) * ((int64_t{1} << shift_) - divisor)) / divisor + 1);
  }

  // For n in [0, 2^31).
  FC_HOST_DEVICE int divide(int n) const {
    const auto dividend = static_cast<uint32_t>(n);
    const auto high = static_cast<uint32_t>((static_cast<uint64_t>(dividend) * multiplier_) >> 32);
    return static_cast<int>((high + dividend) >> shift_);
  }

  // For any n >= 0.
  FC_HOST_DEVICE int64_t divide(int64_t n) const { return n <= most ? divide(static_cast<int>(n)) : n / divisor_; }

  FC_HOST_DEVICE int64_t divisor() const { return divisor_; }

  template <class Int>
  FC_HOST_DEVICE Int remainder(Int n, Int quotient) const {
    return n - quotient * static_cast<Int>(divisor_);
  }

 private:
  static constexpr int64_t most = 0x7fffffff;

  int64_t divisor_ = 1;
  uint32_t multiplier_ = 0;
  int shift_ = 0;
};

}  // namespace fastconv::cuda
