// Checks the arguments of every operator, for every device, with PyTorch's own error messages. All other code trusts
// its arguments.
#pragma once

#include "shapes.h"
#include "tensor.h"

namespace fastconv {

// Two tensors of one device and one element type. `what`: the name of b.
void check_same_type(const Tensor& a, const Tensor& b, const char* what);

Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
Conv2dShape check_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
Conv2dShape check_conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                       const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
Conv2dShape check_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input, const Ints& kernel_size,
                                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);

// Checks sizes without tensors. The fake kernels in fastconv/_ops call the functions that check sizes and numbers.
Conv2dShape check_conv2d_sizes(const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding,
                               const Ints& dilation, int64_t groups, const std::optional<Sizes>& bias = {});

// Checks numbers without sizes. `kernel_size`: may be null.
void check_geometry(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                    const Ints* kernel_size = nullptr);
void check_max_pool2d_parameters(const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                 const Ints& dilation);

Pool2dShape check_max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool ceil_mode);
// `fused`: the pool of a fused operator, which stores argmax (shapes.h) in place of indices.
Pool2dShape check_max_pool2d_backward(const Tensor& grad_output, const Tensor& positions, const Ints& input_size,
                                      const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                      const Ints& dilation, bool fused = false);

// Checks sizes without a tensor. `input` has 4 sizes. `given`: the (P, Q) of the gradient in backward, which has no
// ceil_mode.
Pool2dShape check_max_pool2d_sizes(const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                   const Ints& dilation, bool ceil_mode, bool fused = false,
                                   const Ints* given = nullptr);

// Refuses inputs of relu_ whose elements share memory because of a stride of 0. relu_ writes its input in place.
void check_no_overlap(const Tensor& input);
void check_relu_backward(const Tensor& grad_output, const Tensor& output);

// Checks the arguments of conv2d first, then those of max_pool2d.
FusedShape check_conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                                 const Tensor& weight, const Ints& stride, const Ints& padding,
                                                 const Ints& dilation, int64_t groups, const Ints& pool_kernel_size,
                                                 const Ints& pool_stride, const Ints& pool_padding,
                                                 const Ints& pool_dilation);

}  // namespace fastconv
