// The headers that avx2.cpp, avx512.cpp and avx512_bf16.cpp include before their target region opens. Inside it, inline
// functions of these headers would use that level's instructions, and the linker might keep that copy for all levels.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../../shapes.h"
#include "assert.h"
#include "kernels.h"
#include "range.h"
