// bfloat16 and half: kept in 16 bits, computed in float32. An operator that is given them widens them, does its work on
// float32, and rounds the result once.
#pragma once

#include <optional>

#include "../tensor.h"
#include "capability.h"
#include "tiles.h"

namespace fastconv::cpu {

inline bool is_reduced(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Half;
}

// Of the tensor's type, which is reduced.
const ReducedKernels& reduced_kernels(ScalarType type);

// float32, and as the tensor's elements lie; where they have gaps, in its memory format. It lies in the calling
// thread's scratch, so that no pages are fetched for it, and is good until the next call with that `use`.
Tensor widened(const Tensor& tensor, Scratch use);
std::optional<Tensor> widened(const std::optional<Tensor>& tensor, Scratch use);

// From float32, which fills its memory.
Tensor rounded(const Tensor& tensor, ScalarType type);

}  // namespace fastconv::cpu
