#include "conv2d_chain.h"

#include <algorithm>

#include "conv2d_inference.h"

namespace fastconv::cpu {
namespace {

constexpr size_t step_numbers = 10;

// The values of a call. A value is freed after its last use, so that its memory serves the next result.
class Values {
 public:
  Values(const std::vector<Tensor>& inputs, size_t steps) : values_(inputs.begin(), inputs.end()) {
    values_.reserve(inputs.size() + steps);
  }

  const Tensor& at(int64_t number, size_t step) const {
    check(number >= 0 && static_cast<size_t>(number) < values_.size(), "step ", step, " reads value ", number,
          ", but there are ", values_.size());
    check(values_[static_cast<size_t>(number)].has_value(), "step ", step, " reads value ", number, " after its last use");
    return *values_[static_cast<size_t>(number)];
  }

  void add(Tensor value) { values_.emplace_back(std::move(value)); }
  void free(int64_t number) { values_[static_cast<size_t>(number)].reset(); }

 private:
  std::vector<std::optional<Tensor>> values_;
};

}  // namespace

std::vector<Tensor> conv2d_chain(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                 const std::vector<Tensor>& biases, const Ints& steps,
                                 const std::vector<double>& slopes, const Ints& results) {
  const size_t count = weights.size();
  check(biases.size() == count && slopes.size() == count && steps.size() == count * step_numbers, "expected ", count,
        " biases and slopes, and ", step_numbers, " numbers for each step");
  Values values(inputs, count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t* n = steps.data() + i * step_numbers;
    std::optional<Tensor> residual;
    if (n[1] >= 0) residual = values.at(n[1], i);
    values.add(conv2d_inference(values.at(n[0], i), weights[i], biases[i], {}, {}, {}, {}, residual, {n[2], n[3]},
                                {n[4], n[5]}, {n[6], n[7]}, n[8], 0.0, n[9], slopes[i]));
  }
  std::vector<Tensor> returned;
  for (const int64_t number : results) returned.push_back(values.at(number, count));
  return returned;
}

}  // namespace fastconv::cpu
