// y = x w^T + b, as a 1x1 convolution. A row of x is a pixel of one image that is one pixel wide, so contiguous tensors
// are NHWC.
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
// cycle. PyTorch's time / fastconv's, 2 threads of Zen 5, for input channels -> output channels. "Both" is forward and
// backward. `python benchmarks/bench_linear.py` measures more layers.
//                                       forward    both                                  forward    both
//   8192 rows  384->96   ConvNeXt-T          2.30    1.96        16 rows  1024->1024          2.06    1.40
//    512 rows  384->1536                     2.33    1.90         8 rows  1024->1024          1.6     1.5
//    197 rows  768->768   ViT-B              2.08    2.03         4 rows  1024->1024          2.0     1.6
//     64 rows  1152->128  MnistCNN           1.64    1.61         2 rows  1024->1024          1.3     1.4
//     64 rows  400->120   LeNet-5            1.31    1.29         1 row   1024->1024          0.8     0.6
//     32 rows  256->256                      1.33    1.26         8 rows  8192->4096          1.9     1.3
//      8 rows  256->256                      0.75    0.9          8 rows  768->3072           1.8     1.1
//  65536 rows  64->8                         1.88    1.47      65536 rows  3->64               2.19    3.83
//  65536 rows  64->4                         1.12    1.48       4096 rows  256->2              0.62    0.99
bool linear_is_faster(int64_t rows, int64_t C, int64_t K) {
  if (!torch_is_allowed()) return true;
  constexpr double least_products = 2e6;
  constexpr int64_t least_outputs = 4;
  const auto products = static_cast<double>(rows) * static_cast<double>(C) * static_cast<double>(K);
  return has_wide_avx512() && rows > 1 && K >= least_outputs && products >= least_products;
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
