#include <atomic>
#include <cmath>
#include <cstring>

#include "convolution.h"
#include "drivers/drivers.h"
#include "memory/bands.h"
#include "memory/nhwc.h"
#include "memory/reduced.h"

namespace fastconv::cpu {
namespace {

// `tensor` is dense.
template <class T>
bool all_finite(const Tensor& tensor) {
  const T* values = data<T>(tensor);
  std::atomic<bool> finite{true};
  parallel_for(0, tensor.numel(), grain_size, [&](int64_t begin, int64_t end) {
    if (!kernels().conv2d<T>().sparse_gradient.all_finite(values + begin, end - begin)) finite = false;
  });
  return finite;
}

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

// The gradient of a call in the forms that the drivers need. Each form is made when a driver first needs it, then kept.
template <class T>
class Gradient {
 public:
  Gradient(const FusedShape& f, const Tensor& grad_output, const std::optional<Tensor>& argmax) : f_(f) {
    if (argmax) {
      pooled_ = to_nhwc<T>(grad_output), argmax_ = ordered(*argmax, true);
    } else {
      convolution_ = dense(grad_output);
    }
  }

  const FusedShape& shape() const { return f_; }

  // `other`: the other factor (weight or input), dense.
  GradientFacts facts(const Tensor& other) {
    return {argmax_.has_value(), [this](double limit) { return nonzero(limit); },
            [&other] { return all_finite<T>(other); }};
  }

  // The gradient of the convolution, (N, K, P, Q).
  const Tensor& convolution() {
    if (!convolution_) convolution_ = unpool();
    return *convolution_;
  }

  // Returns the pool's gradient and argmax. Without a pool, or if `unpooled`, returns the convolution's gradient and
  // its marks.
  SparseGradient<T> sparse(bool unpooled) {
    if (argmax_ && !unpooled) return {f_, data<T>(*pooled_), data<uint8_t>(*argmax_)};
    if (!is_nhwc(convolution())) {
      convolution_ = to_nhwc<T>(*convolution_);
      marked_ = false;  // the marks are in NCHW order
    }
    if (!marked_) mark();
    return {without_pool(f_.conv), data<T>(*convolution_), marks()};
  }

 private:
  double nonzero(double limit) {
    const auto results = static_cast<double>(f_.conv.N * f_.conv.K * f_.conv.P * f_.conv.Q);
    // A window passes its gradient to at most one result of the convolution. For most pools, this bound is already
    // below `limit`.
    const double most = static_cast<double>(f_.windows() * f_.conv.K) / results;
    if (argmax_ && most < limit) return most;
    if (!nonzero_ && !argmax_ && convolution_->numel() >= 32 * sample) {
      constexpr double margin = 0.05;
      if (const double share = sampled_nonzero(); share >= limit + margin) return share;
    }
    if (!nonzero_) {
      const int64_t count = argmax_ ? count_nonzero<T>(*argmax_) : mark();
      nonzero_ = static_cast<double>(count) / results;
    }
    return *nonzero_;
  }

  // The share of non-zero values in a sample of short runs, at positions that no pattern of the tensor repeats. Marking
  // all zeros took a quarter of the time of backward_data of ResNet-50's 64->256 1x1, 56x56, with a dense gradient.
  double sampled_nonzero() const {
    const T* values = data<T>(*convolution_);
    const double last = static_cast<double>(convolution_->numel() - run);
    constexpr double golden = 0.6180339887498949;
    int64_t nonzero = 0;
    for (int64_t j = 0; j < sample / run; ++j) {
      const T* from = values + static_cast<int64_t>(std::fmod(static_cast<double>(j) * golden, 1.0) * last);
      for (int64_t i = 0; i < run; ++i) nonzero += from[i] != 0;
    }
    return static_cast<double>(nonzero) / static_cast<double>(sample);
  }

  // Marks the zeros of `convolution_`. Returns the number of non-zero values.
  int64_t mark() {
    marked_ = true;
    return mark_zeros<T>(*convolution_, marks());
  }

  uint8_t* marks() const { return workspace<uint8_t>(Workspace::nonzero_marks, convolution_->numel()); }

  Tensor unpool() const {
    const Pool2dShape& pool = f_.pool;
    const Tensor result = empty({pool.N, pool.C, pool.H, pool.W}, *pooled_, true);
    const T* g = data<T>(*pooled_);
    const uint8_t* at = data<uint8_t>(*argmax_);
    T* to = mutable_data<T>(result);
    const int64_t from_image = pool.C * pool.P * pool.Q, to_image = pool.C * pool.H * pool.W;
    parallel_for(0, pool.N, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        std::memset(to + n * to_image, 0, static_cast<size_t>(to_image) * sizeof(T));
        kernels().conv2d<T>().fused.unpool(pool, g + n * from_image, at + n * from_image, to + n * to_image);
      }
    });
    return result;
  }

  static constexpr int64_t sample = 4096, run = 64;

  FusedShape f_;
  std::optional<Tensor> pooled_, argmax_;  // of a fused operator, NHWC
  std::optional<Tensor> convolution_;
  std::optional<double> nonzero_;
  bool marked_ = false;
};

template <class T>
void backward_data(Gradient<T>& g, const Tensor& weight, const Tensor& grad_input) {
  const Tensor w = dense(weight);
  const BackwardPlan plan = plan_backward_data<T>(g.shape(), g.facts(w));
  if (plan.algorithm == Algorithm::sparse_gradient) {
    return sparse_backward_data<T>(g.sparse(plan.unpool), plan.weight_as_patches, w, grad_input);
  }
  if (plan.algorithm == Algorithm::thin_groups) {
    return thin_groups_backward_data<T>(g.shape().conv, g.convolution(), w, grad_input);
  }
  if (plan.algorithm == Algorithm::torch) {
    return torch_backward_data(g.shape().conv, g.convolution(), w, grad_input);
  }
  Conv2dShape s = g.shape().conv;
  s.P -= plan.unused_rows, s.pad_h -= plan.unused_rows * s.stride_h;
  Tensor rows = g.convolution();
  if (plan.unused_rows > 0) rows = dense(torch::stable::narrow(rows, 2, plan.unused_rows, s.P));
  if (plan.algorithm == Algorithm::winograd) return winograd_backward_data<T>(s, plan.cut, rows, w, grad_input);
  direct_backward_data<T>(s, rows, w, grad_input);
}

template <class T>
void backward_weight(Gradient<T>& g, const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
  const Tensor x = dense(input);
  const BackwardPlan plan = plan_backward_weight<T>(g.shape(), g.facts(x));
  switch (plan.algorithm) {
    case Algorithm::few_channels:
      return few_channels_backward_weight<T>(g.sparse(false), x, grad_weight, grad_bias);
    case Algorithm::sparse_gradient:
      return sparse_backward_weight<T>(g.sparse(plan.unpool), x, grad_weight, grad_bias);
    case Algorithm::thin_groups:
      return thin_groups_backward_weight<T>(g.shape().conv, g.convolution(), x, grad_weight, grad_bias);
    case Algorithm::winograd:
      return winograd_backward_weight<T>(g.shape().conv, plan.cut, g.convolution(), x, grad_weight, grad_bias);
    case Algorithm::torch:
      return torch_backward_weight(g.shape().conv, g.convolution(), x, grad_weight, grad_bias);
    default:
      return direct_backward_weight<T>(g.shape().conv, g.convolution(), x, grad_weight, grad_bias);
  }
}

// Computes in T, band by band. `view` converts tensors that are stored in another type (memory/reduced.h).
template <class T, class View>
void backward(const Backward& call, const BandLimits& limits, const View& view) {
  const auto gradient_of = [&](const Band& band) {
    const Tensor g = part_of(call.grad_output, band.images, band.windows);
    std::optional<Tensor> argmax;
    if (call.argmax) argmax = part_of(*call.argmax, band.images, band.windows);
    return Gradient<T>(band.shape, view.read(g, Workspace::wide_gradient), argmax);
  };
  const auto by_rows = [&](const Tensor& other) {
    return view.always_by_rows || (is_nhwc(call.grad_output) && is_nhwc(other));
  };
  const Tensor w = call.grad_input ? view.read(*call.weight, Workspace::wide_weight) : call.grad_output;
  const auto data_of = [&](Gradient<T>& g, const Tensor& grad_input) {
    view.write(grad_input, Workspace::wide_result, [&](const Tensor& dx) { backward_data(g, w, dx); });
  };
  const auto sums = [&](const auto& add_bands) {
    view.write(*call.grad_weight, Workspace::wide_result, [&](const Tensor& dw) {
      view.write(*call.grad_bias, Workspace::wide_bias, [&](const Tensor& db) { add_bands(dw, db); });
    });
  };
  const Conv2dShape& s = call.shape.conv;
  if (call.grad_input && call.grad_weight && s.N * s.P * s.Q * elements_per_output(s) <= limits.call) {
    Gradient<T> g(call.shape, view.read(call.grad_output, Workspace::wide_gradient), call.argmax);
    data_of(g, *call.grad_input);
    return sums([&](const Tensor& dw, const Tensor& db) {
      backward_weight(g, view.read(*call.input, Workspace::wide_input), dw, db);
    });
  }
  if (call.grad_input) {
    for_each_data_band(call.shape, by_rows(*call.grad_input), limits, [&](const Band& band) {
      Gradient<T> g = gradient_of(band);
      data_of(g, part_of(*call.grad_input, band.images, band.input));
    });
  }
  if (call.grad_weight) {
    sums([&](const Tensor& dw, const Tensor& db) {
      const auto run = [&](bool rows) {
        BandSum sum(dw, db);
        for_each_band(call.shape, rows, limits, [&](const Band& band) {
          Gradient<T> g = gradient_of(band);
          const Tensor x = view.read(part_of(*call.input, band.images, band.input), Workspace::wide_input);
          sum.add([&](const Tensor& band_dw, const Tensor& band_db) { backward_weight(g, x, band_dw, band_db); });
        });
      };
      const bool rows = by_rows(*call.input);
      run(rows);
      // If windows overlap, two bands may share a row of the convolution. A gradient there may be zero in one band
      // only, and zero times an infinite input is NaN. So the sums are computed again with bands of whole images.
      if (rows && call.shape.windows_overlap_in_rows() && !all_finite<T>(dw)) run(false);
    });
  }
}

}  // namespace

void run_backward(const Backward& call) {
  if (is_reduced(call.grad_output)) return backward<float>(call, band_limits(true), ReducedView{});
  const char* name = call.argmax       ? "conv2d_relu_max_pool2d_backward"
                     : call.grad_input ? "conv2d_backward_data"
                                       : "conv2d_backward_weight";
  dispatch_floating(call.grad_output, name,
                    [&](auto type) { backward<decltype(type)>(call, band_limits(false), PlainView{}); });
}

Gradients run_backward(Backward call, bool needs_input, bool needs_weight) {
  const Gradients gradients = empty_gradients(*call.input, *call.weight, needs_input, needs_weight);
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  const bool no_images = call.shape.conv.N == 0;
  if (no_images && needs_weight) zero(grad_weight), zero(grad_bias);
  if (needs_input && grad_input.numel() > 0) call.grad_input = grad_input;
  if (needs_weight && !no_images) call.grad_weight = grad_weight, call.grad_bias = grad_bias;
  if (call.grad_input || call.grad_weight) run_backward(call);
  return gradients;
}

}  // namespace fastconv::cpu
