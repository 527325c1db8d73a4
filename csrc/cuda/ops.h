// The operators' CUDA functions, and their registration. Schemas: ../ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../checks.h"

namespace fastconv::cuda {

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode);
Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last);

Tensor relu(const Tensor& input);
void relu_(const Tensor& input);
Tensor relu_backward(const Tensor& grad_output, const Tensor& output);

// To whatever library these are to serve: the dispatcher's, or that of the emulation.
inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
  m.impl("relu", TORCH_BOX(&relu));
  m.impl("relu_", TORCH_BOX(&relu_));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
}

}  // namespace fastconv::cuda
