// The stand-in for libtorch has no convolution, so main() in operators.cpp forbids the plan to choose PyTorch's.
#include "cpu/aten.h"

#include <cstdio>
#include <cstdlib>

namespace fastconv::cpu {
namespace {

[[noreturn]] void refuse() {
  std::fprintf(stderr, "the plan chose PyTorch's convolution, which an Arm build without libtorch lacks\n");
  std::exit(1);
}

}  // namespace

Tensor aten_conv2d(const Conv2dShape&, const Tensor&, const Tensor&, const std::optional<Tensor>&, bool) { refuse(); }
Gradients aten_conv2d_backward(const Backward&, bool, bool) { refuse(); }

}  // namespace fastconv::cpu
