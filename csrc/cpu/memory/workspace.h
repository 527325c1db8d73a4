// Per-thread workspace, and the parallel loop. A thread keeps its workspace from call to call, because fresh pages cost
// more than the arithmetic on them. Large workspace is freed at the end of the call.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

#include "freed_memory.h"

namespace fastconv {

// The uses of workspace. Those before whole_input are for the body of a parallel loop: each thread has its own. The
// others belong to the calling thread, and all threads of the call read them.
enum class Workspace {
  input_tile,
  output_tile,
  list_offsets,
  list_values,
  intermediate,  // a tile of the convolution's results, Winograd's transforms, few_channels' patches, gemm's matrices
  weight_block,
  wide_rows,  // rows of a 16-bit tensor in float32
  whole_input,
  whole_gradient,
  convolution,
  nonzero_marks,
  packed_weight,
  winograd_weight,
  phase_weight,
  weight_sums,
  wide_input,
  wide_gradient,
  wide_weight,
  wide_bias,
  wide_result,
  wide_grad_weight,
  count
};

// At least `bytes` bytes, aligned to 64. They are valid until the thread's next request for that use.
void* workspace_bytes(Workspace use, int64_t bytes);

template <class T>
T* workspace(Workspace use, int64_t count) {
  return static_cast<T*>(workspace_bytes(use, count * static_cast<int64_t>(sizeof(T))));
}

// Frees the thread's large workspace of the uses before `end`.
void free_large_workspace(Workspace end);

// Exists while a convolution runs. Frees the calling thread's large workspace at its end. If an operator calls another
// one, only the outer operator frees it.
struct WorkspaceScope {
  WorkspaceScope() {
    ++depth;
    keep_freed_memory(kept_bytes);
  }
  ~WorkspaceScope() {
    if (--depth == 0) free_large_workspace(Workspace::count);
  }
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;

  inline static thread_local int depth = 0;
};

// The least number of elements for one thread in elementwise loops: PyTorch's grain size.
constexpr int64_t grain_size = 32768;

// torch's parallel_for, with two differences. An exception of the body reaches the caller unchanged. Otherwise,
// torch's C function would turn it into an error code. The thread's large workspace is freed after the body.
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
    free_large_workspace(Workspace::whole_input);
  });
  if (failure) std::rethrow_exception(failure);
}

// Calls body(i) for each i below `count`, in parallel.
template <class Body>
void parallel_for_each(int64_t count, const Body& body) {
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace fastconv
