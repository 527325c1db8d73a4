// Kernels that use the CUDA names that the emulation defines. test_emulation.py checks their results.
#include "../../../csrc/cuda/kernels/tensor_cores.cuh"

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

// Copies 32 pieces of 16 bytes. The odd ones are outside. Each thread shows the piece of the next thread before
// the wait, and after the wait and a barrier.
__global__ void copies_kernel(const char* from, char* to) {
  constexpr int bytes = 16;
  FC_DYNAMIC_SHARED(pieces, 32 * bytes);
  const int lane = threadIdx.x, next = (lane + 1) % 32;
  fastconv::cuda::copy_async(pieces + lane * bytes, lane % 2 == 0 ? from + lane * bytes : nullptr);
  fastconv::cuda::commit_copies();
  __syncthreads();
  memcpy(to + next * bytes, pieces + next * bytes, bytes);
  __syncthreads();
  fastconv::cuda::wait_for_copies<0>();
  __syncthreads();
  memcpy(to + (32 + next) * bytes, pieces + next * bytes, bytes);
}

template <bool transposed>
__global__ void load_kernel(const char* from, uint32_t* to) {
  FC_DYNAMIC_SHARED(rows, 32 * 16);
  const int lane = threadIdx.x;
  memcpy(rows + 16 * lane, from + 16 * lane, 16);
  __syncwarp();
  uint32_t words[4];
  fastconv::cuda::load_matrices<transposed>(words, rows + 16 * lane);
  for (int j = 0; j < 4; ++j) to[j * 32 + lane] = words[j];
}

template <class T>
__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t mine_a[4], mine_b[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) mine_a[i] = a[i * 32 + lane], sums[i] = c[i * 32 + lane];
  for (int i = 0; i < 2; ++i) mine_b[i] = b[i * 32 + lane];
  fastconv::cuda::multiply_matrices<T>(sums, mine_a, mine_b);
  for (int i = 0; i < 4; ++i) c[i * 32 + lane] = sums[i];
}

template <class T>
void launch_multiply(const uint32_t* a, const uint32_t* b, float* c) {
  FC_LAUNCH(multiply_kernel<T>, dim3(1), dim3(32), nullptr, a, b, c);
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
void copies(const char* from, char* to) {
  FC_LAUNCH_WITH_SHARED(copies_kernel, dim3(1), dim3(32), 512, nullptr, from, to);
}
void load(const char* from, uint32_t* to, bool transposed) {
  const auto kernel = transposed ? load_kernel<true> : load_kernel<false>;
  FC_LAUNCH_WITH_SHARED(kernel, dim3(1), dim3(32), 512, nullptr, from, to);
}
void multiply_half(const uint32_t* a, const uint32_t* b, float* c) { launch_multiply<half>(a, b, c); }
void multiply_bf16(const uint32_t* a, const uint32_t* b, float* c) { launch_multiply<bf16>(a, b, c); }
void multiply_tf32(const uint32_t* a, const uint32_t* b, float* c) { launch_multiply<float>(a, b, c); }
void round_tf32(const uint32_t* from, uint32_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = fastconv::cuda::round_to_tf32(from[i]);
}
}
