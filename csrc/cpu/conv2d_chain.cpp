#include <algorithm>

#include "memory/workspace.h"
#include "normalize.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

constexpr size_t step_numbers = 11;
constexpr const char* other_format = "expected a residual in the memory format of the result";

// The values of a call. A value is freed after its last use. A later result then gets memory that is still in the
// cache.
class Values {
 public:
  Values(const std::vector<Tensor>& inputs, const Ints& steps, const Ints& results)
      : values_(inputs.begin(), inputs.end()), last_use_(inputs.size() + steps.size() / step_numbers, 0) {
    const auto count = static_cast<int64_t>(last_use_.size());
    const auto use = [&](int64_t number, int64_t step) {
      if (number >= 0 && number < count) last_use_[static_cast<size_t>(number)] = step;
    };
    for (size_t i = 0; i < steps.size(); ++i) {
      if (i % step_numbers < 2) use(steps[i], static_cast<int64_t>(i / step_numbers));
    }
    for (const int64_t number : results) use(number, count);
  }

  template <class... Parts>
  const Tensor& at(int64_t number, const Parts&... reads) const {
    check(number >= 0 && number < static_cast<int64_t>(values_.size()), reads..., " value ", number, ", but there are ",
          values_.size());
    return *values_[static_cast<size_t>(number)];
  }

  void add(Tensor value) { values_.emplace_back(std::move(value)); }

  // Frees a value that no step after this one uses.
  void release(int64_t number, int64_t step) {
    if (number >= 0 && last_use_[static_cast<size_t>(number)] <= step) values_[static_cast<size_t>(number)].reset();
  }

 private:
  std::vector<std::optional<Tensor>> values_;
  std::vector<int64_t> last_use_;
};

// activation(x * weight + bias + residual) with one weight and bias for each channel.
Tensor scaled(const Tensor& input, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual,
              int64_t activation, double slope) {
  check(input.dim() == 4, "expected an input with 4 dimensions");
  const int64_t C = input.size(1);
  check_channel_vector(weight, C, "weight");
  check_channel_vector(bias, C, "bias");
  for (const Tensor& vector : {weight, bias}) check_like(vector, sizes_of(vector), input, "a vector");
  check_like(residual, sizes_of(input), input, "residual");
  check(!residual || input.numel() == 0 || same_strides(*residual, input), other_format);
  const Tensor x = channel_ordered(input);
  const Tensor result = empty_as(x);
  const NormalizationConstants constants = scale_and_shift(weight, bias, C, input.scalar_type());
  const Epilogue epilogue{&constants, residual, activation_of(activation), slope};
  if (input.numel() > 0) normalize(x, epilogue, result);
  return result;
}

}  // namespace

std::vector<Tensor> conv2d_chain(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                 const std::vector<Tensor>& biases, const Ints& steps,
                                 const std::vector<double>& slopes, const Ints& results) {
  const WorkspaceScope scope;
  const size_t count = weights.size();
  check(biases.size() == count && slopes.size() == count && steps.size() == count * step_numbers, "expected ", count,
        " biases and slopes, and ", step_numbers, " numbers for each step");
  Values values(inputs, steps, results);
  for (size_t i = 0; i < count; ++i) {
    const int64_t* n = steps.data() + i * step_numbers;
    std::optional<Tensor> residual;
    if (n[1] >= 0) residual = values.at(n[1], "step ", i, " reads");
    const Tensor& input = values.at(n[0], "step ", i, " reads");
    if (residual && residual->dim() == 4 && residual->numel() > 0 && input.dim() == 4 && weights[i].dim() == 4) {
      // Otherwise the strides of the sum depend on the order of its operands.
      const bool nhwc = result_is_channels_last(input, weights[i]);
      check(nhwc ? is_nhwc(*residual) : is_nchw(*residual), other_format);
    }
    if (weights[i].dim() == 1) {
      values.add(scaled(input, weights[i], biases[i], residual, n[9], slopes[i]));
    } else {
      values.add(conv2d_folded(input, weights[i], biases[i], residual, {n[2], n[3]}, {n[4], n[5]}, {n[6], n[7]}, n[8],
                               n[9], slopes[i], n[10] != 0));
    }
    values.release(n[0], static_cast<int64_t>(i));
    values.release(n[1], static_cast<int64_t>(i));
  }
  std::vector<Tensor> returned;
  for (const int64_t number : results) {
    check(number >= static_cast<int64_t>(inputs.size()), "the chain returns value ", number, ", which is an input");
    returned.push_back(values.at(number, "the chain returns"));
  }
  return returned;
}

}  // namespace fastconv::cpu
