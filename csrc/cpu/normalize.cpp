#include "normalize.h"

#include <cmath>

namespace fastconv::cpu {
namespace {

template <class T>
ChannelConstants<T, 3> constants_in(const BatchNormVectors& b, const std::optional<Tensor>& conv_bias, int64_t C) {
  const std::vector<double> inverse = inverse_deviation(b, C);
  auto center = channel_values<T>(b.mean, C, T(0)), scale = channel_values<T>(b.weight, C, T(1));
  for (size_t c = 0; c < inverse.size(); ++c) scale[c] = static_cast<T>(static_cast<double>(scale[c]) * inverse[c]);
  if (conv_bias) {
    const auto bias = channel_values<T>(conv_bias, C, T(0));
    for (size_t c = 0; c < bias.size(); ++c) center[c] -= bias[c];
  }
  return {std::move(center), std::move(scale), channel_values<T>(b.bias, C, T(0))};
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
  NormalizationConstants constants;
  if (type == ScalarType::Double) {
    constants.of_double = constants_in<double>(b, conv_bias, C);
  } else {
    constants.of_float = constants_in<float>(b, conv_bias, C);
  }
  return constants;
}

NormalizationConstants no_normalization(int64_t C, ScalarType type) {
  const auto count = static_cast<size_t>(C);
  const auto fill = [&](auto& constants) {
    constants[0].resize(count), constants[2].resize(count);
    constants[1].assign(count, 1);
  };
  NormalizationConstants constants;
  type == ScalarType::Double ? fill(constants.of_double) : fill(constants.of_float);
  return constants;
}

void normalize(const Tensor& x, const Epilogue& epilogue, const Tensor& y) {
  dispatch_elements(x, [&](const auto& elements) { normalize_elements(elements, x, epilogue, y); });
}

}  // namespace fastconv::cpu
