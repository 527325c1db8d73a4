// The choice of the kernels for tensor cores (kernels/tensor_gemm.cuh), and of the tile in tests.
#pragma once

#include <type_traits>

#include "../environment.h"
#include "../precision.h"
#include "kernels/conv2d_tiles.cuh"

namespace fastconv::cuda {

#if defined(__CUDACC__)
// A kernel that is never launched. Its attributes tell which architecture the code for this device was compiled for.
template <int>
__global__ void compiled_code() {}
#else
// Tests in the emulation set it, so that small problems use large tiles.
extern int emulated_tile;
#endif

// Returns the choice for tensors of type T on the current device. The kernels for tensor cores have not run on a GPU.
// So they are off, unless FASTCONV_TENSOR_CORES=1. float32 uses TF32 only if PyTorch allows it for convolutions. double
// has no such kernels.
template <class T>
TileChoice tile_choice() {
  TileChoice choice;
#if !defined(__CUDACC__)
  choice.forced = emulated_tile;
#endif
  if (std::is_same_v<T, double> || !environment().tensor_cores) return choice;
  if (std::is_same_v<T, float> && !allows_tf32()) return choice;
#if defined(__CUDACC__)
  // The GPU's capability is not enough: a GPU of sm_80 also runs code for sm_75, in which tensor_gemm is empty.
  cudaFuncAttributes attributes{};
  choice.tensor_cores =
      cudaFuncGetAttributes(&attributes, compiled_code<0>) == cudaSuccess && attributes.ptxVersion >= 80;
#else
  choice.tensor_cores = true;
#endif
  return choice;
}

}  // namespace fastconv::cuda
