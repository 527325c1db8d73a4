#include "assert.h"

#ifdef FASTCONV_DEBUG

#include <cstdio>
#include <cstdlib>

namespace fastconv {

void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: fastconv: assertion failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace fastconv

#endif
