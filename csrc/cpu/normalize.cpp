#include "normalize.h"

#include <cmath>

namespace fastconv::cpu {
namespace {

template <class T>
ChannelConstants<T, 3> constants_in(const BatchNormVectors& b, const std::optional<Tensor>& conv_bias, int64_t C) {
  const auto mean = channel_values<double>(b.mean, C, 0), bias = channel_values<double>(conv_bias, C, 0);
  const auto weight = channel_values<double>(b.weight, C, 1), beta = channel_values<double>(b.bias, C, 0);
  const auto inverse = inverse_deviation(b, C);
  std::vector<T> center, scale, shift;
  for (auto* constants : {&center, &scale, &shift}) constants->reserve(mean.size());
  for (size_t c = 0; c < mean.size(); ++c) {
    const double factor = weight[c] * inverse[c];
    center.push_back(static_cast<T>(mean[c] - bias[c])), scale.push_back(static_cast<T>(factor));
    const double rounding = rounding_error(mean[c] - bias[c], center[c]);
    shift.push_back(static_cast<T>(rounding == 0 ? beta[c] : beta[c] - rounding * factor));
  }
  return {std::move(center), std::move(scale), std::move(shift)};
}

// constants(T{}) returns the constants in T, the type that computes tensors of `type`.
template <class Constants>
NormalizationConstants in_type_of(ScalarType type, const Constants& constants) {
  if (type == ScalarType::Double) return {{}, constants(double{})};
  return {constants(float{}), {}};
}

void check_type_is_floating(const Tensor& tensor) {
  if (!is_reduced(tensor)) dispatch_floating(tensor, "batch_norm", [](auto) {});
}

template <class Elements>
void normalize_elements(const Elements& elements, const Tensor& x, const Epilogue& epilogue, const Tensor& y) {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;
  const Tensor residual = epilogue.residual ? ordered_as(*epilogue.residual, x) : x;
  const Stored* from = data<Stored>(x);
  const Stored* add = epilogue.residual ? data<Stored>(residual) : nullptr;
  Stored* to = mutable_data<Stored>(y);
  const auto slope = static_cast<T>(epilogue.slope);
  const auto kernel = kernels().conv2d<T>().batch_norm.normalize;
  const auto run = [&](int64_t at, const MatrixSize& size, const auto& columns) {
    const int64_t count = size.pixels * size.channels;
    const T* values = elements.load(from + at, count, Workspace::input_tile);
    const T* added = add ? elements.load(add + at, count, Workspace::intermediate) : nullptr;
    T* result = elements.result(to + at, count, Workspace::output_tile);
    kernel({columns[0], columns[1], columns[2], epilogue.activation, slope}, {values, size.channels},
           {added, size.channels}, {result, size.channels}, size);
    elements.store(result, to + at, count);
  };
  for_each_block<T, 3>(ChannelLayout(x), epilogue.constants->of<T>(), run);
}

}  // namespace

void check_normalizable(const Tensor& input) {
  check(input.dim() >= 2 && input.numel() > 0, "expected an input with at least 2 dimensions and no size of 0");
  check_type_is_floating(input);
}

void check_channel_vector(const std::optional<Tensor>& vector, int64_t C, const char* name) {
  if (!vector) return;
  check(vector->dim() == 1 && vector->size(0) == C, name, " should contain ", C, " elements not ", vector->numel());
  check_type_is_floating(*vector);
}

void check_like(const std::optional<Tensor>& tensor, const Ints& sizes, const Tensor& like, const char* name) {
  if (!tensor) return;
  check(tensor->defined(), "expected a tensor for ", name, ", but got None");
  check(sizes_of(*tensor) == sizes && tensor->scalar_type() == like.scalar_type(), "expected ", name, " of size ",
        Sizes(sizes), " and type ", torch::headeronly::toString(like.scalar_type()), ", but got size ", Sizes(*tensor),
        " and type ", torch::headeronly::toString(tensor->scalar_type()));
}

Activation activation_of(int64_t number) {
  check(number >= 0 && number <= static_cast<int64_t>(Activation::silu), "unknown activation ", number);
  return static_cast<Activation>(number);
}

std::vector<double> inverse_deviation(const BatchNormVectors& b, int64_t C) {
  auto values = channel_values<double>(b.spread, C, 1);
  if (!b.inverse) {
    for (double& value : values) value = 1 / std::sqrt(value + b.eps);
  }
  return values;
}

NormalizationConstants constants_of(const BatchNormVectors& b, const std::optional<Tensor>& conv_bias, int64_t C,
                                    ScalarType type) {
  return in_type_of(type, [&](auto zero) { return constants_in<decltype(zero)>(b, conv_bias, C); });
}

NormalizationConstants scale_and_shift(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                       int64_t C, ScalarType type) {
  return in_type_of(type, [&](auto zero) {
    using T = decltype(zero);
    return ChannelConstants<T, 3>{std::vector<T>(static_cast<size_t>(C)), channel_values<T>(scale, C, 1),
                                  channel_values<T>(shift, C, 0)};
  });
}

void normalize(const Tensor& x, const Epilogue& epilogue, const Tensor& y) {
  dispatch_elements(x, "batch_norm", [&](const auto& elements) { normalize_elements(elements, x, epilogue, y); });
}

}  // namespace fastconv::cpu
