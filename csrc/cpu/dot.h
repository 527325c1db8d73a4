// Convolutions of few output pixels, from the weight as it lies: kernels/small_output.h.
#pragma once

#include <vector>

#include "activation.h"
#include "algorithms.h"

namespace fastconv::cpu {

// Fills y, (N, P, Q, K).
template <class T>
void dot_forward(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const T* bias, T* y) {
  const Activation<T> activation(input);
  const InputTile<T> x = activation.view(0, s.N, -s.pad_h, reach(s.P, s.stride_h, s.R, s.dilation_h), -s.pad_w,
                                         reach(s.Q, s.stride_w, s.S, s.dilation_w), Scratch::whole_input);
  std::vector<int64_t> at;
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t p = 0; p < s.P; ++p) {
      for (int64_t q = 0; q < s.Q; ++q) {
        at.push_back(n * x.strides.image + p * s.stride_h * x.strides.row + q * s.stride_w * x.strides.pixel);
      }
    }
  }
  constexpr int64_t channels = 16;  // of a piece of the work
  parallel_for(0, ceil_div(s.K, channels), 1, [&](int64_t begin, int64_t end) {
    kernels().conv2d<T>().small_output.forward(s, x, {at.data(), static_cast<int64_t>(at.size())},
                                               {data<T>(weight), bias}, y,
                                               {begin * channels, std::min(end * channels, s.K)});
  });
}

}  // namespace fastconv::cpu
