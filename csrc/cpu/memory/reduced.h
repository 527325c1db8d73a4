// bfloat16 and half ("reduced" types) are stored in 16 bits and computed in float32. An operator widens its operands,
// computes in float32, and rounds the result once. The float32 values are in per-thread workspace. In new memory, the
// results alone took a sixth of a small network's step, because the system clears fresh pages.
#pragma once

#include <optional>

#include "../../tensor.h"
#include "../capability.h"
#include "workspace.h"

namespace fastconv::cpu {

inline bool is_reduced(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Half;
}

// The conversions of a reduced type.
const ReducedKernels& reduced_kernels(ScalarType type);

// Loads and stores the elements of a tile. PlainElements is for types that are computed as they are stored: it copies
// nothing.
template <class T>
struct PlainElements {
  using Stored = T;
  using Computed = T;

  const T* load(const T* from, int64_t, Workspace) const { return from; }
  T* result(T* to, int64_t, Workspace) const { return to; }
  void store(const T*, T*, int64_t) const {}

  const ChannelBlockKernels<T, T>& copies() const { return fastconv::kernels().conv2d<T>().thin_groups.copies; }
};

// ReducedElements widens to float32 in per-thread workspace, and rounds when it stores.
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

  const ChannelBlockKernels<uint16_t, float>& copies() const { return kernels.copies; }
};

// Runs f(elements) with the tensor's element type, which is a floating type.
template <class F>
void dispatch_elements(const Tensor& tensor, const char* name, const F& f) {
  if (is_reduced(tensor)) return f(ReducedElements{reduced_kernels(tensor.scalar_type())});
  dispatch_floating(tensor, name, [&](auto type) { f(PlainElements<decltype(type)>{}); });
}

// Returns the tensor in float32, with the same strides. If its elements have gaps, the result is contiguous or
// channels_last. The result is valid until the next call with that `use`.
Tensor widened(const Tensor& tensor, Workspace use);
std::optional<Tensor> widened(const std::optional<Tensor>& tensor, Workspace use);

// An uninitialised float32 tensor with the strides of a tensor that fills its memory.
Tensor wide_like(const Tensor& tensor, Workspace use);

// An uninitialised, contiguous float32 tensor of a tensor's size.
Tensor wide_contiguous(const Tensor& tensor, Workspace use);

// Rounds `wide` into `result`, which has the same strides.
void round_into(const Tensor& result, const Tensor& wide);

// Calls compute(wide) with a float32 tensor, and rounds that into `result`.
template <class Compute>
void compute_wide(const Tensor& result, Workspace use, const Compute& compute) {
  if (fills_memory(result)) {
    const Tensor wide = wide_like(result, use);
    compute(wide);
    round_into(result, wide);
  } else {  // some rows of images in NCHW
    const Tensor wide = wide_contiguous(result, use);
    compute(wide);
    copy(wide, result);
  }
}

// How a call reads and writes its tensors: in place, or in float32 if their type is reduced.
struct View {
  bool reduced;

  // Runs f(T{}) with the type that the call computes in.
  template <class F>
  void dispatch(const Tensor& tensor, const char* name, const F& f) const {
    if (reduced) return f(float{});
    dispatch_floating(tensor, name, f);
  }

  Tensor read(const Tensor& tensor, Workspace use) const { return reduced ? widened(tensor, use) : tensor; }

  template <class Compute>
  void write(const Tensor& result, Workspace use, const Compute& compute) const {
    if (reduced) return compute_wide(result, use, compute);
    compute(result);
  }
};

}  // namespace fastconv::cpu
