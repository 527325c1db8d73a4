#include "gradient.h"

#include <atomic>
#include <cstring>

#include "memory/nhwc.h"

namespace fastconv::cpu {
namespace {

// A sample of a gradient: `sampled` values in runs of `run`.
constexpr int64_t sampled = 4096, run = 64;

// Writes a byte for each value of a dense tensor: 0, or `no_gradient` for a zero. Returns the number of non-zero
// values.
template <class T>
int64_t mark_zeros(const Tensor& tensor, uint8_t* marks) {
  const T* values = data<T>(tensor);
  std::atomic<int64_t> nonzero{0};
  parallel_for(0, tensor.numel(), grain_size, [&](int64_t begin, int64_t end) {
    nonzero += kernels().conv2d<T>().sparse_gradient.mark_zeros(values + begin, marks + begin, end - begin);
  });
  return nonzero;
}

// The number of bytes that are not `no_gradient`.
template <class T>
int64_t count_nonzero(const Tensor& argmax) {
  const uint8_t* bytes = data<uint8_t>(argmax);
  std::atomic<int64_t> nonzero{0};
  parallel_for(0, argmax.numel(), 131072, [&](int64_t begin, int64_t end) {
    nonzero += kernels().conv2d<T>().sparse_gradient.count_nonzero(bytes + begin, end - begin);
  });
  return nonzero;
}

}  // namespace

template <class T>
bool all_finite(const Tensor& tensor) {
  const T* values = data<T>(tensor);
  std::atomic<bool> finite{true};
  parallel_for(0, tensor.numel(), grain_size, [&](int64_t begin, int64_t end) {
    if (!kernels().conv2d<T>().sparse_gradient.all_finite(values + begin, end - begin)) finite = false;
  });
  return finite;
}

template <class T>
Gradient<T>::Gradient(const FusedShape& f, const Tensor& grad_output, const std::optional<Tensor>& argmax) : f_(f) {
  if (argmax) {
    pooled_ = to_nhwc<T>(grad_output), argmax_ = ordered(*argmax, true);
  } else {
    convolution_ = dense(grad_output);
  }
}

template <class T>
GradientFacts Gradient<T>::facts(const Tensor& other) {
  return {argmax_.has_value(), [this](double limit) { return nonzero(limit); },
          [&other] { return all_finite<T>(other); }};
}

template <class T>
const Tensor& Gradient<T>::convolution() {
  if (!convolution_) convolution_ = unpool();
  return *convolution_;
}

template <class T>
SparseGradient<T> Gradient<T>::sparse(bool unpooled) {
  if (argmax_ && !unpooled) return {f_, data<T>(*pooled_), data<uint8_t>(*argmax_)};
  if (!is_nhwc(convolution())) {
    convolution_ = to_nhwc<T>(*convolution_);
    marked_ = false;  // the marks are in NCHW order
  }
  if (!marked_) mark();
  return {without_pool(f_.conv), data<T>(*convolution_), marks()};
}

template <class T>
double Gradient<T>::nonzero(double limit) {
  const auto results = static_cast<double>(f_.conv.N * f_.conv.K * f_.conv.P * f_.conv.Q);
  // A window passes its gradient to at most one result of the convolution. For most pools, this bound is already below
  // `limit`.
  const double most = static_cast<double>(f_.windows() * f_.conv.K) / results;
  if (argmax_ && most < limit) return most;
  if (!nonzero_ && !argmax_ && convolution_->numel() >= 32 * sampled) {
    constexpr double margin = 0.05;
    if (const double share = sampled_nonzero(); share >= limit + margin) return share;
  }
  if (!nonzero_) {
    const int64_t count = argmax_ ? count_nonzero<T>(*argmax_) : mark();
    nonzero_ = static_cast<double>(count) / results;
  }
  return *nonzero_;
}

// The share of non-zero values in a sample of short runs. Marking all zeros took a quarter of the time of backward_data
// of ResNet-50's 64->256 1x1, 56x56, with a dense gradient.
template <class T>
double Gradient<T>::sampled_nonzero() const {
  const T* values = data<T>(*convolution_);
  int64_t nonzero = 0;
  for (int64_t j = 0; j < sampled / run; ++j) {
    const T* from = values + sample_position(j, convolution_->numel() - run);
    for (int64_t i = 0; i < run; ++i) nonzero += from[i] != 0;
  }
  return static_cast<double>(nonzero) / static_cast<double>(sampled);
}

// Marks the zeros of `convolution_`. Returns the number of non-zero values.
template <class T>
int64_t Gradient<T>::mark() {
  marked_ = true;
  return mark_zeros<T>(*convolution_, marks());
}

template <class T>
uint8_t* Gradient<T>::marks() const {
  return workspace<uint8_t>(Workspace::nonzero_marks, convolution_->numel());
}

template <class T>
Tensor Gradient<T>::unpool() const {
  const Pool2dShape& pool = f_.pool;
  const Tensor result = empty({pool.N, pool.C, pool.H, pool.W}, *pooled_, true);
  const T* g = data<T>(*pooled_);
  const uint8_t* at = data<uint8_t>(*argmax_);
  T* to = mutable_data<T>(result);
  const int64_t from_image = pool.C * pool.P * pool.Q, to_image = pool.C * pool.H * pool.W;
  parallel_for_each(pool.N, [&](int64_t n) {
    std::memset(to + n * to_image, 0, static_cast<size_t>(to_image) * sizeof(T));
    kernels().conv2d<T>().fused.unpool(pool, g + n * from_image, at + n * from_image, to + n * to_image);
  });
  return result;
}

template bool all_finite<float>(const Tensor&);
template bool all_finite<double>(const Tensor&);
template class Gradient<float>;
template class Gradient<double>;

}  // namespace fastconv::cpu
