// bfloat16 and half: kept in 16 bits, computed in float32. An operator that is given them widens them, does its work on
// float32, and rounds the result once. All float32 lies in the calling thread's scratch, so that no pages are fetched
// for it: fresh ones for the results alone were a sixth of a small network's step.
#pragma once

#include <optional>

#include "../../tensor.h"
#include "../capability.h"
#include "workspace.h"

namespace fastconv::cpu {

inline bool is_reduced(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Half;
}

// Of the tensor's type, which is reduced.
const ReducedKernels& reduced_kernels(ScalarType type);

// The elements of a tile as kernels compute them: where they are, if they are computed as they are kept, ...
template <class T>
struct PlainElements {
  using Stored = T;
  using Computed = T;

  const T* load(const T* from, int64_t, Workspace) const { return from; }
  T* result(T* to, int64_t, Workspace) const { return to; }
  void store(const T*, T*, int64_t) const {}
};

// ... and in the thread's scratch, if they are widened to float32.
struct ReducedElements {
  using Stored = uint16_t;
  using Computed = float;

  const ReducedKernels& kernels;

  const float* load(const uint16_t* from, int64_t count, Workspace use) const {
    float* wide = workspace<float>(use, count);
    kernels.widen(from, wide, count);
    return wide;
  }
  float* result(uint16_t*, int64_t count, Workspace use) const { return workspace<float>(use, count); }
  void store(const float* result, uint16_t* to, int64_t count) const { kernels.round(result, to, count); }
};

// float32, and as the tensor's elements lie; where they have gaps, in its memory format. Good until the next call with
// that `use`.
Tensor widened(const Tensor& tensor, Workspace use);
std::optional<Tensor> widened(const std::optional<Tensor>& tensor, Workspace use);

// float32, uninitialised, with the strides of a tensor that fills its memory.
Tensor wide_like(const Tensor& tensor, Workspace use);

// float32, uninitialised, contiguous, of a tensor's size.
Tensor wide_contiguous(const Tensor& tensor, Workspace use);

// Of two tensors that lie alike.
void round_into(const Tensor& result, const Tensor& wide);

// `result`, of a reduced type, as compute(wide) leaves it in float32.
template <class Compute>
void compute_wide(const Tensor& result, Workspace use, const Compute& compute) {
  if (fills_memory(result)) {
    const Tensor wide = wide_like(result, use);
    compute(wide);
    round_into(result, wide);
  } else {  // some rows of images in NCHW
    const Tensor wide = wide_contiguous(result, use);
    compute(wide);
    Tensor rounded = result;
    torch::stable::copy_(rounded, wide);
  }
}

// How a call reads and writes its tensors: as they are, ...
struct PlainView {
  static constexpr bool always_by_rows = false;

  Tensor read(const Tensor& tensor, Workspace) const { return tensor; }
  template <class Compute>
  void write(const Tensor& result, Workspace, const Compute& compute) const {
    compute(result);
  }
};

// ... or through float32 in workspace.
struct ReducedView {
  static constexpr bool always_by_rows = true;

  Tensor read(const Tensor& tensor, Workspace use) const { return widened(tensor, use); }
  template <class Compute>
  void write(const Tensor& result, Workspace use, const Compute& compute) const {
    compute_wide(result, use, compute);
  }
};

}  // namespace fastconv::cpu
