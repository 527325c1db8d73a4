// The functions of the operators that every device has. Schemas: ops.cpp. The ops.h of each device includes this file
// inside its namespace, so it has no include guard.

// ---- what a device computes. The arguments have been checked -----------------------------------------------------

Gradients run_conv2d_backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                              const Tensor& weight, bool needs_input, bool needs_weight);
Tensor run_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                bool channels_last);
std::tuple<Tensor, Tensor> run_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                      const Tensor& input, bool channels_last);

// The two fused operators.
Fused run_fused(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias);

// All tensors are NHWC or, without `nhwc`, NCHW.
void write_max_pool2d(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices,
                      bool nhwc);
void write_max_pool2d_backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices,
                               const Tensor& grad_input, bool nhwc);

// Both tensors fill their memory in the same order. They may be the same.
void write_relu(const Tensor& from, const Tensor& to);

// `output` and `grad_input` fill their memory in the same order, grad_output perhaps in another.
void write_relu_backward(const Tensor& grad_output, const Tensor& output, const Tensor& grad_input);

// ---- the operators -----------------------------------------------------------------------------------------------

// To keep the call path short (tests/test_call_path.py), each device checks the arguments of these two itself.
Tensor conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
              const Ints& padding, const Ints& dilation, int64_t groups);
Gradients conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                          const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                          const Ints& padding, const Ints& dilation, int64_t groups,
                                          const Ints& pool_kernel_size, const Ints& pool_stride,
                                          const Ints& pool_padding, const Ints& pool_dilation);

inline Gradients conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool needs_input,
                                 bool needs_weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                                 int64_t groups) {
  const Conv2dShape s = check_conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups);
  return run_conv2d_backward(s, grad_output, input, weight, needs_input, needs_weight);
}

inline Tensor conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                   const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                   bool channels_last) {
  const Conv2dShape s = check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  return run_conv2d_backward_data(s, grad_output, weight, channels_last);
}

inline std::tuple<Tensor, Tensor> conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                         const Ints& kernel_size, const Ints& stride,
                                                         const Ints& padding, const Ints& dilation, int64_t groups,
                                                         bool channels_last) {
  const Conv2dShape s =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  return run_conv2d_backward_weight(s, grad_output, input, channels_last);
}

inline Fused conv2d_relu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  return run_fused(without_pool(check_conv2d(input, weight, bias, stride, padding, dilation, groups)), input, weight,
                   bias);
}

inline Fused conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                    const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                                    const Ints& pool_dilation, bool pool_ceil_mode) {
  const Conv2dShape s = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  const Pool2dShape pool = check_max_pool2d_sizes({s.N, s.K, s.P, s.Q}, pool_kernel_size, pool_stride, pool_padding,
                                                  pool_dilation, pool_ceil_mode, true);
  return run_fused({s, pool}, input, weight, bias);
}

inline Gradients conv2d_relu_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                      const Tensor& weight, bool needs_input, bool needs_weight, const Ints& stride,
                                      const Ints& padding, const Ints& dilation, int64_t groups) {
  const Ints one{1, 1}, none{0, 0};
  return conv2d_relu_max_pool2d_backward(grad_output, argmax, input, weight, needs_input, needs_weight, stride, padding,
                                         dilation, groups, one, one, none, one);
}

inline std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride,
                                             const Ints& padding, const Ints& dilation, bool ceil_mode) {
  const Pool2dShape s = check_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const bool nhwc = suggests_channels_last(input);
  const Tensor output = empty({s.N, s.C, s.P, s.Q}, input, nhwc);
  const Tensor indices = empty({s.N, s.C, s.P, s.Q}, input, nhwc, ScalarType::Long);
  write_max_pool2d(s, ordered(input, nhwc), output, indices, nhwc);
  return {output, indices};
}

inline Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                                  const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                  const Ints& dilation, bool channels_last) {
  const Pool2dShape s =
      check_max_pool2d_backward(grad_output, indices, input_size, kernel_size, stride, padding, dilation);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  write_max_pool2d_backward(s, ordered(grad_output, channels_last), ordered(indices, channels_last), grad_input,
                            channels_last);
  return grad_input;
}

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

// The gradient has the memory order of the output, because the backward of the preceding layer expects that order.
inline Tensor relu_backward(const Tensor& grad_output, const Tensor& output) {
  check_relu_backward(grad_output, output);
  const Tensor grad_input = empty_as(output);
  write_relu_backward(grad_output, ordered_as(output, grad_input), grad_input);
  return grad_input;
}

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
