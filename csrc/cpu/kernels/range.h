#pragma once

#include <cstdint>

namespace fastconv {

// a / b, rounded up. b is positive.
inline int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

// The i in [0, size) with first <= i * stride + shift < last. For example, the outputs i whose tap at `shift` reads the
// rows (or columns) [first, last) of the input.
struct Range {
  int64_t begin, end;

  Range(int64_t first, int64_t last, int64_t stride, int64_t shift, int64_t size) {
    begin = first - shift, end = last - shift;
    if (stride != 1) begin = ceil_div(begin, stride), end = ceil_div(end, stride);  // divisions are slow
    if (begin < 0) begin = 0;
    if (begin > size) begin = size;
    if (end > size) end = size;
    if (end < begin) end = begin;
  }
};

}  // namespace fastconv
