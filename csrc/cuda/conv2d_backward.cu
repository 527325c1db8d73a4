#include "ops.h"

namespace fastconv::cuda {

Gradients run_conv2d_backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                              const Tensor& weight, bool needs_input, bool needs_weight) {
  Gradients gradients = empty_gradients(s, input, {false, false}, {false, false});
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (needs_input) grad_input = run_conv2d_backward_data(s, grad_output, weight, is_channels_last(input));
  if (needs_weight) {
    std::tie(grad_weight, grad_bias) = run_conv2d_backward_weight(s, grad_output, input, is_channels_last(weight));
  }
  return gradients;
}

}  // namespace fastconv::cuda
