#if defined(__x86_64__)

// Include these before the target region opens, as avx512.cpp does.
#include <immintrin.h>

#include <cstdint>

#include "../../shapes.h"
#include "assert.h"
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,fma")
#endif

#include "pairs.h"

namespace fastconv {
const PairsKernels kernels_pairs = {.forward = pairs::forward, .pack_weight_backward = pairs::pack_weight_backward};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
