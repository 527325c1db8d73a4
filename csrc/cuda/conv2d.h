// Helpers of the convolution operators: they convert tensors to the arguments of the kernels.
#pragma once

#include "../checks.h"
#include "kernels/layout.cuh"

namespace fastconv::cuda {

// The tensor must be dense: NHWC or NCHW.
template <class T>
Dense<const T> read(const Tensor& tensor) {
  return {data<T>(tensor), is_nhwc(tensor)};
}

template <class T>
Dense<T> written(const Tensor& tensor) {
  return {mutable_data<T>(tensor), is_nhwc(tensor)};
}

// With NHWC activations, kernels read the weight fastest in the order KRSC. It is small, so a copy pays off.
inline Tensor weight_beside(const Tensor& activation, const Tensor& weight) {
  return is_nhwc(activation) ? ordered(weight, true) : dense(weight);
}

// The type of the partial sums of backward_weight, Accumulator<T> in the kernels.
inline ScalarType sums_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Kernels count the pixels of all images in 64 bits, and images, rows, columns, channels and taps in 32.
inline void check_coordinates(const Conv2dShape& s) {
  constexpr int64_t most = int64_t{1} << 30;
  const int64_t last_tap_h = (s.R - 1) * s.dilation_h, last_tap_w = (s.S - 1) * s.dilation_w;
  check(s.N < most && s.K < most && s.C < most && s.R * s.S * s.C < most && s.R * s.S * s.K < most &&
            s.H + 2 * s.pad_h < most && s.W + 2 * s.pad_w < most && last_tap_h < most && last_tap_w < most,
        "the CUDA kernels support fewer than 2^30 images, channels, taps, rows and columns: use PyTorch's conv2d");
}

}  // namespace fastconv::cuda
