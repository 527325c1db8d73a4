// The environment variables of the extension, read and checked once, at import. The variables that only Python
// reads are in fastconv/environment.py. docs/reference/environment.md describes all of them.
#pragma once

#include <cstdint>
#include <string>

namespace fastconv {

struct Environment {
  std::string cpu_capability;  // FASTCONV_CPU_CAPABILITY: an ISA level of this machine; empty: the highest
  bool own_algorithms;         // FASTCONV_ALGORITHM=own: never PyTorch's operators
  int winograd;                // FASTCONV_WINOGRAD: the largest side of a tile; 0: no Winograd
  int64_t cache_bytes;         // FASTCONV_CACHE_MB in bytes; INT64_MAX: no limit
  int64_t keep_bytes;          // FASTCONV_KEEP_MB in bytes: the most freed memory that the C library keeps
  bool tensor_cores;           // FASTCONV_TENSOR_CORES=1: the CUDA kernels that have not run on a GPU yet
};

// Throws std::invalid_argument if a variable has a value that is not accepted. fastconv/_ops/library.py calls this at
// import, so that the import raises the error and not the first convolution.
const Environment& environment();

// Returns whether the environment now has settings of glibc's malloc.
bool has_malloc_settings();

}  // namespace fastconv
