#include "aten.h"
#include "convolution.h"
#include "memory/workspace.h"
#include "ops.h"
#include "plan.h"
#include "tuning.h"

namespace fastconv::cpu {
namespace {

void check_epilogue(const Conv2dShape& s, const Tensor& input, const std::array<std::optional<Tensor>, 4>& vectors,
                    const std::optional<Tensor>& residual) {
  constexpr std::array names{"running_mean", "running_var", "weight", "bias"};
  for (size_t i = 0; i < vectors.size(); ++i) {
    check_channel_vector(vectors[i], s.K, names[i]);
  }
  check(vectors[0].has_value() == vectors[1].has_value(), "expected running_mean and running_var, or neither");
  check_like(residual, {s.N, s.K, s.P, s.Q}, input, "residual");
}

Tensor inference(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Epilogue& epilogue, bool prefers_contiguous) {
  const ScalarType type = input.scalar_type();
  const bool fits_both = s.N == 0 || s.K == 1 || s.P * s.Q == 1;
  const bool channels_last = result_is_channels_last(input, weight) && !(fits_both && prefers_contiguous);
  const auto run = [&] {
    const bool nhwc = epilogue.fits_registers() && in_nhwc(input, channels_last, s.K, s.P * s.Q);
    if (torch_is_faster(s, Pass::forward, type, nhwc)) {
      const Tensor output = aten_conv2d(s, input, weight, bias, channels_last);
      if (output.numel() > 0) normalize(output, epilogue, output);
      return output;
    }
    const Tensor output = empty({s.N, s.K, s.P, s.Q}, input, channels_last);
    if (output.numel() > 0) run_forward({without_pool(s), input, weight, bias, output, nullptr, &epilogue});
    return output;
  };
  const auto operands = [&] { return Operands{without_pool(s), input, weight, channels_last}; };
  const Tuned tuned(Pass::forward, true, operands, run);
  return run();
}

}  // namespace

Tensor conv2d_inference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
                        const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                        const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                        const Ints& dilation, int64_t groups, double eps, int64_t activation, double slope) {
  const WorkspaceScope scope;
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  check_epilogue(s, input, {running_mean, running_var, norm_weight, norm_bias}, residual);
  const ScalarType type = input.scalar_type();
  const NormalizationConstants constants =
      running_mean ? constants_of({norm_weight, norm_bias, *running_mean, *running_var, false, eps}, bias, s.K, type)
                   : scale_and_shift({}, {}, s.K, type);
  const std::optional<Tensor> conv_bias = running_mean ? std::nullopt : bias;
  const Epilogue epilogue{&constants, residual, activation_of(activation), slope};
  return inference(s, input, weight, conv_bias, epilogue, running_mean || residual);
}

Tensor conv2d_folded(const Tensor& input, const Tensor& weight, const Tensor& bias,
                     const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups, int64_t activation, double slope, bool prefers_contiguous) {
  const WorkspaceScope scope;
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  check_epilogue(s, input, {}, residual);
  const NormalizationConstants constants = scale_and_shift({}, {}, s.K, input.scalar_type());
  const Epilogue epilogue{&constants, residual, activation_of(activation), slope};
  return inference(s, input, weight, bias, epilogue, prefers_contiguous);
}

}  // namespace fastconv::cpu
