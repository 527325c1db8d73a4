// The instructions of sm_80 and later for tensor cores: asynchronous copies to shared memory, loads of fragments, and
// products of fragments. Without a GPU, tests/cuda/emulation/tensor_cores.h has the same functions.
//
// sm_75 compiles kernels that use them as empty functions (FC_HAS_TENSOR_CORES), and never launches these kernels.
#pragma once

#include <type_traits>

#include "layout.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FC_HAS_TENSOR_CORES 1
#else
#define FC_HAS_TENSOR_CORES 0
#endif

#if !defined(__CUDACC__)
#include "tensor_cores.h"
#endif

namespace fastconv::cuda {

#if defined(__CUDACC__) && FC_HAS_TENSOR_CORES
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// Copies 16 bytes from global to shared memory, or stores zeros if `from` is null. Both addresses are multiples of 16.
// The bytes arrive when the thread has committed the copy to a group and waited for the group. Other threads see them
// after the next barrier.
__device__ inline void copy_async(void* to, const void* from) {
  [[maybe_unused]] const int source_bytes = from == nullptr ? 0 : 16;
#if !defined(__CUDACC__)
  emulation::tensor_cores::start_copy(to, from, 16, source_bytes);
#elif FC_HAS_TENSOR_CORES
  // .cg does not keep the line in the first-level cache.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(source_bytes)
               : "memory");
#endif
}

// Makes a group of the copies that the thread has started since the last group. A group may be empty.
__device__ inline void commit_copies() {
#if !defined(__CUDACC__)
  emulation::tensor_cores::commit_copies();
#elif FC_HAS_TENSOR_CORES
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for the thread's copies, except those of the latest groups.
template <int latest_groups>
__device__ void wait_for_copies() {
#if !defined(__CUDACC__)
  emulation::tensor_cores::wait_for_copies(latest_groups);
#elif FC_HAS_TENSOR_CORES
  asm volatile("cp.async.wait_group %0;" ::"n"(latest_groups) : "memory");
#endif
}

// Loads four matrices of 8 rows of 16 bytes from shared memory. Lanes 8 * j to 8 * j + 7 give the addresses of the rows
// of matrix j. A lane receives 4 bytes of row lane / 4: elements 2 * (lane % 4) and the next one, if an element has 2
// bytes. Transposed, it receives these two rows' elements of column lane / 4.
template <bool transposed>
__device__ void load_matrices(uint32_t (&to)[4], const void* row) {
#if !defined(__CUDACC__)
  emulation::tensor_cores::load_matrices<transposed>(to, row);
#elif FC_HAS_TENSOR_CORES
#define FC_LOAD(instruction)                                                \
  asm volatile("ldmatrix.sync.aligned." instruction " {%0,%1,%2,%3}, [%4];" \
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])         \
               : "r"(shared_address(row))                                   \
               : "memory")
  if constexpr (transposed) {
    FC_LOAD("m8n8.x4.trans.shared.b16");
  } else {
    FC_LOAD("m8n8.x4.shared.b16");
  }
#undef FC_LOAD
#endif
}

// Rounds a float's bits to TF32, which has 10 bits of mantissa.
__device__ inline uint32_t round_to_tf32(uint32_t bits) {
#if !defined(__CUDACC__)
  return emulation::tensor_cores::round_to_tf32(bits);
#elif FC_HAS_TENSOR_CORES
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return bits;
#endif
}

// c += a * b with 16 x 8 sums of a warp. A register has one element in TF32, and two neighbours in depth in half and
// bf16. Let g = lane / 4 and t = lane % 4. a[2 * j + i] is A[g + 8 * i, t + 4 * j], and b[j] is B[g, t + 4 * j], where
// the second index counts registers along depth. The lane's sum c[2 * i + j] is C[g + 8 * i, 2 * t + j].
template <class T>
__device__ void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
#if !defined(__CUDACC__)
  emulation::tensor_cores::multiply_matrices<T>(c, a, b);
#elif FC_HAS_TENSOR_CORES
  // clang-format off
#define FC_MULTIPLY(instruction)                                                           \
  asm("mma.sync.aligned." instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  // clang-format on
  if constexpr (sizeof(T) == 4) {
    FC_MULTIPLY("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<T, half>) {
    FC_MULTIPLY("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    FC_MULTIPLY("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
#undef FC_MULTIPLY
#endif
}

}  // namespace fastconv::cuda
