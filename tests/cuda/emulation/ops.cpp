// Registers the CUDA functions as CPU operators, torch.ops.fastconv_emulated. conftest.py defines their schemas.
#include "../../../csrc/cuda/ops.h"

#include "emulation.h"

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) { fastconv::cuda::implement(m); }

extern "C" void fastconv_emulation_set_seed(unsigned seed) { fastconv::emulation::set_seed(seed); }
