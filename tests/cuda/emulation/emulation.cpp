// Runs one block at a time. The fibers of its threads take turns: each runs until it waits at a barrier or ends.
#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "fiber.h"
#include "tensor_cores.h"

namespace fastconv::emulation {

Index thread_index, block_index;
Size block_size, grid_size;
int lane;

namespace {

constexpr size_t stack_bytes = 320 << 10;
// Stacks begin at the same offset in a page. The frames of 64 threads begin in different sets of the cache.
constexpr size_t stack_step = 1088;
// The static shared memory that a block may have on every architecture.
constexpr size_t most_shared_bytes = 48 << 10;
// Static and dynamic shared memory together, on the architecture that has the least (sm_86) of those from sm_80 on.
constexpr size_t most_bytes = 99 << 10;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

// A copy that has started. Its bytes arrive when the thread waits for its group.
struct Copy {
  void* to;
  char bytes[16];
  int size;
  int group;
};

struct Thread {
  Fiber fiber;
  Index index{};
  int number = 0;  // in its block
  State state = State::done;
  int line = 0;  // of the barrier
  std::vector<Copy> copies;
  int group = 0;  // the number of groups that the thread has committed

  explicit Thread(Fiber fiber) : fiber(std::move(fiber)) {}
};

struct Warp {
  unsigned arrived = 0, alive = 0;
  alignas(16) char slots[32 * 64];
};

struct SharedVariable {
  const void* key;
  std::unique_ptr<void, void (*)(void*)> memory;
  size_t bytes;
};

void run_body();

// The state of the running block. The emulation runs on one thread of the CPU.
struct Emulator {
  std::mt19937 random;
  bool shuffled = false;

  void (*body)(void*) = nullptr;
  void* context = nullptr;
  Fiber scheduler;
  std::vector<std::unique_ptr<Thread>> threads;  // reused from block to block
  std::vector<Thread*> order, sorted;            // the threads of the block, and the memory to sort them
  // The threads that take turns, and the next one of them.
  std::vector<Thread*>::iterator first, last, at;
  Thread* running = nullptr;
  Warp warps[32];
  std::vector<SharedVariable> shared;
  size_t shared_bytes = 0, dynamic_bytes = 0;
  std::string error;

  int count() const { return static_cast<int>(block_size.x * block_size.y * block_size.z); }
  Warp& warp() { return warps[running->number / 32]; }

  void wait() { go_on(running->fiber); }
  [[noreturn]] void fail(const std::string& problem) {
    error = problem;
    for (;;) wait();
  }

  void start_block() {
    shared.clear();
    shared_bytes = 0;
    for (Warp& warp : warps) warp = Warp{};
    order.resize(count());
    for (int i = 0; i < count(); ++i) {
      if (i == static_cast<int>(threads.size())) {
        threads.push_back(std::make_unique<Thread>(Fiber(stack_bytes, i % 64 * stack_step, run_body)));
      }
      const unsigned n = static_cast<unsigned>(i);
      threads[i]->index = {n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
      threads[i]->number = i;
      threads[i]->state = State::ready;
      threads[i]->copies.clear();
      threads[i]->group = 0;
      warps[i / 32].alive |= 1u << i % 32;
      order[i] = threads[i].get();
    }
  }

  // Returns the next ready thread from `at` to `last`, then from `first` again. Returns null if all of them wait or
  // have ended, or after an error.
  Thread* next() {
    if (!error.empty()) return nullptr;
    for (; at != last; ++at) {
      if ((*at)->state == State::ready) return *at++;
    }
    for (at = first; at != last; ++at) {
      if ((*at)->state == State::ready) return *at++;
    }
    return nullptr;
  }

  // Switches from a thread or the scheduler to the next ready thread, or to the scheduler if there is none. Threads
  // switch to each other directly, because a way through the scheduler would take two switches.
  void go_on(Fiber& from) {
    if (Thread* const thread = next()) {
      running = thread;
      thread_index = thread->index;
      lane = thread->number % 32;
      from.go_to(thread->fiber);
    } else if (&from != &scheduler) {
      from.go_to(scheduler);
    }
  }

  // Runs the threads until all wait at the block's barrier or have ended, or until an error. By chance, threads of all
  // warps take turns, or each warp runs as far as it can before the next one. The latter shows a missing barrier
  // between warps whose lanes wait for each other.
  void run_threads() {
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    const bool by_warps = shuffled && random() % 2 == 0;
    if (by_warps) sort_by_warps(random());
    for (first = last = order.begin(); last != order.end() && error.empty(); first = last) {
      const int warp = (*first)->number / 32;
      while (last != order.end() && (!by_warps || (*last)->number / 32 == warp)) ++last;
      at = first;
      go_on(scheduler);
    }
  }

  // Sorts the threads by warp, keeping the order in each warp.
  void sort_by_warps(unsigned first_warp) {
    const auto place = [first_warp](const Thread* thread) { return (thread->number / 32 ^ first_warp) % 32; };
    int ends[33] = {};
    for (const Thread* thread : order) ++ends[place(thread) + 1];
    for (int i = 1; i < 33; ++i) ends[i] += ends[i - 1];
    sorted.resize(order.size());
    for (Thread* thread : order) sorted[ends[place(thread)]++] = thread;
    order.swap(sorted);
  }

  // Called when no thread is ready. Opens the block's barrier if all threads wait there. Returns false if the block has
  // ended, or after an error.
  bool open_barrier() {
    int waiting = 0, done = 0, line = 0;
    for (int i = 0; i < count(); ++i) {
      const Thread& thread = *threads[i];
      done += thread.state == State::done;
      if (thread.state == State::at_warp_barrier) {
        error = "deadlock: a warp waits for a lane of its mask that does not arrive";
      } else if (thread.state == State::at_block_barrier) {
        if (waiting++ && line != thread.line) {
          std::ostringstream text;
          text << "threads of a block wait at different barriers, lines " << std::min(line, thread.line) << " and "
               << std::max(line, thread.line);
          error = text.str();
        }
        line = thread.line;
      }
    }
    if (!error.empty() || done == count()) return false;
    if (waiting != count()) {
      std::ostringstream text;
      text << "deadlock: the barrier in line " << line << " is reached by " << waiting << " of " << count()
           << " threads";
      error = text.str();
      return false;
    }
    for (int i = 0; i < count(); ++i) threads[i]->state = State::ready;
    return true;
  }

  void run_block() {
    start_block();
    do {
      run_threads();
    } while (error.empty() && open_barrier());
    if (error.empty()) return;
    std::ostringstream text;
    text << "emulation: " << error << " (block " << block_index.x << ", " << block_index.y << ", " << block_index.z
         << ")";
    threads.clear();
    error.clear();
    throw std::runtime_error(text.str());
  }
};

Emulator emulator;

void run_body() {
  Fiber::arrive();
  for (;;) {
    emulator.body(emulator.context);
    emulator.running->state = State::done;
    emulator.warp().alive &= ~(1u << lane);
    emulator.wait();
  }
}

}  // namespace

void set_seed(unsigned seed) {
  emulator.shuffled = seed != 0;
  emulator.random.seed(seed);
}

void launch(Size grid, Size block, size_t dynamic_bytes, void (*body)(void*), void* context) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535) {
    std::ostringstream text;
    text << "emulation: invalid configuration: grid " << grid.x << " x " << grid.y << " x " << grid.z << ", block "
         << block.x << " x " << block.y << " x " << block.z;
    throw std::runtime_error(text.str());
  }
  grid_size = grid, block_size = block;
  emulator.body = body, emulator.context = context, emulator.dynamic_bytes = dynamic_bytes;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  if (emulator.shuffled) std::shuffle(order.begin(), order.end(), emulator.random);
  for (const uint64_t i : order) {
    block_index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)};
    emulator.run_block();
  }
}

void block_barrier(int line) {
  emulator.running->state = State::at_block_barrier;
  emulator.running->line = line;
  emulator.wait();
}

void warp_barrier(unsigned mask) {
  Thread& self = *emulator.running;
  Warp& warp = emulator.warp();
  if (!(mask >> lane & 1)) emulator.fail("a lane takes part in a warp operation whose mask does not include it");
  mask &= warp.alive;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    self.state = State::at_warp_barrier;
    return emulator.wait();
  }
  warp.arrived &= ~mask;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) emulator.threads[self.number / 32 * 32 + i]->state = State::ready;
  }
}

void* warp_slots(size_t bytes) {
  if (bytes > sizeof(Warp::slots) / 32) emulator.fail("a warp operation on more than 64 bytes per lane");
  return emulator.warp().slots;
}

void check_lane(unsigned mask, int source) {
  if (!(mask & emulator.warp().alive) >> source & 1) emulator.fail("a shuffle reads a lane that does not take part");
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  for (const SharedVariable& variable : emulator.shared) {
    if (variable.key == key) return variable.memory.get();
  }
  if (key != &emulator) emulator.shared_bytes += bytes;
  if (emulator.shared_bytes > most_shared_bytes) emulator.fail("a block uses more than 48 KiB of static shared memory");
  if (emulator.shared_bytes + emulator.dynamic_bytes > most_bytes) emulator.fail("a block uses more than 99 KiB");
  // The exact size, so that AddressSanitizer finds accesses out of bounds.
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) emulator.fail("out of memory");
  std::memset(memory, 0xff, bytes);
  emulator.shared.push_back({key, {memory, std::free}, bytes});
  return memory;
}

void* dynamic_shared_memory() { return shared_memory(&emulator, emulator.dynamic_bytes, 16); }

// ---- tensor_cores.h ------------------------------------------------------------------------------------------------

namespace tensor_cores {

void check_shared(const void* pointer, int bytes, const char* instruction) {
  const char* at = static_cast<const char*>(pointer);
  for (const SharedVariable& variable : emulator.shared) {
    const char* first = static_cast<const char*>(variable.memory.get());
    if (at >= first && at + bytes <= first + variable.bytes) {
      if (reinterpret_cast<uintptr_t>(at) % bytes == 0) return;
      emulator.fail(std::string(instruction) + " at a misaligned address of shared memory");
    }
  }
  emulator.fail(std::string(instruction) + " beyond shared memory");
}

void start_copy(void* to, const void* from, int bytes, int source_bytes) {
  check_shared(to, bytes, "cp.async");
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) emulator.fail("cp.async from a misaligned address");
  Copy copy{to, {}, bytes, emulator.running->group};
  for (int i = 0; i < source_bytes; ++i) copy.bytes[i] = static_cast<const char*>(from)[i];
  std::memset(to, 0xff, bytes);
  emulator.running->copies.push_back(copy);
}

void commit_copies() { ++emulator.running->group; }

void wait_for_copies(int latest_groups) {
  Thread& self = *emulator.running;
  std::erase_if(self.copies, [&](const Copy& copy) {
    if (copy.group >= self.group - latest_groups) return false;
    std::memcpy(copy.to, copy.bytes, copy.size);
    return true;
  });
}

}  // namespace tensor_cores

}  // namespace fastconv::emulation
