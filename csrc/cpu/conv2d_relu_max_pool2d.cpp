#include "conv2d_relu_max_pool2d.h"

#include "convolution.h"
#include "tuning.h"

namespace fastconv::cpu {
namespace {

// Computes the gradients that have elements. `needs_weight` says so for those of weight and bias.
void compute_gradients(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                       const Tensor& weight, const Gradients& gradients, bool needs_input, bool needs_weight) {
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  Backward call{f, grad_output, argmax, input, weight};
  if (needs_input && grad_input.numel() > 0) call.grad_input = grad_input;
  if (needs_weight) call.grad_weight = grad_weight, call.grad_bias = grad_bias;
  run_backward(call);
}

}  // namespace

Fused fused_forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, result_is_channels_last(input, weight));
  const Tensor argmax = empty(sizes, input, true, ScalarType::Byte);
  if (output.numel() == 0) return {output, argmax};
  const auto run = [&] { run_forward({f, input, weight, bias, output, mutable_data<uint8_t>(argmax)}); };
  const auto operands = [&] { return Operands{f, input, weight, is_channels_last(output), {}, true}; };
  const Tuned tuned(Pass::forward, true, operands, run);
  run();
  return {output, argmax};
}

Gradients fused_backward(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                         const Tensor& weight, bool needs_input, bool needs_weight) {
  const Gradients gradients = empty_gradients(input, weight, needs_input, needs_weight);
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (f.conv.N == 0) {
    if (needs_weight) zero(grad_weight), zero(grad_bias);
    return gradients;
  }
  const auto run = [&](bool of_input, bool of_weight) {
    compute_gradients(f, grad_output, argmax, input, weight, gradients, of_input, of_weight);
  };
  const auto for_data = [&] { return Operands{f, grad_output, weight, is_channels_last(grad_input), argmax, true}; };
  const auto for_weight = [&] { return Operands{f, grad_output, input, is_channels_last(grad_weight), argmax, true}; };
  const Tuned data(Pass::backward_data, needs_input, for_data, [&] { run(true, false); });
  const Tuned sums(Pass::backward_weight, needs_weight, for_weight, [&] { run(false, true); });
  run(needs_input, needs_weight);
  return gradients;
}

}  // namespace fastconv::cpu
