#include "convolution.h"
#include "memory/workspace.h"
#include "ops.h"
#include "tuning.h"

namespace fastconv::cpu {

Fused run_fused(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const WorkspaceScope scope;
  const Ints sizes{f.conv.N, f.conv.K, f.pool.P, f.pool.Q};
  const Tensor output = empty(sizes, input, fused_is_channels_last(f.conv, input, weight));
  const Tensor argmax = empty(sizes, input, true, ScalarType::Byte);
  if (output.numel() == 0) return {output, argmax};
  const auto run = [&] { run_forward({f, input, weight, bias, output, mutable_data<uint8_t>(argmax)}); };
  const auto operands = [&] { return Operands{f, input, weight, is_channels_last(output), {}, true}; };
  const Tuned tuned(Pass::forward, true, operands, run);
  run();
  return {output, argmax};
}

Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation) {
  const WorkspaceScope scope;
  const FusedShape f =
      check_conv2d_relu_max_pool2d_backward(grad_output, argmax, input, weight, stride, padding, dilation, groups,
                                            pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  const auto run = [&](bool of_input, bool of_weight) {
    Backward call{f, grad_output, argmax, input, weight, is_channels_last(input), is_channels_last(weight)};
    const Gradients gradients = call.allocate(of_input, of_weight);
    run_backward(call);
    return gradients;
  };
  const auto for_data = [&] { return Operands{f, grad_output, weight, is_channels_last(input), argmax, true}; };
  const auto for_weight = [&] { return Operands{f, grad_output, input, is_channels_last(weight), argmax, true}; };
  const Tuned data(Pass::backward_data, needs_input, for_data, [&] { run(true, false); });
  const Tuned sums(Pass::backward_weight, needs_weight, for_weight, [&] { run(false, true); });
  return run(needs_input, needs_weight);
}

}  // namespace fastconv::cpu
