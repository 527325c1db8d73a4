// How an operator's errors leave it, for every device: in PyTorch's words or ours, never in those of a failed C call.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fastconv {

// Rethrows the exception that is being handled. What a failed call of torch's C functions says (the call, the file and
// line of a header) becomes what PyTorch itself said about it, and std::bad_alloc a sentence.
[[noreturn]] void rethrow_in_words();

struct NoScope {};

// `function`, with an object of type Scope that exists while it runs. (The type of the function is a parameter of its
// own, since nvcc 13 does not match it in a partial specialisation of `function`.)
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
