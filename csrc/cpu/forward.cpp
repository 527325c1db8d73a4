#include "convolution.h"
#include "drivers/drivers.h"
#include "memory/bands.h"
#include "memory/reduced.h"

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

}  // namespace

void run_forward(const Forward& call) {
  if (is_reduced(call.input)) return run_in_float32(call);
  dispatch_floating(call.input, call.argmax ? "conv2d_relu_max_pool2d" : "conv2d", [&](auto type) {
    using T = decltype(type);
    const ForwardPlan plan = plan_forward<T>(call.shape, is_nhwc(call.weight));
    switch (plan.algorithm) {
      case Algorithm::winograd:
        return winograd_forward<T>(call, plan.cut);
      case Algorithm::small_output:
        return small_output_forward<T>(call);
      case Algorithm::thin_groups:
        return thin_groups_forward<T>(call);
      case Algorithm::torch:
        return torch_forward<T>(call);
      default:
        return direct_forward<T>(call, plan.pool_in_registers);
    }
  });
}

}  // namespace fastconv::cpu
