// The CUDA functions as operators of the CPU, torch.ops.fastconv_emulated: schemas are given by conftest.py.
#include "../../../csrc/cuda/ops.h"

#include "emulation.h"

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) { fastconv::cuda::implement(m); }

extern "C" void fastconv_emulation_set_seed(unsigned seed) { fastconv::emulation::set_seed(seed); }
