// What the convolution's torch-facing functions share: tensors as the kernels take them.
#pragma once

#include "../checks.h"
#include "kernels/layout.cuh"

namespace fastconv::cuda {

// Of a tensor that lies as NHWC or as NCHW.
template <class T>
Dense<const T> read(const Tensor& tensor) {
  return {data<T>(tensor), is_nhwc(tensor)};
}

template <class T>
Dense<T> written(const Tensor& tensor) {
  return {mutable_data<T>(tensor), is_nhwc(tensor)};
}

// Beside NHWC activations, a weight is read fastest as KRSC: it is small, and worth a copy.
inline Tensor weight_beside(const Tensor& activation, const Tensor& weight) {
  return is_nhwc(activation) ? ordered(weight, true) : dense(weight);
}

// What the sums of backward_weight are kept in.
inline ScalarType sums_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Kernels count images by 64 bits, and rows, columns, channels and taps within one by 32.
inline void check_coordinates(const Conv2dShape& s) {
  constexpr int64_t most = int64_t{1} << 30;
  const int64_t last_tap_h = (s.R - 1) * s.dilation_h, last_tap_w = (s.S - 1) * s.dilation_w;
  check(s.N < most && s.K < most && s.C < most && s.R * s.S * s.C < most && s.R * s.S * s.K < most &&
            s.H + 2 * s.pad_h < most && s.W + 2 * s.pad_w < most && last_tap_h < most && last_tap_w < most,
        "fastconv's CUDA kernels serve convolutions of fewer than 2^30 images, channels, taps, rows and columns");
}

}  // namespace fastconv::cuda
