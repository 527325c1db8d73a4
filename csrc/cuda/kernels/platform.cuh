// The platform of the kernels: CUDA under nvcc. Under any other compiler it is the emulation (tests/cuda/emulation),
// which runs the same source on the CPU, thread by thread. Kernel files include no other platform header.
//
//   FC_SHARED(T, name, [2][32]);            a block's shared memory: a variable `name` of type T[2][32]
//   FC_LAUNCH(kernel, grid, block, stream, arguments...);
//   FC_DYNAMIC_SHARED(name, bytes);         a pointer to the block's dynamic shared memory, 16-byte aligned
//   FC_LAUNCH_WITH_SHARED(kernel, grid, block, bytes of dynamic shared memory, stream, arguments...);
//   half, bf16, Stream
//
// Launch functions neither allocate nor wait, so that a CUDA graph can capture them. Their caller checks for launch
// errors (device.h).
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FC_HOST_DEVICE __host__ __device__
#define FC_SHARED(T, name, dimensions) __shared__ T name dimensions
#define FC_LAUNCH(kernel, grid, block, stream, ...) (kernel)<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
// The comment in the PTX tells resources.py how much it is.
#define FC_DYNAMIC_SHARED(name, bytes)                                               \
  extern __shared__ __align__(16) unsigned char fc_dynamic_shared[];                 \
  asm volatile("// dynamic shared memory: %0 bytes" ::"n"(static_cast<int>(bytes))); \
  unsigned char* const name = fc_dynamic_shared
// A block gets more than 48 KiB only if the kernel asks for it. The check after the launch finds an error.
#define FC_LAUNCH_WITH_SHARED(kernel, grid, block, bytes, stream, ...)                                             \
  do {                                                                                                             \
    static_cast<void>(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),                                  \
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))); \
    (kernel)<<<(grid), (block), (bytes), (stream)>>>(__VA_ARGS__);                                                 \
  } while (false)

namespace fastconv::cuda {
using half = __half;
using bf16 = __nv_bfloat16;
using Stream = cudaStream_t;
}  // namespace fastconv::cuda

#else

#include "emulation.h"

#define FC_HOST_DEVICE
#define FC_SHARED(T, name, dimensions)        \
  static char name##_key;                     \
  T(&name)                                    \
  dimensions = *static_cast<T(*) dimensions>( \
      ::fastconv::emulation::shared_memory(&name##_key, sizeof(T dimensions), alignof(T)))
#define FC_LAUNCH(kernel, grid, block, stream, ...) FC_LAUNCH_WITH_SHARED(kernel, grid, block, 0, stream, __VA_ARGS__)
#define FC_DYNAMIC_SHARED(name, bytes) \
  unsigned char* const name = static_cast<unsigned char*>(::fastconv::emulation::dynamic_shared_memory())
#define FC_LAUNCH_WITH_SHARED(kernel, grid, block, bytes, stream, ...) \
  (static_cast<void>(stream), ::fastconv::emulation::launch((grid), (block), (bytes), [&] { (kernel)(__VA_ARGS__); }))

namespace fastconv::cuda {
using half = emulation::Half;
using bf16 = emulation::BFloat16;
using Stream = void*;
}  // namespace fastconv::cuda

#endif

namespace fastconv::cuda {

FC_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastconv::cuda
