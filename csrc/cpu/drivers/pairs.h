// Tensors of bfloat16 as the kernels of pairs.h see them.
#pragma once

#include "../../tensor.h"

namespace fastconv::cpu {

// A tensor in NHWC with an even number of channels, and the same memory as pairs of channels. Each pair is a float32.
class Pairs {
 public:
  explicit Pairs(const Tensor& tensor) : owner_(aligned(ordered(tensor, true))) {}

  Tensor tensor() const {
    const int64_t C = owner_.size(1) / 2, H = owner_.size(2), W = owner_.size(3);
    return torch::stable::from_blob(const_cast<float*>(data<float>(owner_)), {owner_.size(0), C, H, W},
                                    {H * W * C, 1, W * C, C}, owner_.device(), ScalarType::Float);
  }

 private:
  // A part of a tensor may begin between two pairs.
  static Tensor aligned(const Tensor& tensor) {
    if (reinterpret_cast<uintptr_t>(data<char>(tensor)) % alignof(float) == 0) return tensor;
    const Tensor result = empty(sizes_of(tensor), tensor, true);
    copy(tensor, result);
    return result;
  }

  Tensor owner_;
};

}  // namespace fastconv::cpu
