#include "device.h"
#include "kernels/max_pool2d.cuh"
#include "ops.h"

namespace fastconv::cuda {

void write_max_pool2d(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices,
                      bool nhwc) {
  launch_on(input, "max_pool2d", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_max_pool2d(s, data<T>(input), mutable_data<T>(output), mutable_data<int64_t>(indices), nhwc, stream);
  });
}

void write_max_pool2d_backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices,
                               const Tensor& grad_input, bool nhwc) {
  launch_on(grad_output, "max_pool2d_backward", [&](auto type, Stream stream) {
    using T = decltype(type);
    launch_max_pool2d_backward(s, data<T>(grad_output), data<int64_t>(indices), mutable_data<T>(grad_input), nhwc,
                               stream);
  });
}

}  // namespace fastconv::cuda
