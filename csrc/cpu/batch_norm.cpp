#include "memory/channel_sums.h"
#include "normalize.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

template <class Elements>
const BatchNormKernels<typename Elements::Computed>& kernel() {
  return kernels().conv2d<typename Elements::Computed>().batch_norm;
}

// The batch norm y = activation(batch_norm(x)) whose gradients backward computes.
struct BatchNorm {
  BatchNormVectors vectors;
  Activation activation;

  template <class T>
  ChannelConstants<T, 3> constants(const Tensor& x) const {
    return constants_of(vectors, std::nullopt, x.size(1), x.scalar_type()).template of<T>();
  }

  template <class T, size_t count>
  Normalization<T> normalization(const ColumnConstants<T, count>& columns) const {
    return {columns[0], columns[1], columns[2], activation};
  }
};

// The differences between the means and `center`, which the kernels subtract.
template <class T>
std::vector<double> rounding_of_center(const BatchNorm& b, const std::vector<T>& center) {
  auto mean = channel_values<double>(b.vectors.mean, static_cast<int64_t>(center.size()), 0);
  std::transform(mean.begin(), mean.end(), center.begin(), mean.begin(), rounding_error<T>);
  return mean;
}

// The constants of each channel that both passes of backward need.
template <class T>
struct BackwardConstants {
  ChannelConstants<T, 3> normalization;
  std::vector<double> rounding, inverse;

  BackwardConstants(const BatchNorm& b, const Tensor& x)
      : normalization(b.constants<T>(x)),
        rounding(rounding_of_center<T>(b, normalization[0])),
        inverse(inverse_deviation(b.vectors, x.size(1))) {}
};

// The factors of the gradient of x, where g is the gradient of y before the activation:
//
//   dx = (g - sum(g) / n - (x - mean) * sum(g * (x - mean)) / n / deviation^2) * weight / deviation
//
// The product of the last two factors is not computed in advance: it is below the smallest number if the deviation is
// 1e20. Without `training`, mean and deviation are constants, and dx = g * weight / deviation.
template <class T>
ChannelConstants<T, 6> gradient_constants(const BatchNorm& b, const BackwardConstants<T>& known, int64_t pixels,
                                          const ChannelSums& sums) {
  const auto& [center, scale, shift] = known.normalization;
  ChannelConstants<T, 6> all{center, scale, shift, scale, {}, {}};
  if (!b.vectors.inverse) return all;
  const std::vector<double>& inverse = known.inverse;
  const auto n = static_cast<double>(pixels);
  all[4].reserve(inverse.size()), all[5].reserve(inverse.size());
  for (size_t c = 0; c < inverse.size(); ++c) {
    const double of_x = sums.second[c] / n * inverse[c] * inverse[c];
    all[4].push_back(static_cast<T>(of_x));
    all[5].push_back(static_cast<T>(sums.first[c] / n - (std::isfinite(of_x) ? known.rounding[c] * of_x : 0)));
  }
  return all;
}

// The operands of backward, all in the memory order of x.
struct GradientTensors {
  Tensor g, x;
  std::optional<Tensor> y;       // if the activation's mask cannot be computed from x
  std::optional<Tensor> masked;  // gets the gradient of the residual
  std::optional<Tensor> dx;
};

template <class Elements>
NormalizedGradient<typename Elements::Computed> load_gradient(const Elements& elements, const GradientTensors& t,
                                                              int64_t at, const MatrixSize& size) {
  using Stored = typename Elements::Stored;
  const int64_t count = size.pixels * size.channels;
  const auto load = [&](const Tensor& from, Workspace use) {
    return elements.load(data<Stored>(from) + at, count, use);
  };
  return {load(t.g, Workspace::output_tile), load(t.x, Workspace::input_tile),
          t.y ? load(*t.y, Workspace::intermediate) : nullptr, nullptr, size.channels};
}

// Computes the sums again for the channels whose sums, or their products, overflow in T. The kernel applies the
// activation's mask, and the rest is computed in double.
template <class Elements, class T>
void sum_large_gradients(const Elements& elements, const BatchNorm& b, const ChannelConstants<T, 3>& constants,
                         const GradientTensors& t, ChannelSums& all) {
  const auto is_large = [&](size_t c) { return !std::isfinite(all.first[c]) || !std::isfinite(all.second[c]); };
  bool any = false;
  for (size_t c = 0; c < all.first.size(); ++c) any = any || is_large(c);
  if (!any) return;
  const ChannelSums again = sum_channels<T, 3>(
      ChannelLayout(t.x), constants,
      [&](int64_t start, const MatrixSize& size, const auto& columns, const ColumnSums& sums) {
        auto from = load_gradient(elements, t, start, size);
        const Normalization<T> n = b.normalization(columns);
        std::vector<double> in_T(static_cast<size_t>(2 * size.channels));
        from.masked = workspace<T>(Workspace::weight_block, size.pixels * size.channels);
        kernel<Elements>().add_gradient_sums(n, from, size, {in_T.data(), in_T.data() + size.channels});
        for (int64_t p = 0; p < size.pixels; ++p) {
          for (int64_t c = 0; c < size.channels; ++c) {
            const int64_t at = p * from.stride + c;
            const auto g = static_cast<double>(from.masked[at]), x = static_cast<double>(from.x[at]);
            sums.first[c] += g, sums.second[c] += g * (x - static_cast<double>(n.center[c]));
          }
        }
      });
  for (size_t c = 0; c < all.first.size(); ++c) {
    if (is_large(c)) all.first[c] = again.first[c], all.second[c] = again.second[c];
  }
}

// The sums of g and of g * (x - mean) for each channel. Writes the gradient of the residual.
template <class Elements, class T>
ChannelSums sum_gradients(const Elements& elements, const BatchNorm& b, const BackwardConstants<T>& known,
                          const GradientTensors& t) {
  using Stored = typename Elements::Stored;
  const ChannelLayout layout(t.x);
  Stored* masked = t.masked ? mutable_data<Stored>(*t.masked) : nullptr;
  ChannelSums all = sum_channels<T, 3>(
      layout, known.normalization,
      [&](int64_t at, const MatrixSize& size, const auto& columns, const ColumnSums& sums) {
        auto from = load_gradient(elements, t, at, size);
        const int64_t count = size.pixels * size.channels;
        if (masked) from.masked = elements.result(masked + at, count, Workspace::weight_block);
        kernel<Elements>().add_gradient_sums(b.normalization(columns), from, size, {sums.first, sums.second});
        if (masked) elements.store(from.masked, masked + at, count);
      });
  sum_large_gradients(elements, b, known.normalization, t, all);
  for (size_t c = 0; c < known.rounding.size(); ++c) {
    if (std::isfinite(all.first[c])) all.second[c] -= known.rounding[c] * all.first[c];
  }
  return all;
}

template <class Elements, class T>
void input_gradient(const Elements& elements, const BatchNorm& b, const BackwardConstants<T>& known,
                    const GradientTensors& t, const ChannelSums& sums) {
  using Stored = typename Elements::Stored;
  const ChannelLayout layout(t.x);
  Stored* to = mutable_data<Stored>(*t.dx);
  const auto constants = gradient_constants<T>(b, known, layout.pixels(), sums);
  for_each_block<T, 6>(layout, constants, [&](int64_t at, const MatrixSize& size, const auto& columns) {
    const int64_t count = size.pixels * size.channels;
    T* result = elements.result(to + at, count, Workspace::weight_block);
    kernel<Elements>().gradient(b.normalization(columns), load_gradient(elements, t, at, size),
                                {columns[3], columns[4], columns[5]}, result, size);
    elements.store(result, to + at, count);
  });
}

// Computes the gradients of weight and bias, and fills the gradients that `t` has.
void compute_gradients(const BatchNorm& b, GradientTensors t, const Tensor& grad_weight, const Tensor& grad_bias) {
  dispatch_elements(t.x, "batch_norm", [&](auto elements) {
    GradientTensors first = t;
    if (b.activation == Activation::none) first.masked.reset();
    const BackwardConstants<typename decltype(elements)::Computed> known(b, t.x);
    const ChannelSums sums = sum_gradients(elements, b, known, first);
    store_channel_values(sums.first, grad_bias);
    std::vector<double> products = sums.second;
    std::transform(products.begin(), products.end(), known.inverse.begin(), products.begin(),
                   std::multiplies<double>());
    store_channel_values(products, grad_weight);
    if (!t.dx) return;
    BatchNorm unmasked = b;
    if (first.masked) {  // one tensor less to read
      t.g = *first.masked, t.y.reset(), unmasked.activation = Activation::none;
    }
    input_gradient(elements, unmasked, known, t, sums);
  });
}

// Checks running statistics, which are updated in place.
void check_running(const std::optional<Tensor>& running, int64_t C, const char* name) {
  check_channel_vector(running, C, name);
  check(!running || running->is_contiguous(), "expected a contiguous ", name);
}

}  // namespace

void check_batch_norm(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                      const Tensor& mean, const Tensor& spread) {
  check_normalizable(input);
  check_channel_vector(mean, input.size(1), "mean");
  check_channel_vector(spread, input.size(1), "spread");
  check_channel_vector(weight, input.size(1), "weight");
  check_channel_vector(bias, input.size(1), "bias");
}

void batch_norm_gradients(const BatchNormVectors& b, const Tensor& g, const Tensor& x, bool replaces_g,
                          const Tensor& grad_weight, const Tensor& grad_bias) {
  GradientTensors t{g, x, {}, {}, {}};
  if (replaces_g) t.dx = g;
  compute_gradients({b, Activation::none}, t, grad_weight, grad_bias);
}

Statistics batch_norm_statistics(const Tensor& input, const std::optional<Tensor>& running_mean,
                                 const std::optional<Tensor>& running_var, double momentum, double eps) {
  check_normalizable(input);
  check_running(running_mean, input.size(1), "running_mean");
  check_running(running_var, input.size(1), "running_var");
  const Tensor x = channel_ordered(input);
  const ChannelLayout layout(x);
  ChannelSums moments;
  dispatch_elements(x, "batch_norm", [&](auto elements) {
    using Stored = typename decltype(elements)::Stored;
    using T = typename decltype(elements)::Computed;
    const Stored* from = data<Stored>(x);
    moments = channel_moments<T>(layout, [&](int64_t at, const MatrixSize& size) {
      return elements.load(from + at, size.pixels * size.channels, Workspace::input_tile);
    });
  });
  const auto n = static_cast<double>(layout.pixels());
  std::vector<double>&mean = moments.first, &squares = moments.second;
  const auto update = [&](const std::optional<Tensor>& running, const std::vector<double>& values, double divisor) {
    if (!running) return;
    auto updated = channel_values<double>(running, layout.C, 0);
    for (size_t c = 0; c < values.size(); ++c) {
      updated[c] = momentum * (values[c] / divisor) + (1 - momentum) * updated[c];
    }
    store_channel_values(updated, *running);
  };
  update(running_mean, mean, 1);
  update(running_var, squares, n - 1);
  std::transform(squares.begin(), squares.end(), squares.begin(), [&](double s) { return 1 / std::sqrt(s / n + eps); });
  const Tensor means = empty({layout.C}, input, false, ScalarType::Double);
  const Tensor inverse = empty({layout.C}, input, false, ScalarType::Double);
  store_channel_values(mean, means), store_channel_values(squares, inverse);
  return {means, inverse};
}

Tensor batch_norm(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                  const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& residual, bool training,
                  double eps, int64_t activation) {
  check_batch_norm(input, weight, bias, mean, spread);
  check_like(residual, sizes_of(input), input, "residual");
  const Tensor x = channel_ordered(input), y = empty_as(x);
  const auto constants = constants_of({weight, bias, mean, spread, training, eps}, {}, x.size(1), x.scalar_type());
  normalize(x, {&constants, residual, activation_of(activation), 0}, y);
  return y;
}

BatchNormGradients batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                       const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                       const Tensor& mean, const Tensor& spread, const std::optional<Tensor>& output,
                                       bool training, double eps, int64_t activation, bool needs_input,
                                       bool needs_residual) {
  check_batch_norm(input, weight, bias, mean, spread);
  check_like(grad_output, sizes_of(input), input, "grad_output");
  check_like(output, sizes_of(input), input, "output");
  const BatchNorm b{{weight, bias, mean, spread, training, eps}, activation_of(activation)};
  check(b.activation <= Activation::relu6, "batch_norm_backward has no gradient of activation ", activation);
  const Tensor x = channel_ordered(input);
  GradientTensors t{ordered_as(grad_output, x), x, {}, {}, {}};
  const bool masks = b.activation != Activation::none;
  if (masks && output) t.y = ordered_as(*output, x);
  if (needs_residual) t.masked = masks ? empty_as(x) : in_words([&] { return torch::stable::clone(t.g); });
  if (needs_input) t.dx = empty_as(x);
  const int64_t C = x.size(1);
  Tensor grad_weight = empty({C}, weight ? *weight : mean, false), grad_bias = empty({C}, bias ? *bias : mean, false);
  compute_gradients(b, t, grad_weight, grad_bias);
  const Tensor none = empty({0}, x, false);
  return {t.dx ? *t.dx : none, grad_weight, grad_bias, t.masked ? *t.masked : none};
}

}  // namespace fastconv::cpu
