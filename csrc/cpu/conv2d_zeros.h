// Whether a gradient is so full of zeros that the kernels which skip them win.
#pragma once

#include <atomic>

#include "conv2d.h"

namespace fastconv::cpu {

// The share of elements that are not zero. `tensor` is dense.
template <class T>
double live_share(const Tensor& tensor) {
  const auto& kernel = kernels().conv2d<T>().sparse;
  const T* values = data<T>(tensor);
  std::atomic<int64_t> live{0};
  torch::stable::parallel_for(0, tensor.numel(), 32768, [&](int64_t begin, int64_t end) {
    live += kernel.count_nonzero(values + begin, end - begin);
  });
  return static_cast<double>(live) / static_cast<double>(tensor.numel());
}

// A product with zero is zero only if the other factor is finite. `tensor` is dense.
template <class T>
bool all_finite(const Tensor& tensor) {
  const auto& kernel = kernels().conv2d<T>().sparse;
  const T* values = data<T>(tensor);
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, tensor.numel(), 32768, [&](int64_t begin, int64_t end) {
    if (!kernel.all_finite(values + begin, end - begin)) finite = false;
  });
  return finite;
}

// Time of the dense kernel / time of the sparse one, by live share (Zen 4, AVX-512, one thread, batch 64, 3x3):
//                            0.49  0.30  0.20  0.12  0.05
//   32->64   13x13  weight   1.2   1.7   2.2   2.7   3.8
//                   data     1.2   1.7   2.1   2.8   4.0
//   64->128  5x5    weight   1.5   2.1   2.6   3.3   4.5
//                   data     0.9   1.5   2.2   3.2   5.5
//   16->32   13x13  weight   0.8   1.1   1.4   1.7   2.3
//                   data     0.8   1.1   1.3   1.6   2.1
//   128->128 14x14  weight   1.1   1.8   2.6   3.8   6.5
//                   data     1.0   1.6   2.3   3.7   7.1
// AVX2 is 10 to 20 % less.
constexpr double sparse_below = 0.35;

// Whether to skip zeros: the kernels need runs of taps that fill their vectors. `other`: what g is multiplied with.
template <class T>
bool zeros_pay(const Conv2dShape& s, const Tensor& grad_output, const Tensor& other) {
  const int64_t run = s.dilation_w == 1 ? s.S * s.C : s.C;
  if (s.groups != 1 || run < conv2d_kernels<T>(s).block_lanes) return false;
  return live_share<T>(grad_output) < sparse_below && all_finite<T>(other);
}

}  // namespace fastconv::cpu
