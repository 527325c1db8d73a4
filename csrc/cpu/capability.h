// Which ISA level serves this process.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastconv {

// The table in use: the highest level of the machine, unless FASTCONV_CPU_CAPABILITY or set_cpu_capability chose one.
const Kernels& kernels();

std::string cpu_capability();
// What this machine has, lowest first.
std::vector<std::string> cpu_capabilities();
// Throws std::invalid_argument when the name is unknown or the machine lacks the level.
void set_cpu_capability(const std::string& name);

}  // namespace fastconv
