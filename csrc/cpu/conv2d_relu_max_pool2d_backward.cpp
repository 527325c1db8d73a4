#include "activation.h"
#include "algorithms.h"
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
  torch::stable::parallel_for(0, pool.N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::memset(to + n * to_image, 0, static_cast<size_t>(to_image) * sizeof(T));
      kernels().conv2d<T>().fused.unpool(pool, g + n * from_image, at + n * from_image, to + n * to_image);
    }
  });
  return grad_conv;
}

// Whether to take live values from lists. `other`, what they are multiplied with, is dense.
template <class T>
bool live_pays(const FusedShape& f, const Tensor& argmax, const Tensor& other, double below) {
  return live_share_below<T>(f, argmax, below) && all_finite<T>(other);
}

void fused_backward_data(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& weight,
                         const Tensor& grad_input) {
  dispatch_floating(grad_output, "conv2d_relu_max_pool2d_backward_data", [&](auto type) {
    using T = decltype(type);
    const Tensor g = to_nhwc<T>(grad_output), at = argmax_nhwc(argmax), w = dense(weight);
    if (live_serves<T>(f) && live_pays<T>(f, at, w, live_data_below(f.conv, winograd_serves_data(f.conv)))) {
      live_backward_data<T>(f, data<T>(g), data<uint8_t>(at), w, grad_input);
    } else {
      backward_data(f.conv, unpool<T>(f, g, at), w, grad_input);
    }
  });
}

void fused_backward_weight(const FusedShape& f, const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias) {
  dispatch_floating(input, "conv2d_relu_max_pool2d_backward_weight", [&](auto type) {
    using T = decltype(type);
    const Tensor g = to_nhwc<T>(grad_output), at = argmax_nhwc(argmax), x = dense(input);
    if (narrow_serves<T>(f) && all_finite<T>(x)) {
      narrow_backward_weight<T>(f, data<T>(g), data<uint8_t>(at), x, grad_weight, grad_bias);
    } else if (live_serves_weight<T>(f) && live_pays<T>(f, at, x, live_weight_below)) {
      live_backward_weight<T>(f, data<T>(g), data<uint8_t>(at), x, grad_weight, grad_bias);
    } else {
      backward_weight(f.conv, unpool<T>(f, g, at), x, grad_weight, grad_bias);
    }
  });
}

}  // namespace

Tensor conv2d_relu_max_pool2d_backward_data(const Tensor& grad_output, const Tensor& argmax, const Tensor& weight,
                                            const Ints& input_size, const Ints& stride, const Ints& padding,
                                            const Ints& dilation, int64_t groups, const Ints& pool_kernel_size,
                                            const Ints& pool_stride, const Ints& pool_padding,
                                            const Ints& pool_dilation, bool channels_last) {
  const Conv2dShape conv =
      check_conv2d_backward_data(grad_output, weight, input_size, stride, padding, dilation, groups);
  const FusedShape f = check_conv2d_relu_max_pool2d_backward(grad_output, argmax, conv, pool_kernel_size, pool_stride,
                                                             pool_padding, pool_dilation);
  const Tensor grad_input = empty(input_size, grad_output, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  if (is_reduced(grad_output)) {
    compute_wide(grad_input, Scratch::wide_result, [&](const Tensor& wide) {
      fused_backward_data(f, widened(grad_output, Scratch::wide_other), argmax, widened(weight, Scratch::wide_weight),
                          wide);
    });
  } else {
    fused_backward_data(f, grad_output, argmax, weight, grad_input);
  }
  return grad_input;
}

std::tuple<Tensor, Tensor> conv2d_relu_max_pool2d_backward_weight(
    const Tensor& grad_output, const Tensor& argmax, const Tensor& input, const Ints& kernel_size, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const Ints& pool_kernel_size, const Ints& pool_stride,
    const Ints& pool_padding, const Ints& pool_dilation, bool channels_last) {
  const Conv2dShape conv =
      check_conv2d_backward_weight(grad_output, input, kernel_size, stride, padding, dilation, groups);
  const FusedShape f = check_conv2d_relu_max_pool2d_backward(grad_output, argmax, conv, pool_kernel_size, pool_stride,
                                                             pool_padding, pool_dilation);
  const Tensor grad_weight = empty({conv.K, conv.group_C(), conv.R, conv.S}, input, channels_last);
  const Tensor grad_bias = empty({conv.K}, input, false);
  if (is_reduced(input)) {
    compute_wide(grad_weight, Scratch::wide_result, [&](const Tensor& wide_weight) {
      compute_wide(grad_bias, Scratch::wide_bias, [&](const Tensor& wide_bias) {
        fused_backward_weight(f, widened(grad_output, Scratch::wide_other), argmax, widened(input, Scratch::wide_input),
                              wide_weight, wide_bias);
      });
    });
  } else {
    fused_backward_weight(f, grad_output, argmax, input, grad_weight, grad_bias);
  }
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
