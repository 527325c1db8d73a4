// The operators' CUDA functions, and their registration. Schemas: ../ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../operators.h"

namespace fastconv::cuda {

Conv2dOperator conv2d;
Conv2dBackwardOperator conv2d_backward;
Conv2dBackwardDataOperator conv2d_backward_data;
Conv2dBackwardWeightOperator conv2d_backward_weight;

Conv2dReluOperator conv2d_relu;
Conv2dReluBackwardOperator conv2d_relu_backward;
Conv2dReluMaxPool2dOperator conv2d_relu_max_pool2d;
Conv2dReluMaxPool2dBackwardOperator conv2d_relu_max_pool2d_backward;

MaxPool2dOperator max_pool2d;
MaxPool2dBackwardOperator max_pool2d_backward;

ReluOperator relu;
ReluInPlaceOperator relu_;
ReluBackwardOperator relu_backward;

// Registers the functions in a library: for the device CUDA, or for the emulation's operators.
inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward));
  m.impl("conv2d_backward_data", TORCH_BOX(&conv2d_backward_data));
  m.impl("conv2d_backward_weight", TORCH_BOX(&conv2d_backward_weight));
  m.impl("conv2d_relu", TORCH_BOX(&conv2d_relu));
  m.impl("conv2d_relu_max_pool2d", TORCH_BOX(&conv2d_relu_max_pool2d));
  m.impl("conv2d_relu_backward", TORCH_BOX(&conv2d_relu_backward));
  m.impl("conv2d_relu_max_pool2d_backward", TORCH_BOX(&conv2d_relu_max_pool2d_backward));
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
  m.impl("relu", TORCH_BOX(&relu));
  m.impl("relu_", TORCH_BOX(&relu_));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
}

}  // namespace fastconv::cuda
