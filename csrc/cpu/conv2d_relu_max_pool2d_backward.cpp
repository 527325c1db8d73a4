#include "activation.h"
#include "algorithms.h"
#include "bands.h"
#include "conv2d.h"
#include "conv2d_relu_max_pool2d.h"
#include "live.h"
#include "reduced.h"

namespace fastconv::cpu {
namespace {

Tensor argmax_nhwc(const Tensor& argmax) {
  return is_nhwc(argmax) ? argmax : torch::stable::contiguous(argmax, torch::headeronly::MemoryFormat::ChannelsLast);
}

// The gradient of the convolution's results, for the unfused operators.
template <class T>
Tensor unpool(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax) {
  const Pool2dShape& pool = f.pool;
  const Tensor grad_conv = empty({pool.N, pool.C, pool.H, pool.W}, grad_output, true);
  const T* g = data<T>(grad_output);
  const uint8_t* at = data<uint8_t>(argmax);
  T* to = mutable_data<T>(grad_conv);
  const int64_t from_image = pool.C * pool.P * pool.Q, to_image = pool.C * pool.H * pool.W;
  parallel_for(0, pool.N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::memset(to + n * to_image, 0, static_cast<size_t>(to_image) * sizeof(T));
      kernels().conv2d<T>().fused.unpool(pool, g + n * from_image, at + n * from_image, to + n * to_image);
    }
  });
  return grad_conv;
}

// What both passes need of the gradient, made once.
template <class T>
class Passes {
 public:
  Passes(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax)
      : f_(f), g_(to_nhwc<T>(grad_output)), argmax_(argmax_nhwc(argmax)), live_(f, argmax_) {}

  void data(const Tensor& weight, const Tensor& grad_input) {
    const Tensor w = dense(weight);
    if (live_serves<T>(f_) && live_pays(w, live_data_below(f_.conv, winograd_serves_data(f_.conv)))) {
      live_backward_data<T>(f_, g(), at(), w, grad_input);
    } else {
      backward_data(f_.conv, unpooled(), w, grad_input);
    }
  }

  void weight(const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
    const Tensor x = dense(input);
    if (narrow_serves<T>(f_) && all_finite<T>(x)) {
      narrow_backward_weight<T>(f_, g(), at(), x, grad_weight, grad_bias);
    } else if (live_serves_weight<T>(f_) && live_pays(x, live_weight_below())) {
      live_backward_weight<T>(f_, g(), at(), x, grad_weight, grad_bias);
    } else {
      backward_weight(f_.conv, unpooled(), x, grad_weight, grad_bias);
    }
  }

 private:
  const T* g() const { return fastconv::data<T>(g_); }
  const uint8_t* at() const { return fastconv::data<uint8_t>(argmax_); }

  // Whether to take live values from lists. `other`, what they are multiplied with, is dense.
  bool live_pays(const Tensor& other, double below) { return live_.below(below) && all_finite<T>(other); }

  const Tensor& unpooled() {
    if (!unpooled_) unpooled_ = unpool<T>(f_, g_, argmax_);
    return *unpooled_;
  }

  FusedShape f_;
  Tensor g_, argmax_;
  LiveShare<T> live_;
  std::optional<Tensor> unpooled_;
};

// T: the type that is computed in; reduced tensors are widened to it, whole or a band at a time.
template <class T>
void backward(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
              const Tensor& weight, const Tensor* grad_input, const Tensor* grad_weight, const Tensor& grad_bias) {
  const bool reduced = is_reduced(input);
  const BandLimits& limits = reduced ? wide_limits : plain_limits;
  const bool by_rows = reduced || (is_nhwc(grad_output) && is_nhwc(input));
  const auto read = [&](const Tensor& tensor, Scratch use) { return reduced ? widened(tensor, use) : tensor; };
  const auto write = [&](const Tensor& tensor, Scratch use, const auto& compute) {
    if (reduced) {
      compute_wide(tensor, use, compute);
    } else {
      compute(tensor);
    }
  };
  const auto passes_of = [&](const FusedBand& band) {
    const Tensor g = part_of(grad_output, band.images, band.windows);
    return Passes<T>(band.shape, read(g, Scratch::wide_other), part_of(argmax, band.images, band.windows));
  };
  const auto data = [&](Passes<T>& passes, const Tensor& w, const Tensor& dx) {
    write(dx, Scratch::wide_result, [&](const Tensor& wide) { passes.data(w, wide); });
  };
  const auto weights = [&](const auto& add_bands) {
    write(*grad_weight, Scratch::wide_result, [&](const Tensor& dw) {
      write(grad_bias, Scratch::wide_bias, [&](const Tensor& db) { add_bands(dw, db); });
    });
  };
  const Tensor w = grad_input ? read(weight, Scratch::wide_weight) : weight;
  if (f.conv.N * f.conv.P * f.conv.Q * elements_per_output(f.conv) <= limits.call) {
    // Both gradients share what they need of grad_output.
    Passes<T> passes(f, read(grad_output, Scratch::wide_other), argmax);
    if (grad_input) data(passes, w, *grad_input);
    if (grad_weight) {
      weights([&](const Tensor& dw, const Tensor& db) { passes.weight(read(input, Scratch::wide_input), dw, db); });
    }
    return;
  }
  if (grad_input) {
    for_each_data_band(f, by_rows, limits, [&](const FusedBand& band) {
      Passes<T> passes = passes_of(band);
      data(passes, w, part_of(*grad_input, band.images, band.input));
    });
  }
  if (grad_weight) {
    weights([&](const Tensor& dw, const Tensor& db) {
      BandSum sum(dw, db);
      for_each_band(f, by_rows, limits, [&](const FusedBand& band) {
        Passes<T> passes = passes_of(band);
        const Tensor x = read(part_of(input, band.images, band.input), Scratch::wide_input);
        sum.add([&](const Tensor& band_dw, const Tensor& band_db) { passes.weight(x, band_dw, band_db); });
      });
    });
  }
}

}  // namespace

Gradients fused_backward(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                         const Tensor& weight, bool needs_input, bool needs_weight) {
  const Gradients gradients = empty_gradients(input, weight, needs_input, needs_weight);
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  needs_input = needs_input && grad_input.numel() > 0;
  if (!needs_input && !needs_weight) return gradients;
  if (f.conv.N == 0) {
    zero(grad_weight), zero(grad_bias);
    return gradients;
  }
  const auto run = [&](auto type) {
    backward<decltype(type)>(f, grad_output, argmax, input, weight, needs_input ? &grad_input : nullptr,
                             needs_weight ? &grad_weight : nullptr, grad_bias);
  };
  if (is_reduced(input)) {
    run(float{});
  } else {
    dispatch_floating(input, "conv2d_relu_max_pool2d_backward", run);
  }
  return gradients;
}

}  // namespace fastconv::cpu
