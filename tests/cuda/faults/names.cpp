// Kernels that use the CUDA names that the emulation defines. test_emulation.py checks their results.
#include "../../../csrc/cuda/kernels/platform.cuh"

namespace {

using fastconv::cuda::bf16;
using fastconv::cuda::half;

__global__ void threads_kernel(int* to) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int* here = to + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
  here[0] = blockIdx.x, here[1] = blockIdx.y, here[2] = blockIdx.z;
  here[3] = threadIdx.x, here[4] = threadIdx.y, here[5] = threadIdx.z;
}

__global__ void shuffles_kernel(int* to, int width) {
  const int lane = threadIdx.x;
  to[lane] = __shfl_sync(~0u, lane, 3, width);
  to[32 + lane] = __shfl_up_sync(~0u, lane, 3, width);
  to[64 + lane] = __shfl_down_sync(~0u, lane, 3, width);
  to[96 + lane] = __shfl_xor_sync(~0u, lane, 5, width);
  to[128 + lane] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
}

__global__ void half_a_warp_kernel(int* to) {
  const int lane = threadIdx.x;
  to[lane] = lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
}

__global__ void order_kernel(int* count, int* to) { to[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1); }

__global__ void shared_kernel(float* to) {
  FC_SHARED(float, values, [64]);
  to[threadIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = 1;
}

template <class T>
void convert(const float* from, T* to, float* back, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]), back[i] = static_cast<float>(to[i]);
}

}  // namespace

extern "C" {

void set_seed(unsigned seed) { fastconv::emulation::set_seed(seed); }
void threads(int* to) { FC_LAUNCH(threads_kernel, dim3(2, 3, 4), dim3(5, 6, 7), nullptr, to); }
void shuffles(int* to, int width) { FC_LAUNCH(shuffles_kernel, dim3(1), dim3(32), nullptr, to, width); }
void half_a_warp(int* to) { FC_LAUNCH(half_a_warp_kernel, dim3(1), dim3(32), nullptr, to); }
void order(int* count, int* to, int blocks) { FC_LAUNCH(order_kernel, dim3(blocks), dim3(40), nullptr, count, to); }
void shared(float* to, int blocks) { FC_LAUNCH(shared_kernel, dim3(blocks), dim3(64), nullptr, to); }
void convert_half(const float* from, void* to, float* back, int64_t count) {
  convert(from, static_cast<half*>(to), back, count);
}
void convert_bf16(const float* from, void* to, float* back, int64_t count) {
  convert(from, static_cast<bf16*>(to), back, count);
}
}
