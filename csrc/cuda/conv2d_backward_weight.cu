#include "conv2d.h"
#include "device.h"
#include "kernels/conv2d_backward_weight.cuh"
#include "ops.h"
#include "tile_choice.h"

namespace fastconv::cuda {

std::tuple<Tensor, Tensor> run_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                      const Tensor& input, bool channels_last) {
  check_coordinates(s);
  const Tensor grad_weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
  const Tensor grad_bias = empty({s.K}, input, false);
  launch_on(input, "conv2d_backward_weight", [&](auto type, Stream stream) {
    using T = decltype(type);
    const Tensor g = dense(grad_output), x = dense(input);
    const Tensor workspace = empty({backward_weight_workspace(s)}, input, false, sums_type(input));
    launch_conv2d_backward_weight<T>(s, read<T>(g), read<T>(x), written<T>(grad_weight), mutable_data<T>(grad_bias),
                                     mutable_data<Accumulator<T>>(workspace), tile_choice<T>(), stream);
  });
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cuda
