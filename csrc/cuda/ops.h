// The operators' CUDA functions, and their registration. Schemas: ../ops.cpp.
#pragma once

#include <tuple>

#include "../boundary.h"
#include "../fused.h"

namespace fastconv::cuda {

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups);
Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                          bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups);
Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last);
std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last);

FusedForward fused_forward;
FusedBackward fused_backward;

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode);
Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last);

Tensor relu(const Tensor& input);
void relu_(const Tensor& input);
Tensor relu_backward(const Tensor& grad_output, const Tensor& output);

// Registers the functions in a library: for the device CUDA, or for the emulation's operators.
inline void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("conv2d", FASTCONV_BOX(conv2d));
  m.impl("conv2d_backward", FASTCONV_BOX(conv2d_backward));
  m.impl("conv2d_backward_data", FASTCONV_BOX(conv2d_backward_data));
  m.impl("conv2d_backward_weight", FASTCONV_BOX(conv2d_backward_weight));
  m.impl("conv2d_relu", FASTCONV_BOX(conv2d_relu<fused_forward>));
  m.impl("conv2d_relu_max_pool2d", FASTCONV_BOX(conv2d_relu_max_pool2d<fused_forward>));
  m.impl("conv2d_relu_backward", FASTCONV_BOX(conv2d_relu_backward<fused_backward>));
  m.impl("conv2d_relu_max_pool2d_backward", FASTCONV_BOX(conv2d_relu_max_pool2d_backward<fused_backward>));
  m.impl("max_pool2d", FASTCONV_BOX(max_pool2d));
  m.impl("max_pool2d_backward", FASTCONV_BOX(max_pool2d_backward));
  m.impl("relu", FASTCONV_BOX(relu));
  m.impl("relu_", FASTCONV_BOX(relu_));
  m.impl("relu_backward", FASTCONV_BOX(relu_backward));
}

}  // namespace fastconv::cuda
