// y = x w^T + b, as a 1x1 convolution. A row of x is a pixel of one image that is one pixel wide, so contiguous tensors
// are NHWC.
#include <algorithm>

#include "capability.h"
#include "convolution.h"
#include "forced_choices.h"
#include "memory/freed_memory.h"
#include "memory/reduced.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

// The same checks are in fastconv/_ops/linear.py.
void check_rows(const Tensor& rows, const char* name) {
  check(rows.defined() && rows.dim() > 0, "expected ", name, " of at least one dimension");
  if (!is_reduced(rows)) dispatch_floating(rows, "linear", [](auto) {});
}

// The sizes of rows.dim() - 1 dimensions, and a last size.
Ints with_channels(const Tensor& rows, int64_t channels) {
  Ints sizes = sizes_of(rows);
  sizes.back() = channels;
  return sizes;
}

// Neither C nor K may be 0.
FusedShape convolution_of(int64_t rows, int64_t C, int64_t K) {
  Conv2dShape s{};
  s.N = 1, s.C = C, s.H = s.P = rows, s.K = K;
  s.W = s.Q = s.R = s.S = s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.groups = 1;
  return without_pool(s);
}

// A view of four dimensions on the memory of a contiguous tensor, which must outlive it.
Tensor in_four_dimensions(const Tensor& t, const Ints& sizes, bool nhwc) {
  void* memory = const_cast<char*>(data<char>(t));
  return in_words(
      [&] { return torch::stable::from_blob(memory, sizes, dense_strides(sizes, nhwc), t.device(), t.scalar_type()); });
}

Tensor as_pixels(const Tensor& t) {
  const int64_t channels = t.size(t.dim() - 1);
  return in_four_dimensions(t, {1, channels, t.numel() / channels, 1}, true);
}

Tensor as_kernels(const Tensor& t) { return in_four_dimensions(t, {t.size(0), t.size(1), 1, 1}, false); }

}  // namespace

// PyTorch's linear layers call MKL, which uses AVX2 on AMD. From Zen 5 on, AVX-512 computes twice as many products in a
// cycle. PyTorch's time / fastconv's, 2 threads of Zen 5, for input channels -> output channels:
//                                    forward    grad_input    grad_weight and grad_bias
//   8192 rows  96->384  ConvNeXt-T      2.19          2.29          2.11
//    512 rows  384->1536                2.08          2.04          2.38
//    197 rows  768->3072  ViT           2.10          2.35 (both gradients)
//     64 rows  1600->128                1.80          1.88          2.16
//     32 rows  128->512                 1.35          1.19          1.20
//     64 rows  128->128                 1.07          0.75          1.04
//     16 rows  1024->1024               2.00          2.28          1.48
//      8 rows  1024->1024               1.04          2.61          1.68
//     64 rows  4096->4096               2.86          0.61          1.28
//     32 rows  4096->4096               2.95          0.43          1.25
bool linear_is_faster(int64_t rows, int64_t C, int64_t K) {
  if (!torch_is_allowed()) return true;
  if (!is_zen5_or_later() || cpu_capability() != "avx512") return false;
  constexpr double least_products = 3e6;
  constexpr int64_t least_rows = 16, least_channels = 16, rows_of_large_weights = 64, large_weight = 4 << 20;
  const auto products = static_cast<double>(rows) * static_cast<double>(C) * static_cast<double>(K);
  return products >= least_products && rows >= least_rows && std::min(C, K) >= least_channels &&
         (rows >= rows_of_large_weights || C * K <= large_weight);
}

Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const WorkspaceScope scope;
  check_rows(input, "input");
  const int64_t C = input.size(input.dim() - 1), K = weight.defined() && weight.dim() > 0 ? weight.size(0) : 0;
  check_like(weight, {K, C}, input, "weight");
  check_like(bias, {K}, input, "bias");
  check(C > 0 && K > 0, "expected a weight with elements");
  const Tensor y = empty(with_channels(input, K), input, false);
  if (y.numel() == 0) return y;
  const Tensor x = as_contiguous(input), w = as_contiguous(weight);
  run_forward({convolution_of(y.numel() / K, C, K), as_pixels(x), as_kernels(w), bias, as_pixels(y)});
  return y;
}

Gradients linear_backward(const Tensor& grad_output, const std::optional<Tensor>& input,
                          const std::optional<Tensor>& weight) {
  const WorkspaceScope scope;
  check_rows(grad_output, "grad_output");
  check(input || weight, "expected an input or a weight");
  if (input) check_rows(*input, "input");
  const Tensor& other = input ? *input : *weight;
  const int64_t K = grad_output.size(grad_output.dim() - 1);
  const int64_t C = other.defined() && other.dim() > 0 ? other.size(other.dim() - 1) : 0;
  check_like(input, with_channels(grad_output, C), grad_output, "input");
  check_like(weight, {K, C}, grad_output, "weight");
  check(C > 0 && K > 0, "expected a weight with elements");
  const Tensor g = as_contiguous(grad_output);
  const auto gradient = [&](bool is_needed, const Ints& sizes) { return empty(is_needed ? sizes : Ints{0}, g, false); };
  const Gradients gradients{gradient(weight.has_value(), with_channels(g, C)), gradient(input.has_value(), {K, C}),
                            gradient(input.has_value(), {K})};
  const auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (g.numel() == 0) {
    for (const Tensor& t : {grad_input, grad_weight, grad_bias}) zero(t);
    return gradients;
  }
  Backward call{convolution_of(g.numel() / K, C, K), as_pixels(g)};
  // The views do not own their memory.
  const Tensor x = input ? as_contiguous(*input) : g, w = weight ? as_contiguous(*weight) : g;
  if (weight) call.weight = as_kernels(w), call.grad_input = as_pixels(grad_input);
  if (input) call.input = as_pixels(x), call.grad_weight = as_kernels(grad_weight), call.grad_bias = grad_bias;
  keep_freed_memory(kept_bytes_in_training);
  run_backward(call);
  return gradients;
}

}  // namespace fastconv::cpu
