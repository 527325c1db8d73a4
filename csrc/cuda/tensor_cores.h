// The choice of the kernels for tensor cores (kernels/tensor_gemm.cuh).
#pragma once

#include <type_traits>

#include "../environment.h"
#include "../precision.h"
#include "kernels/conv2d_tiles.cuh"

namespace fastconv::cuda {

#if defined(__CUDACC__)
// Not launched. Its attributes tell for which architecture the code of this device was compiled.
template <int>
__global__ void compiled_code() {}
#else
// Tests in the emulation set it, so that small problems use large tiles.
extern int64_t emulated_least_large_blocks;
#endif

// Returns the choice for tensors of type T on the current device. The kernels have not run on a GPU. So they are
// off, unless FASTCONV_TENSOR_CORES=1. float32 uses TF32 only if PyTorch allows it for convolutions. double has no
// such kernels.
template <class T>
TensorCores tensor_cores_for() {
  TensorCores cores;
  if (std::is_same_v<T, double> || !environment().tensor_cores) return cores;
  if (std::is_same_v<T, float> && !allows_tf32()) return cores;
#if defined(__CUDACC__)
  // Not the GPU's capability: a GPU of sm_80 also runs code for sm_75, where tensor_gemm is empty.
  cudaFuncAttributes attributes{};
  cores.allowed = cudaFuncGetAttributes(&attributes, compiled_code<0>) == cudaSuccess && attributes.ptxVersion >= 80;
#else
  cores.allowed = true;
  cores.least_large_blocks = emulated_least_large_blocks;
#endif
  return cores;
}

}  // namespace fastconv::cuda
