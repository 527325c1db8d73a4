#include "ops.h"

namespace fastconv::cuda {

Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                          bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups) {
  const Conv2dShape s = check_conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups);
  Gradients gradients = empty_gradients(s, input, {false, false}, {false, false});
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (needs_input) {
    grad_input = conv2d_backward_data(grad_output, weight, sizes_of(input), stride, padding, dilation, groups,
                                      is_channels_last(input));
  }
  if (needs_weight) {
    std::tie(grad_weight, grad_bias) =
        conv2d_backward_weight(grad_output, input, {weight.size(2), weight.size(3)}, stride, padding, dilation, groups,
                               is_channels_last(weight));
  }
  return gradients;
}

}  // namespace fastconv::cuda
