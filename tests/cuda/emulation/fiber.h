// Fibers: functions that can pause and continue later. Each has a stack of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastconv::emulation {

#if defined(__x86_64__)

// This is 50 times faster than glibc's swapcontext, which makes a system call at each switch to set the signal mask.
extern "C" void fastconv_switch_stack(void** save, void* load);
asm(R"(
.text
.weak fastconv_switch_stack
.hidden fastconv_switch_stack
.type fastconv_switch_stack, @function
fastconv_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size fastconv_switch_stack, . - fastconv_switch_stack
)");

struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15});
    *--top = nullptr;  // the return address of entry, never used; it aligns the stack as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) { fastconv_switch_stack(&from.stack_pointer, to.stack_pointer); }
};

#else

struct Context {
  ucontext_t state;

  void prepare(char* stack, size_t size, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack, state.uc_stack.ss_size = size, state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};

#endif

// A stack and the point where its execution paused. Fiber() without arguments stands for the caller's own stack.
class Fiber {
 public:
  Fiber() = default;
  // The top `unused` bytes stay unused. Different numbers keep the stacks of many fibers in different sets of the
  // cache.
  Fiber(size_t size, size_t unused, void (*entry)()) : size_(size), own_(new char[size]), stack_(own_.get()) {
    context_.prepare(own_.get(), size - unused, entry);
  }

  // Call it on the running fiber. It returns when some fiber switches back to `this`.
  void go_to(Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.size_);
#endif
    came_from() = this;
    Context::change(context_, to.context_);
    arrive(fake_stack_);
  }

  // An entry function must call this first.
  static void arrive([[maybe_unused]] void* fake_stack = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
    Fiber& from = *came_from();
    __sanitizer_finish_switch_fiber(fake_stack, &from.stack_, &from.size_);
#endif
  }

 private:
  static Fiber*& came_from() {
    static Fiber* fiber = nullptr;
    return fiber;
  }

  Context context_;
  size_t size_ = 0;
  std::unique_ptr<char[]> own_;
  const void* stack_ = nullptr;
  [[maybe_unused]] void* fake_stack_ = nullptr;
};

}  // namespace fastconv::emulation
