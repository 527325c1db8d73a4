// Compares the memory orders of two tensors. NCHW is a batch of matrices (C rows, H * W columns), and NHWC is the same
// batch with each matrix transposed. Other memory orders can be related in the same way.
#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "../../tensor.h"

namespace fastconv::cpu {

// `batches` matrices of rows x columns. They are dense in one tensor, and dense and transposed in the other.
struct Transposition {
  int64_t batches, rows, columns;
};

// The transposition that turns the memory of `from` into that of `to`, if there is one. Both tensors have the same
// sizes and fill their memory.
inline std::optional<Transposition> transposition(const Tensor& from, const Tensor& to) {
  constexpr int dims = 4;
  if (from.dim() != dims) return std::nullopt;
  const auto walk = [](const Tensor& tensor) {
    std::array<int, dims> order{0, 1, 2, 3};
    // Not stable_sort: in libstdc++ 12, it calls a deprecated function, and clang 19 warns.
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      return tensor.stride(a) != tensor.stride(b) ? tensor.stride(a) > tensor.stride(b) : a < b;
    });
    return order;
  };
  const std::array<int, dims> source = walk(from), target = walk(to);
  int first = 0;
  while (first < dims && source[first] == target[first]) ++first;
  for (int turn = first + 1; turn < dims; ++turn) {
    std::array<int, dims> turned = source;
    std::rotate(turned.begin() + first, turned.begin() + turn, turned.end());
    if (turned != target) continue;
    const auto product = [&](int begin, int end) {
      int64_t sizes = 1;
      for (int i = begin; i < end; ++i) sizes *= from.size(source[i]);
      return sizes;
    };
    return Transposition{product(0, first), product(first, turn), product(turn, dims)};
  }
  return std::nullopt;
}

}  // namespace fastconv::cpu
