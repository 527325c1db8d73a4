// The CPU's max-pooling. Schemas: ops.cpp.
#pragma once

#include <tuple>

#include "../checks.h"

namespace fastconv::cpu {

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode);

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last);

}  // namespace fastconv::cpu
