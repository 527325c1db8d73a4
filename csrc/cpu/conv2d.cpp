#include "aten.h"
#include "convolution.h"
#include "drivers/drivers.h"
#include "memory/bands.h"
#include "memory/reduced.h"
#include "ops.h"
#include "tuning.h"

namespace fastconv::cpu {
namespace {

// Runs a call of a 16-bit type in float32, band by band.
void run_in_float32(const Forward& call) {
  const Tensor weight = widened(call.weight, Workspace::wide_weight);
  const std::optional<Tensor> bias = widened(call.bias, Workspace::wide_bias);
  for_each_band(call.shape, true, band_limits(true), [&](const Band& band) {
    const Tensor x = widened(part_of(call.input, band.images, band.input), Workspace::wide_input);
    std::optional<Epilogue> epilogue;
    if (call.epilogue) {
      epilogue = *call.epilogue;
      if (auto& residual = epilogue->residual) {
        residual = widened(part_of(*residual, band.images, band.windows), Workspace::wide_gradient);
      }
    }
    compute_wide(part_of(call.output, band.images, band.windows), Workspace::wide_result, [&](const Tensor& y) {
      run_forward({band.shape, x, weight, bias, y, call.argmax_from(band.images.image, band.windows.first),
                   epilogue ? &*epilogue : nullptr});
    });
  });
}

// Returns whether thin_groups converts the tiles of a 16-bit call. It does not convert the results of a pool.
bool converts_thin_groups(const Forward& call) {
  if (call.shape.conv.groups == 1 || call.argmax) return false;
  return plan_forward<float>(call.shape, is_nhwc(call.weight), false).algorithm == Algorithm::thin_groups;
}

// pairs has no max-pooling, and no activations besides ReLU and ReLU6.
bool may_multiply_pairs(const Forward& call) {
  if (call.argmax || (call.epilogue && !call.epilogue->fits_registers())) return false;
  return is_nhwc(call.input) && is_nhwc(call.output);
}

}  // namespace

void run_forward(const Forward& call) {
  if (multiplies_pairs(call.shape.conv, Pass::forward, call.input.scalar_type(), may_multiply_pairs(call))) {
    return pairs_forward(call);
  }
  if (is_reduced(call.input)) {
    if (!converts_thin_groups(call)) return run_in_float32(call);
    return thin_groups_forward(ReducedElements{reduced_kernels(call.input.scalar_type())}, call);
  }
  dispatch_floating(call.input, call.argmax ? "conv2d_relu_max_pool2d" : "conv2d", [&](auto type) {
    using T = decltype(type);
    const ForwardPlan plan = plan_forward<T>(call.shape, is_nhwc(call.weight), call.argmax != nullptr);
    switch (plan.algorithm) {
      case Algorithm::winograd:
        return winograd_forward<T>(call, plan.cut);
      case Algorithm::small_output:
        return small_output_forward<T>(call);
      case Algorithm::thin_groups:
        return thin_groups_forward(PlainElements<T>{}, call);
      case Algorithm::image_filter:
        return image_filter_forward<T>(call);
      case Algorithm::torch:
        return torch_forward<T>(call);
      default:
        return direct_forward<T>(call, plan.pool_in_registers);
    }
  });
}

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups) {
  const WorkspaceScope scope;
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  const bool channels_last = result_is_channels_last(input, weight);
  const auto run = [&] {
    const bool nhwc = in_nhwc(input, channels_last, s.K, s.P * s.Q);
    if (torch_is_faster(s, Pass::forward, input.scalar_type(), nhwc)) {
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

}  // namespace fastconv::cpu
