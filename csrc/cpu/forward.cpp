#include "convolution.h"
#include "drivers/drivers.h"
#include "memory/bands.h"
#include "memory/reduced.h"

namespace fastconv::cpu {
namespace {

template <class T>
void forward(const Forward& call) {
  const ForwardPlan plan = plan_forward<T>(call.shape, is_nhwc(call.weight));
  switch (plan.algorithm) {
    case Algorithm::winograd:
      return winograd_forward<T>(call, plan.cut);
    case Algorithm::small_output:
      return small_output_forward<T>(call);
    default:
      return direct_forward<T>(call, plan.pool_in_registers);
  }
}

// 16-bit types are computed in float32, band by band.
void forward_reduced(const Forward& call, const std::optional<Tensor>& argmax) {
  const Tensor weight = widened(call.weight, Workspace::wide_weight);
  const std::optional<Tensor> bias = widened(call.bias, Workspace::wide_bias);
  for_each_band(call.shape, true, band_limits(true), [&](const Band& band) {
    const Tensor x = part_of(call.input, band.images, band.input);
    compute_wide(part_of(call.output, band.images, band.windows), Workspace::wide_result, [&](const Tensor& y) {
      uint8_t* at = argmax ? mutable_data<uint8_t>(part_of(*argmax, band.images, band.windows)) : nullptr;
      forward<float>({band.shape, widened(x, Workspace::wide_input), weight, bias, y, at});
    });
  });
}

}  // namespace

void run_forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Tensor& output, const std::optional<Tensor>& argmax) {
  const Forward call{f, input, weight, bias, output, argmax ? mutable_data<uint8_t>(*argmax) : nullptr};
  if (is_reduced(input)) return forward_reduced(call, argmax);
  dispatch_floating(input, argmax ? "conv2d_relu_max_pool2d" : "conv2d",
                    [&](auto type) { forward<decltype(type)>(call); });
}

}  // namespace fastconv::cpu
