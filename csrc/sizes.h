// The size formulas of convolution and pooling, without overflow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <string>

namespace fastconv {

// Sums and products of a few 64-bit sizes are exact in 128 bits, so no size formula can overflow.
using Wide = __int128;

struct Count {
  Wide value;
};

inline std::ostream& operator<<(std::ostream& out, Count count) {
  std::string digits;
  Wide rest = count.value;
  do {
    digits += static_cast<char>('0' + static_cast<int>(rest < 0 ? -(rest % 10) : rest % 10));
    rest /= 10;
  } while (rest != 0);
  if (count.value < 0) digits += '-';
  std::reverse(digits.begin(), digits.end());
  return out << digits;
}

// Rounds towards minus infinity. b > 0.
inline Wide floor_div(Wide a, Wide b) { return a / b - (a % b < 0 ? 1 : 0); }

// The number of pixels along one side that the taps of one output span.
inline Wide extent(int64_t taps, int64_t dilation) {
  return static_cast<Wide>(dilation) * (static_cast<Wide>(taps) - 1) + 1;
}

inline Wide padded(int64_t size, int64_t pad) { return static_cast<Wide>(size) + 2 * static_cast<Wide>(pad); }

// For convolutions. A stride above the size of the padded image has the effect of that size: there is one output. With
// this limit, no product of two strides overflows.
inline int64_t useful_stride(int64_t stride, int64_t size, int64_t pad) {
  const Wide most = padded(size, pad);
  return stride > most ? std::max<int64_t>(static_cast<int64_t>(most), 1) : stride;
}

// The number of outputs along one side. It is less than 1 if the taps do not fit.
inline Wide output_size(int64_t size, int64_t taps, int64_t pad, int64_t stride, int64_t dilation) {
  return floor_div(padded(size, pad) - extent(taps, dilation), stride) + 1;
}

// The number of a pool's windows along one side. PyTorch's rule for ceil_mode drops a last window that would start
// beyond the input and its left padding.
inline Wide pooled_size(int64_t size, int64_t kernel, int64_t pad, int64_t stride, int64_t dilation, bool ceil_mode) {
  if (!ceil_mode) return output_size(size, kernel, pad, stride, dilation);
  const Wide windows = floor_div(padded(size, pad) - extent(kernel, dilation) + stride - 1, stride) + 1;
  return (windows - 1) * stride >= static_cast<Wide>(size) + pad ? windows - 1 : windows;
}

}  // namespace fastconv
