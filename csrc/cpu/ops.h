// The operators' functions on the CPU. Schemas: ../ops.cpp.
#pragma once

#include "../checks.h"

namespace fastconv::cpu {

#include "../operators.h"

// ---- only the CPU has these --------------------------------------------------------------------------------------

// A convolution and the operations after it in inference: activation(batch_norm(conv2d(x)) + residual). Without a batch
// norm, `running_mean` and `running_var` are both absent.
Tensor conv2d_inference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
                        const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                        const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                        const Ints& dilation, int64_t groups, double eps, int64_t activation, double slope);

// activation(conv2d(x) + residual). A batch norm may be folded into weight and bias. PyTorch's batch norms, and its
// additions and activations out of place, return a contiguous tensor if their input fits both memory formats.
// `prefers_contiguous` says that such an operation follows.
Tensor conv2d_folded(const Tensor& input, const Tensor& weight, const Tensor& bias,
                     const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups, int64_t activation, double slope, bool prefers_contiguous);

// Several convolutions and batch norms of a network in inference, one after the other.
//
// Values are numbered: first the inputs, then the result of each step. A step is 11 numbers: the value that the
// convolution reads, the value that is added to its result (-1: none), stride, padding, dilation (two each), groups,
// the activation, and `prefers_contiguous` of conv2d_folded. A step whose weight has one dimension computes x * weight
// + bias in place of a convolution: a batch norm that follows no convolution. `results` are the numbers of the values
// that are returned.
std::vector<Tensor> conv2d_chain(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                 const std::vector<Tensor>& biases, const Ints& steps,
                                 const std::vector<double>& slopes, const Ints& results);

// Linear layers: input (..., C), weight (K, C), bias (K). The result is (..., K).
Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias);

// The gradients of input, weight and bias. The first needs the weight, and the other two need the input. Those whose
// operand is absent have no elements.
Gradients linear_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                          const std::optional<Tensor>& weight);

// Whether these functions are faster than PyTorch's linear layer, forward and backward. FASTCONV_ALGORITHM=own: always.
bool linear_is_faster(int64_t rows, int64_t C, int64_t K);

// Batch normalisation, with an optional residual and activation. Mathematics: kernels/batch_norm.h.
using Statistics = std::tuple<Tensor, Tensor>;  // in double: the mean of each channel, and 1 / sqrt(variance + eps)
using BatchNormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of input, weight, bias and residual

// Updates the running statistics, if there are any, as PyTorch does.
Statistics batch_norm_statistics(const Tensor& input, const std::optional<Tensor>& running_mean,
                                 const std::optional<Tensor>& running_var, double momentum, double eps);

// `spread`: with `training`, 1 / sqrt(variance + eps), else the variance.
Tensor batch_norm(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                  const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& residual, bool training,
                  double eps, int64_t activation);

// `output`: the result of batch_norm. It is needed if there was a residual and an activation.
BatchNormGradients batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                       const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                       const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& output,
                                       bool training, double eps, int64_t activation, bool needs_input,
                                       bool needs_residual);

// Batch norm, ReLU and max-pooling in one operator, and its gradients of input, weight and bias. Returns the result and
// the argmax (shapes.h), which has the memory format of the result.
std::tuple<Tensor, Tensor> batch_norm_relu_max_pool2d(const Tensor& input, const std::optional<Tensor>& weight,
                                                      const std::optional<Tensor>& bias, const Tensor& mean,
                                                      const Tensor& spread, bool training, double eps,
                                                      const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                                      const Ints& dilation, bool ceil_mode);
Gradients batch_norm_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                              const std::optional<Tensor>& weight, const Tensor& mean,
                                              const Tensor& spread, bool training, double eps, bool needs_input,
                                              const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                              const Ints& dilation);

}  // namespace fastconv::cpu
