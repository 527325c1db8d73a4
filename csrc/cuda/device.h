// Launches of kernels by the CUDA operators: they set the device and the stream, choose the element type and check for
// launch errors. In the emulation (tests/cuda/emulation) the device is the CPU, and FC_LAUNCH itself throws.
#pragma once

#include "../tensor.h"
#include "kernels/platform.cuh"

#if defined(__CUDACC__)
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#endif

namespace fastconv::cuda {

// Runs f(T{}) with the tensor's element type.
template <class F>
void dispatch_floating(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return f(half{});
    case ScalarType::BFloat16:
      return f(bf16{});
    default:
      return fastconv::dispatch_floating(tensor, name, f);
  }
}

// Runs f(T{}, stream), which launches kernels. T is the tensor's element type. The tensor's device is made the current
// device, and stream is PyTorch's current stream on it.
template <class F>
void launch_on(const Tensor& tensor, const char* name, const F& f) {
  Stream stream = nullptr;
#if defined(__CUDACC__)
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* current = nullptr;
  in_words([&] { TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current)); });
  stream = static_cast<Stream>(current);
#endif
  dispatch_floating(tensor, name, [&](auto type) { f(type, stream); });
#if defined(__CUDACC__)
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

}  // namespace fastconv::cuda
