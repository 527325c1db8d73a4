// An emulation of CUDA on the CPU, for tests. It defines the CUDA names that kernels use. Each CUDA thread is a fiber,
// and blocks run one after another (emulation.cpp).
//
// It finds faults that a GPU may hide. A seed shuffles the order of blocks and threads, and each thread runs until it
// waits, so a missing barrier gives wrong results. If not all threads reach a barrier, an error names its line. Shared
// memory has its exact size and starts as NaN (bytes of 0xff). AddressSanitizer can check its bounds and those of
// tensors. tensor_cores.h has the instructions that copy to shared memory and multiply matrices. The emulation does not
// show speed, memory coalescing or bank conflicts.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastconv::emulation {

struct Index {
  unsigned x, y, z;
};

struct Size {
  unsigned x, y, z;
  constexpr Size(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- launch, threads, barriers -----------------------------------------------------------------------------------

// The indices of the running thread. They are set whenever the emulation switches threads.
extern Index thread_index, block_index;
extern Size block_size, grid_size;
extern int lane;

// 0: threads and blocks run in ascending order. Any other seed shuffles them.
void set_seed(unsigned seed);

// Runs body once for each thread. Each block has `dynamic_bytes` of dynamic shared memory. Throws std::runtime_error if
// the launch is invalid, or if threads wait forever.
void launch(Size grid, Size block, size_t dynamic_bytes, void (*body)(void*), void* context);

template <class Body>
void launch(Size grid, Size block, size_t dynamic_bytes, Body&& body) {
  launch(
      grid, block, dynamic_bytes, [](void* context) { (*static_cast<std::remove_reference_t<Body>*>(context))(); },
      &body);
}

void block_barrier(int line);
void warp_barrier(unsigned mask);

// The memory of an FC_SHARED variable in the running block.
void* shared_memory(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();

void* warp_slots(size_t bytes);
void check_lane(unsigned mask, int source);

// Exchanges a value between the lanes of the mask: f(lanes) reads the values of all lanes.
template <class T, class F>
auto collective(unsigned mask, const T& value, const F& f) {
  T* lanes = static_cast<T*>(warp_slots(sizeof(T)));
  std::memcpy(static_cast<void*>(lanes + lane), &value, sizeof(T));
  warp_barrier(mask);
  auto result = f(static_cast<const T*>(lanes));
  warp_barrier(mask);
  return result;
}

template <class T>
T shuffle(unsigned mask, const T& value, int source) {
  check_lane(mask, source);
  return collective(mask, value, [&](const T* lanes) { return lanes[source]; });
}

// ---- 16-bit types, like CUDA's without implicit conversions ------------------------------------------------------

struct Half {
  Half() = default;
  explicit Half(float value) : value_(static_cast<_Float16>(value)) {}
  explicit operator float() const { return static_cast<float>(value_); }

 private:
  _Float16 value_;
};

struct BFloat16 {
  BFloat16() = default;
  explicit BFloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // Round to nearest, ties to even. A NaN stays NaN.
    bits_ = value != value ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t bits = static_cast<uint32_t>(bits_) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  uint16_t bits_;
};

}  // namespace fastconv::emulation

// ---- CUDA's own names ----------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::fastconv::emulation::thread_index)
#define blockIdx (::fastconv::emulation::block_index)
#define blockDim (::fastconv::emulation::block_size)
#define gridDim (::fastconv::emulation::grid_size)

using dim3 = fastconv::emulation::Size;

#define __syncthreads() ::fastconv::emulation::block_barrier(__LINE__)
inline void __syncwarp(unsigned mask = ~0u) { fastconv::emulation::warp_barrier(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = fastconv::emulation::lane & ~(width - 1);
  return fastconv::emulation::shuffle(mask, value, first + (source & (width - 1)));
}

// Up, down and xor: lanes form groups of `width`. A lane whose source is outside of its group gets its own value. But
// xor can read from an earlier group.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = fastconv::emulation::lane, source = lane - static_cast<int>(delta);
  return fastconv::emulation::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = fastconv::emulation::lane, source = lane + static_cast<int>(delta);
  return fastconv::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = fastconv::emulation::lane, source = lane ^ bits;
  return fastconv::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return fastconv::emulation::collective(mask, predicate, [&](const int* lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= (mask >> i & 1) && lanes[i] ? 1u << i : 0;
    return votes;
  });
}

// Threads switch only where they wait, so this is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
