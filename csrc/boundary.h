// Makes the operators' error messages readable, for every device. A user sees PyTorch's or fastconv's own text, never
// the text that torch's C functions add.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fastconv {

// Rethrows the exception that is being handled. The text of a failed call of torch's C functions names the call, a
// header and a line. It is replaced by PyTorch's own message. std::bad_alloc gets a message that says what to do.
[[noreturn]] void rethrow_in_words();

struct NoScope {};

// Calls `function`. A Scope object exists while it runs. Type is a separate parameter, because nvcc 13 does not match a
// specialisation that deduces the type from `function`.
template <auto function, class Scope = NoScope, class Type = decltype(function)>
struct Guarded;

template <auto function, class Scope, class Result, class... Arguments>
struct Guarded<function, Scope, Result (*)(Arguments...)> {
  static Result call(Arguments... arguments) {
    try {
      [[maybe_unused]] const Scope scope{};
      return function(arguments...);
    } catch (...) {
      rethrow_in_words();
    }
  }
};

}  // namespace fastconv

// TORCH_BOX for operators: FASTCONV_BOX(function) or FASTCONV_BOX(function, Scope).
#define FASTCONV_BOX(...) TORCH_BOX((&fastconv::Guarded<__VA_ARGS__>::call))
