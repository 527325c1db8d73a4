// How much freed memory the C library keeps for the next results, instead of returning it to the system.
#pragma once

#include <cstdint>

namespace fastconv {

constexpr int64_t kept_bytes = int64_t{64} << 20, kept_bytes_in_training = int64_t{1024} << 20;

// Tells glibc to keep up to that many bytes, but not more than FASTCONV_KEEP_MB. Later calls with the same or a
// smaller number do nothing. It changes the settings of the whole process, so it keeps those that the user has made
// with MALLOC_* or GLIBC_TUNABLES. Other C libraries keep their rules.
void keep_freed_memory(int64_t bytes);

}  // namespace fastconv
