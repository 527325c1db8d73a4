// FASTCONV_ASSERT(condition) ends the process with the file, the line and the condition when the condition is false.
// Builds with FASTCONV_DEBUG=1 check it. Other builds do not evaluate it. No torch and no STL here.
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
