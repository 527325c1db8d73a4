// activation((x - center) * scale + shift + residual), with one center, scale and shift for each channel. A batch norm
// with known statistics computes this, alone (batch_norm.cpp) or as the epilogue of a convolution
// (conv2d_inference.cpp).
#pragma once

#include "memory/channels.h"

namespace fastconv::cpu {

// center, scale and shift in float, or in double for tensors of double.
struct NormalizationConstants {
  ChannelConstants<float, 3> of_float;
  ChannelConstants<double, 3> of_double;

  template <class T>
  const ChannelConstants<T, 3>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return of_float;
    } else {
      return of_double;
    }
  }
};

// The operations after a convolution in inference. `residual` has the size and dtype of the result.
struct Epilogue {
  const NormalizationConstants* constants;
  std::optional<Tensor> residual;
  Activation activation;
  double slope;  // of leaky_relu

  // Whether the direct kernels can apply it to their sums in registers.
  bool fits_registers() const { return activation <= Activation::relu6; }
};

// The vectors of a batch norm. `inverse`: `spread` is 1 / sqrt(variance + eps), else it is the variance.
struct BatchNormVectors {
  const std::optional<Tensor>&weight, &bias;
  const Tensor &mean, &spread;
  bool inverse;
  double eps;
};

Activation activation_of(int64_t number);

// The rounding error of a number in T. 0 if the number is not finite. For a mean of 1e4 and a deviation of 1, it is up
// to 1/2000 of the deviation.
template <class T>
double rounding_error(double number, T rounded) {
  const double error = number - static_cast<double>(rounded);
  return std::isfinite(error) ? error : 0;
}

// 1 / sqrt(variance + eps) of each channel.
std::vector<double> inverse_deviation(const BatchNormVectors& b, int64_t C);

// `type` is that of the tensors. `conv_bias` is the bias of the convolution before the batch norm. That convolution
// must not add it.
NormalizationConstants constants_of(const BatchNormVectors& b, const std::optional<Tensor>& conv_bias, int64_t C,
                                    ScalarType type);

// The constants of x * scale + shift. Without both, nothing is normalized.
NormalizationConstants scale_and_shift(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                       int64_t C, ScalarType type);

// Computes the gradients of weight and bias of a batch norm without an activation. With `replaces_g`, the gradient of x
// then overwrites g. Both tensors are contiguous or channels_last, with the same strides.
void batch_norm_gradients(const BatchNormVectors& b, const Tensor& g, const Tensor& x, bool replaces_g,
                          const Tensor& grad_weight, const Tensor& grad_bias);

// x and y are contiguous or channels_last, with the same strides. They may be the same tensor.
void normalize(const Tensor& x, const Epilogue& epilogue, const Tensor& y);

// Checks the input of a batch norm: its dimensions, and its dtype.
void check_normalizable(const Tensor& input);

// Checks the input, the parameters and the statistics of a batch norm.
void check_batch_norm(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                      const Tensor& mean, const Tensor& spread);

// Checks that a vector has one value for each channel.
void check_channel_vector(const std::optional<Tensor>& vector, int64_t C, const char* name);

// Checks that a tensor has these sizes and the dtype of `like`.
void check_like(const std::optional<Tensor>& tensor, const Ints& sizes, const Tensor& like, const char* name);

}  // namespace fastconv::cpu
