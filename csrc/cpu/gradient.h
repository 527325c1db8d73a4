// The gradient of a call in the forms that the drivers of backward need.
#pragma once

#include <cmath>
#include <optional>

#include "drivers/drivers.h"

namespace fastconv::cpu {

// The i-th position of a sample of a tensor, below `count`. The positions are not periodic, so a regular pattern in the
// tensor does not bias the sample.
inline int64_t sample_position(int64_t i, int64_t count) {
  constexpr double golden = 0.6180339887498949;
  return static_cast<int64_t>(std::fmod(static_cast<double>(i) * golden, 1.0) * static_cast<double>(count));
}

// Returns whether a dense tensor of T has neither infinities nor NaN.
template <class T>
bool all_finite(const Tensor& tensor);

// Each form of the gradient is made when a driver first needs it, then kept.
template <class T>
class Gradient {
 public:
  // Without an argmax, grad_output is the gradient of the convolution itself.
  Gradient(const FusedShape& f, const Tensor& grad_output, const std::optional<Tensor>& argmax);

  const FusedShape& shape() const { return f_; }

  // `other`: the other factor (weight or input), dense. It must outlive the facts.
  GradientFacts facts(const Tensor& other);

  // The gradient of the convolution, (N, K, P, Q).
  const Tensor& convolution();

  // Returns the pool's gradient and argmax. Without a pool, or if `unpooled`, returns the convolution's gradient and
  // its marks.
  SparseGradient<T> sparse(bool unpooled);

 private:
  double nonzero(double limit);
  double sampled_nonzero() const;
  int64_t mark();
  uint8_t* marks() const;
  Tensor unpool() const;

  FusedShape f_;
  std::optional<Tensor> pooled_, argmax_;  // of a fused operator, NHWC
  std::optional<Tensor> convolution_;
  std::optional<double> nonzero_;
  bool marked_ = false;
};

}  // namespace fastconv::cpu
