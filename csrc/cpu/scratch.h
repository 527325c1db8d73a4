// Workspace that a thread keeps from call to call, since fresh pages cost more than the arithmetic on them, and the
// loop that threads share. Large workspace is freed when the call ends.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace fastconv {

// The uses of workspace. The uses before whole_input belong to one run of a parallel loop's body, on its thread. The
// others belong to the calling thread, and all threads use them.
enum class Scratch {
  tile_in,
  tile_out,
  list,
  list_values,
  unit,
  whole_input,
  whole_grad,
  argmax,
  weight,
  winograd_weight,
  sums,
  wide_input,
  wide_other,
  wide_weight,
  wide_bias,
  wide_result,
  count
};

// At least `bytes` bytes, aligned to 64, valid until the thread's next request for that use.
void* scratch_bytes(Scratch use, int64_t bytes);

template <class T>
T* scratch(Scratch use, int64_t count) {
  return static_cast<T*>(scratch_bytes(use, count * static_cast<int64_t>(sizeof(T))));
}

// Frees the thread's large workspace of the uses before `end`.
void free_large_scratch(Scratch end);

// The body of an operator: frees the calling thread's large workspace at its end.
struct ScratchScope {
  ~ScratchScope() { free_large_scratch(Scratch::count); }
};

// torch's parallel_for, with two differences. A body's exception reaches the caller as it is, where torch's C function
// turns every exception into a code. And the thread's large workspace is freed after the body.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    free_large_scratch(Scratch::whole_input);
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fastconv
