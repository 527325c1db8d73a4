// The operators' functions on a GPU. Schemas: ../ops.cpp.
#pragma once

#include "../checks.h"

namespace fastconv::cuda {

#include "../operators.h"

}  // namespace fastconv::cuda
