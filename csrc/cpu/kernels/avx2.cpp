#if defined(__x86_64__)

#include "before_target.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
// The region stays open to the end of the file, where templates are instantiated.
#pragma GCC target("avx2,fma,f16c")
#endif

#define FC_LEVEL avx2
#define FC_VECTOR_BYTES 32
#define FC_BLOCK_ROWS 6

#include "table.h"

namespace fastconv {
const Kernels kernels_avx2 = avx2::all_kernels();
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
