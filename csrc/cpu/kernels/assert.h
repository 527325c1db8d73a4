// In builds with FASTCONV_DEBUG=1, FASTCONV_ASSERT(condition) prints the file, the line and the condition if the
// condition is false, and aborts. Other builds do not evaluate the condition. This file uses neither torch nor the STL.
#pragma once

namespace fastconv {

#ifdef FASTCONV_DEBUG
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);
#define FASTCONV_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::fastconv::assertion_failed(#condition, __FILE__, __LINE__))
#else
#define FASTCONV_ASSERT(condition) static_cast<void>(0)
#endif

}  // namespace fastconv
