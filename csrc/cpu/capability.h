// Chooses the ISA level of this process.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastconv {

// The kernels of the level in use: the highest level of the machine, unless FASTCONV_CPU_CAPABILITY or
// set_cpu_capability chose another one.
const Kernels& kernels();

// The kernels that multiply pairs of bfloat16. Null if the CPU lacks AVX-512 BF16, or the level in use is below avx512.
const PairsKernels* pairs_kernels();

std::string cpu_capability();
// The levels of this machine, lowest first.
std::vector<std::string> cpu_capabilities();
// Throws std::invalid_argument if the name is unknown or the machine lacks the level.
void set_cpu_capability(const std::string& name);

// Whether the level in use is avx512, on an AMD CPU that computes 512 bits in one step: family 26 (Zen 5) or later. Zen
// 4 takes two steps.
bool has_wide_avx512();

// The size of the third-level cache in bytes, read once. 32 MB if it is not known.
int64_t last_level_cache();

}  // namespace fastconv
