// The instructions for tensor cores: asynchronous copies to shared memory (cp.async), loads of matrices (ldmatrix) and
// products of matrices (mma). csrc/cuda/kernels/tensor_cores.cuh has the same functions as PTX.
//
// A copy's destination holds NaN until the thread that started it has waited for it. So a thread that reads it without
// a wait, or another thread that reads it without a barrier after that wait, sees NaN.
#pragma once

#include "emulation.h"

// A namespace without types, so that the name of a kernel's function is not looked up here too.
namespace fastconv::emulation::tensor_cores {

// Fails unless `bytes` bytes at the pointer belong to one variable in shared memory, at a multiple of `bytes`.
void check_shared(const void* pointer, int bytes, const char* instruction);

// ---- cp.async ------------------------------------------------------------------------------------------------------

// Starts a copy of source_bytes. The rest of the `bytes` in shared memory becomes zero.
void start_copy(void* to, const void* from, int bytes, int source_bytes);
void commit_copies();
void wait_for_copies(int latest_groups);

// ---- ldmatrix ------------------------------------------------------------------------------------------------------

// Loads four matrices of 8 rows of 16 bytes. Lanes 8 * j to 8 * j + 7 have the addresses of the rows of matrix j.
// A lane receives 4 bytes of row lane / 4. Transposed, it receives two 16-bit elements of column lane / 4.
template <bool transposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  check_shared(row, 16, "ldmatrix");
  struct Received {
    uint32_t words[4];
  };
  const Received received = collective(~0u, row, [&](const void* const* rows) {
    Received result;
    for (int j = 0; j < 4; ++j) {
      char* word = reinterpret_cast<char*>(result.words + j);
      for (int i = 0; i < 2; ++i) {
        const int matrix_row = transposed ? 2 * (lane % 4) + i : lane / 4;
        const int element = transposed ? lane / 4 : 2 * (lane % 4) + i;
        std::memcpy(word + 2 * i, static_cast<const char*>(rows[8 * j + matrix_row]) + 2 * element, 2);
      }
    }
    return result;
  });
  for (int j = 0; j < 4; ++j) to[j] = received.words[j];
}

// ---- mma -----------------------------------------------------------------------------------------------------------

// Rounds to 10 bits of mantissa. Ties go away from zero (cvt.rna).
inline uint32_t round_to_tf32(uint32_t bits) {
  constexpr uint32_t infinity = 0x7f800000, magnitude = 0x7fffffff;
  if ((bits & magnitude) > infinity) return magnitude;
  return (bits & magnitude) == infinity ? bits : (bits + 0x1000) & ~0x1fffu;
}

// A register of a fragment as floats: one element of TF32, or two neighbours in depth of a 16-bit type.
template <class T>
struct Unpacked {
  float values[2];

  explicit Unpacked(uint32_t word) : values{} {
    if constexpr (sizeof(T) == 2) {
      T pair[2];
      std::memcpy(static_cast<void*>(pair), &word, sizeof word);
      for (int i = 0; i < 2; ++i) values[i] = static_cast<float>(pair[i]);
    } else {
      word &= ~0x1fffu;  // the instruction ignores these bits
      std::memcpy(values, &word, sizeof word);
    }
  }
};

// c += a * b, with the fragments of mma.sync.m16n8k16 for 16-bit types and m16n8k8 for TF32. A register of both has the
// place of one element: let g = lane / 4 and t = lane % 4. a[2 * j + i] is A[g + 8 * i, t + 4 * j], and b[j] is
// B[t + 4 * j, g]. The lane's sum c[2 * i + j] is C[g + 8 * i, 2 * t + j]. 16-bit types have pairs instead of elements.
template <class T>
void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  struct Fragments {
    float a[4][2], b[2][2];
  } mine;
  for (int i = 0; i < 4; ++i) std::memcpy(mine.a[i], Unpacked<T>(a[i]).values, sizeof mine.a[i]);
  for (int i = 0; i < 2; ++i) std::memcpy(mine.b[i], Unpacked<T>(b[i]).values, sizeof mine.b[i]);
  struct Sums {
    float values[4];
  };
  const Sums sums = collective(~0u, mine, [&](const Fragments* lanes) {
    const int g = lane / 4, t = lane % 4;
    Sums result;
    for (int i = 0; i < 4; ++i) {
      float sum = c[i];
      for (int d = 0; d < 8; ++d) {
        const float* from_a = lanes[4 * g + d % 4].a[d / 4 * 2 + i / 2];
        const float* from_b = lanes[4 * (2 * t + i % 2) + d % 4].b[d / 4];
        // Products are exact in float.
        for (int pair = 0; pair < 4 / static_cast<int>(sizeof(T)); ++pair) sum += from_a[pair] * from_b[pair];
      }
      result.values[i] = sum;
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) c[i] = sums.values[i];
}

}  // namespace fastconv::emulation::tensor_cores
