// Divides the gradient of the input into forward convolutions of grad_output with stride 1. A stride u divides the rows
// of the input into u phases: row h receives gradients only through the taps r with r * d = h + pad (modulo u). So each
// phase uses a subset of the taps, and no zeros have to be inserted between the pixels of grad_output. Columns are
// divided in the same way.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "tiles.h"

namespace fastconv::cpu {

// One phase has `count` rows of the input: first, first + u, ... Its convolution uses the `taps` kernel rows tap, tap +
// tap_step, ... in reverse order, with `pad` and `dilation`. If `taps` is 0, the gradient of these rows is zero.
struct Phase {
  int64_t first, count;
  int64_t tap, taps, tap_step;
  int64_t pad, dilation;
};

inline std::vector<Phase> phases(int64_t size, int64_t stride, int64_t dilation, int64_t kernel, int64_t pad) {
  std::vector<Phase> result;
  const int64_t common = std::gcd(stride, dilation), tap_step = stride / common;
  for (int64_t first = 0; first < std::min(stride, size); ++first) {
    int64_t tap = 0;
    while (tap < std::min(tap_step, kernel) && (first + pad - tap * dilation) % stride != 0) ++tap;
    Phase phase{first, ceil_div(size - first, stride), tap, 0, tap_step, 0, dilation / common};
    if (tap < std::min(tap_step, kernel)) {
      phase.taps = ceil_div(kernel - tap, tap_step);
      phase.pad = (phase.taps - 1) * phase.dilation - (first + pad - tap * dilation) / stride;
    }
    result.push_back(phase);
  }
  return result;
}

// Returns the rows of grad_output that the outputs `steps` of all phases read. For the phases of columns, it returns
// columns. Some of them may be outside of grad_output.
inline Rows rows_of(const std::vector<Phase>& phases, const Rows& steps) {
  int64_t first = steps.first, end = first + 1;
  for (const Phase& phase : phases) {
    if (phase.taps == 0) continue;
    first = std::min(first, steps.first - phase.pad);
    end = std::max(end, steps.first - phase.pad + reach(steps.count, 1, phase.taps, phase.dilation));
  }
  return {first, end - first};
}

// Returns the convolution of one phase of rows and one of columns. Its input is grad_output. Its result is the gradient
// of the input in these rows and columns.
inline Conv2dShape shape_of(const Conv2dShape& s, const Phase& rows, const Phase& columns) {
  Conv2dShape f = s;
  f.C = s.K, f.H = s.P, f.W = s.Q, f.K = s.C, f.P = rows.count, f.Q = columns.count;
  f.R = rows.taps, f.S = columns.taps, f.pad_h = rows.pad, f.pad_w = columns.pad;
  f.stride_h = f.stride_w = 1, f.dilation_h = rows.dilation, f.dilation_w = columns.dilation;
  return f;
}

}  // namespace fastconv::cpu
