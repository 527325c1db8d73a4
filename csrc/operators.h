// The functions of the operators that every device has. Schemas: ops.cpp. The ops.h of each device includes this file
// inside its namespace, so it has no include guard.

Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups);
Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                          bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups);
Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups, bool channels_last);
std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                  const Ints& dilation, int64_t groups, bool channels_last);

// The two fused operators. The arguments have been checked.
Fused run_fused(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias);

inline Fused conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  return run_fused(without_pool(check_conv2d(input, weight, bias, stride, padding, dilation, groups)), input, weight,
                   bias);
}

inline Fused conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                                    const Ints& pool_dilation, bool pool_ceil_mode) {
  const FusedShape f =
      check_conv2d_relu_max_pool2d(input, weight, bias, stride, padding, dilation, groups, pool_kernel_size,
                                   pool_stride, pool_padding, pool_dilation, pool_ceil_mode);
  return run_fused(f, input, weight, bias);
}

Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation);

inline Gradients conv2d_relu_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                      const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, int64_t groups) {
  const Ints one{1, 1}, none{0, 0};
  return conv2d_relu_max_pool2d_backward(grad_output, argmax, input, weight, needs_input, needs_weight, stride, padding,
                                         dilation, groups, one, one, none, one);
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, bool ceil_mode);
Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                           const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                           bool channels_last);

// Both tensors fill their memory in the same order. They may be the same.
void write_relu(const Tensor& from, const Tensor& to);

inline Tensor relu(const Tensor& input) {
  const Tensor output = empty_as(input);
  write_relu(ordered_as(input, output), output);
  return output;
}

inline void relu_(const Tensor& input) {
  if (fills_memory(input)) return write_relu(input, input);
  check_no_overlap(input);
  copy(relu(input), input);
}

Tensor relu_backward(const Tensor& grad_output, const Tensor& output);

// Registers the functions of the current namespace with the library `m`.
#define FC_REGISTER_OPERATORS(m)                                                            \
  (m).impl("conv2d", TORCH_BOX(&conv2d));                                                   \
  (m).impl("conv2d_backward", TORCH_BOX(&conv2d_backward));                                 \
  (m).impl("conv2d_backward_data", TORCH_BOX(&conv2d_backward_data));                       \
  (m).impl("conv2d_backward_weight", TORCH_BOX(&conv2d_backward_weight));                   \
  (m).impl("conv2d_relu", TORCH_BOX(&conv2d_relu));                                         \
  (m).impl("conv2d_relu_backward", TORCH_BOX(&conv2d_relu_backward));                       \
  (m).impl("conv2d_relu_max_pool2d", TORCH_BOX(&conv2d_relu_max_pool2d));                   \
  (m).impl("conv2d_relu_max_pool2d_backward", TORCH_BOX(&conv2d_relu_max_pool2d_backward)); \
  (m).impl("max_pool2d", TORCH_BOX(&max_pool2d));                                           \
  (m).impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));                         \
  (m).impl("relu", TORCH_BOX(&relu));                                                       \
  (m).impl("relu_", TORCH_BOX(&relu_));                                                     \
  (m).impl("relu_backward", TORCH_BOX(&relu_backward));
