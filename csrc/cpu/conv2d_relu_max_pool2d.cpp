#include "conv2d_relu_max_pool2d.h"

#include "convolution.h"

namespace fastconv::cpu {

Fused fused_forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, result_is_channels_last(input, weight));
  const Tensor argmax = empty(sizes, input, true, ScalarType::Byte);
  if (output.numel() > 0) run_forward({f, input, weight, bias, output, mutable_data<uint8_t>(argmax)});
  return {output, argmax};
}

Gradients fused_backward(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                         const Tensor& weight, bool needs_input, bool needs_weight) {
  return run_backward({f, grad_output, argmax, input, weight}, needs_input, needs_weight);
}

}  // namespace fastconv::cpu
