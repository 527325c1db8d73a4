#include "workspace.h"

#include <cstdlib>
#include <memory>

#include "../../tensor.h"

namespace fastconv {
namespace {

constexpr int64_t large = 32 << 20;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Buffer {
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;
};

struct Buffers {
  Buffer of[static_cast<int>(Workspace::count)];
  bool any_large = false;
};

thread_local Buffers buffers;

}  // namespace

void* workspace_bytes(Workspace use, int64_t bytes) {
  Buffer& buffer = buffers.of[static_cast<int>(use)];
  if (bytes > buffer.bytes || !buffer.memory) {
    buffer = {};
    const int64_t rounded = bytes > 0 ? (bytes + 63) / 64 * 64 : 64;
    buffer.memory.reset(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    check(buffer.memory != nullptr, not_enough_memory);
    buffer.bytes = rounded;
    if (rounded > large) buffers.any_large = true;
  }
  return buffer.memory.get();
}

void free_large_workspace(Workspace end) {
  if (!buffers.any_large) return;
  buffers.any_large = false;
  for (int use = 0; use < static_cast<int>(Workspace::count); ++use) {
    Buffer& buffer = buffers.of[use];
    if (buffer.bytes <= large) continue;
    if (use < static_cast<int>(end)) {
      buffer = {};
    } else {
      buffers.any_large = true;
    }
  }
}

}  // namespace fastconv
