// The schemas of the operators, and the functions that implement them on each device. Start reading here. Gradients and
// fake kernels are in fastconv/_ops, which has one file for each operator.
//
// Activations are (N, C, H, W), weights (K, C / groups, R, S). Gradients have the memory formats of input and weight.
// An operator that does not get the input or the weight has `channels_last`, the memory format of its result.
#include "cpu/ops.h"

#include <torch/csrc/stable/library.h>
#if defined(FASTCONV_CUDA)
#include "cuda/ops.h"
#endif

STABLE_TORCH_LIBRARY(fastconv, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
      "SymInt groups) -> Tensor");
  // A gradient that is not needed has no elements. `needs_weight` also decides on grad_bias. The two operators below
  // compute the same gradients separately. They are used if a gradient is differentiated again.
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, bool needs_input, bool needs_weight, "
      "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "conv2d_backward_data(Tensor grad_output, Tensor weight, SymInt[4] input_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last) -> Tensor");
  m.def(
      "conv2d_backward_weight(Tensor grad_output, Tensor input, SymInt[2] kernel_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last) "
      "-> (Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "max_pool2d(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
      "bool ceil_mode) -> (Tensor values, Tensor indices)");
  m.def(
      "max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[4] input_size, SymInt[2] kernel_size, "
      "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool channels_last) -> Tensor");

  m.def("relu(Tensor input) -> Tensor");
  m.def("relu_(Tensor(a!) input) -> ()");
  m.def("relu_backward(Tensor grad_output, Tensor output) -> Tensor");

  // Linear layers of the CPU. grad_input needs the weight, and the other gradients need the input. A gradient whose
  // operand is None has no elements.
  m.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "linear_backward(Tensor grad_output, Tensor? input, Tensor? weight) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // Batch normalisation of the CPU. `spread` is 1 / sqrt(variance + eps) with `training`, else the variance. The result
  // is activation(batch_norm(input) + residual), and `activation` is a number (kernels/operands.h). A gradient that is
  // not needed has no elements.
  m.def(
      "batch_norm_statistics(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float "
      "eps) "
      "-> (Tensor mean, Tensor inverse_deviation)");
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor spread, Tensor? residual, "
      "bool training, float eps, int activation) -> Tensor");
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor spread, "
      "Tensor? output, bool training, float eps, int activation, bool needs_input, bool needs_residual) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");

  // activation(batch_norm(conv2d(input)) + residual) with the running statistics, for inference on the CPU. Without
  // running_mean and running_var, there is no batch norm. The operator has no gradient.
  m.def(
      "conv2d_inference(Tensor input, Tensor weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "Tensor? norm_weight, Tensor? norm_bias, Tensor? residual, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, float eps, int activation, float slope) -> Tensor");

  // Several convolutions and batch norms in inference, one after the other. cpu/ops.h describes the numbers.
  m.def(
      "conv2d_chain(Tensor[] inputs, Tensor[] weights, Tensor[] biases, int[] steps, float[] slopes, int[] results) "
      "-> Tensor[]");

  // Fused operators. Backward needs no results of forward except `argmax` (uint8): for each output, the position of the
  // largest pixel in its window, or 255 if ReLU lets no gradient pass. conv2d_relu has windows of one pixel.
  m.def(
      "conv2d_relu(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride=1, SymInt[2] padding=0, "
      "SymInt[2] dilation=1, SymInt groups=1) -> (Tensor output, Tensor argmax)");
  m.def(
      "conv2d_relu_max_pool2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride=1, SymInt[2] padding=0, "
      "SymInt[2] dilation=1, SymInt groups=1, SymInt[2] pool_kernel_size=2, SymInt[2] pool_stride=2, "
      "SymInt[2] pool_padding=0, SymInt[2] pool_dilation=1, bool pool_ceil_mode=False) "
      "-> (Tensor output, Tensor argmax)");
  m.def(
      "conv2d_relu_backward(Tensor grad_output, Tensor argmax, Tensor input, Tensor weight, bool needs_input, "
      "bool needs_weight, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "conv2d_relu_max_pool2d_backward(Tensor grad_output, Tensor argmax, Tensor input, Tensor weight, "
      "bool needs_input, bool needs_weight, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
      "SymInt groups=1, SymInt[2] pool_kernel_size=2, SymInt[2] pool_stride=2, SymInt[2] pool_padding=0, "
      "SymInt[2] pool_dilation=1) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::cpu;
  FC_REGISTER_OPERATORS(m)
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics));
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  m.impl("conv2d_inference", TORCH_BOX(&conv2d_inference));
  m.impl("conv2d_chain", TORCH_BOX(&conv2d_chain));
}

#if defined(FASTCONV_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  using namespace fastconv::cuda;
  FC_REGISTER_OPERATORS(m)
}
#endif
