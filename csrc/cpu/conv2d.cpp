#include "conv2d.h"

#include "aten.h"
#include "convolution.h"
#include "plan.h"
#include "tuning.h"

namespace fastconv::cpu {

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups) {
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  const bool channels_last = result_is_channels_last(input, weight);
  const auto run = [&] {
    if (torch_is_faster(s, Pass::forward, input.scalar_type())) {
      return aten_conv2d(s, input, weight, bias, channels_last);
    }
    const Tensor output = empty({s.N, s.K, s.P, s.Q}, input, channels_last);
    if (output.numel() > 0) run_forward({without_pool(s), input, weight, bias, output});
    return output;
  };
  const auto operands = [&] { return Operands{without_pool(s), input, weight, channels_last}; };
  const Tuned tuned(Pass::forward, true, operands, run);
  return run();
}

Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                          bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups) {
  const Conv2dShape s = check_conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups);
  const ScalarType type = input.scalar_type();
  const auto run = [&](bool of_input, bool of_weight) {
    const bool data_by_torch = of_input && torch_is_faster(s, Pass::backward_data, type);
    const bool weight_by_torch = of_weight && torch_is_faster(s, Pass::backward_weight, type);
    Gradients gradients = run_backward({without_pool(s), grad_output, {}, input, weight}, of_input && !data_by_torch,
                                       of_weight && !weight_by_torch);
    if (data_by_torch || weight_by_torch) {
      const auto [grad_input, grad_weight, grad_bias] =
          aten_conv2d_backward(s, grad_output, input, weight, data_by_torch, weight_by_torch);
      if (data_by_torch) std::get<0>(gradients) = grad_input;
      if (weight_by_torch) std::get<1>(gradients) = grad_weight, std::get<2>(gradients) = grad_bias;
    }
    return gradients;
  };
  const auto for_data = [&] { return Operands{without_pool(s), grad_output, weight, is_channels_last(input)}; };
  const auto for_weight = [&] { return Operands{without_pool(s), grad_output, input, is_channels_last(weight)}; };
  const Tuned data(Pass::backward_data, needs_input, for_data, [&] { run(true, false); });
  const Tuned sums(Pass::backward_weight, needs_weight, for_weight, [&] { run(false, true); });
  return run(needs_input, needs_weight);
}

Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s = check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const auto run = [&] {
    if (torch_is_faster(s, Pass::backward_data, grad_output.scalar_type())) {
      return aten_conv2d_backward_data(s, grad_output, weight, channels_last);
    }
    Backward call{without_pool(s), grad_output};
    call.weight = weight;
    call.grad_input = empty(input_size, grad_output, channels_last);
    if (call.grad_input->numel() > 0) run_backward(call);
    return *call.grad_input;
  };
  const auto operands = [&] { return Operands{without_pool(s), grad_output, weight, channels_last}; };
  const Tuned tuned(Pass::backward_data, true, operands, run);
  return run();
}

std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const auto run = [&]() -> std::tuple<Tensor, Tensor> {
    if (torch_is_faster(s, Pass::backward_weight, grad_output.scalar_type())) {
      return aten_conv2d_backward_weight(s, grad_output, input, channels_last);
    }
    Backward call{without_pool(s), grad_output};
    call.input = input;
    call.grad_weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
    call.grad_bias = empty({s.K}, input, false);
    if (s.N > 0) {
      run_backward(call);
    } else {
      zero(*call.grad_weight), zero(*call.grad_bias);
    }
    return {*call.grad_weight, *call.grad_bias};
  };
  const auto operands = [&] { return Operands{without_pool(s), grad_output, input, channels_last}; };
  const Tuned tuned(Pass::backward_weight, true, operands, run);
  return run();
}

}  // namespace fastconv::cpu
