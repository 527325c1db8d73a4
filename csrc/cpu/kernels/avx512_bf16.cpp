// The kernels of pairs.h and pairs_weight.h, with a table of their own: the other kernels of these CPUs are those of
// avx512.cpp.
#if defined(__x86_64__)

#include "before_target.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define FC_LEVEL avx512_bf16
#define FC_VECTOR_BYTES 64
#define FC_BLOCK_ROWS 12

#include "pairs.h"
#include "pairs_weight.h"

namespace fastconv {
using namespace avx512_bf16;
const PairsKernels kernels_pairs = {.steps = pairs::pair_steps,
                                    .forward = pairs::forward,
                                    .pack_weight_backward = pairs::pack_weight_backward,
                                    .weight = {.block_rows = block_rows,
                                               .block_lanes = block_lanes<float>,
                                               .workspace_size = gemm_weight::workspace_size<pairs::TwoPixels>,
                                               .backward_weight = gemm_weight::backward_weight<pairs::TwoPixels>}};
}  // namespace fastconv

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
