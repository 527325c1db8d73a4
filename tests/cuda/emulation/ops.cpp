// Registers the CUDA functions as CPU operators, torch.ops.fastconv_emulated. conftest.py defines their schemas.
#include "../../../csrc/cuda/ops.h"

#include <torch/csrc/stable/library.h>

#include "../../../csrc/environment.h"
#include "../../../csrc/precision.h"
#include "emulation.h"

namespace fastconv {
namespace {

// The settings that an installed extension reads from the environment and from PyTorch.
Environment settings{};
bool tf32 = false;

}  // namespace

const Environment& environment() { return settings; }
bool allows_tf32() { return tf32; }

namespace cuda {
int emulated_tile = -1;
}

}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv_emulated, CPU, m) {
  using namespace fastconv::cuda;
  FC_REGISTER_OPERATORS(m)
}

extern "C" void fastconv_emulation_set_seed(unsigned seed) { fastconv::emulation::set_seed(seed); }

extern "C" void fastconv_emulation_set_tensor_cores(bool on, bool allow_tf32) {
  fastconv::settings.tensor_cores = on;
  fastconv::tf32 = allow_tf32;
}

// The place of the tile in its list in conv2d_tiles.cuh, or -1.
extern "C" void fastconv_emulation_set_tile(int place) { fastconv::cuda::emulated_tile = place; }
