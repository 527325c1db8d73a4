// The baseline of the architecture: SSE2 on x86-64, NEON on Arm.
#if defined(__aarch64__)
#define FC_BLOCK_ROWS 12
#else
#define FC_BLOCK_ROWS 6
#endif
#define FC_LEVEL baseline
#define FC_VECTOR_BYTES 16

#include "table.h"

namespace fastconv {
const Kernels kernels_default = baseline::all_kernels();
}
