#include "aten.h"

#include <array>

namespace fastconv::cpu {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// fastconv's autograd Functions record the call. PyTorch's operator must not record it again.
class NoGrad {
 public:
  NoGrad() : enabled_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(enabled_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool enabled_;
};

template <size_t n>
void call(const char* name, std::array<StableIValue, n>& stack) {
  const NoGrad guard;
  in_words([&] { STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION)); });
}

// Returns the tensor if it is dense in the wanted memory format, else a copy in that format.
Tensor in_order(const Tensor& tensor, bool channels_last) {
  const Tensor result = empty(sizes_of(tensor), tensor, channels_last);
  bool same = true;
  for (int64_t d = 0; d < tensor.dim(); ++d) same = same && tensor.stride(d) == result.stride(d);
  if (same) return tensor;
  copy(tensor, result);
  return result;
}

// Returns the gradients of the input, the weight and the bias. Gradients that `mask` leaves out are undefined. If no
// wanted gradient needs the values of the input or the weight, PyTorch reads only its sizes and strides.
std::array<Tensor, 3> backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, const std::array<bool, 3>& mask) {
  std::array<StableIValue, 11> stack{from(grad_output),
                                     from(input),
                                     from(weight),
                                     from(std::optional<Ints>(Ints{s.K})),
                                     from(Ints{s.stride_h, s.stride_w}),
                                     from(Ints{s.pad_h, s.pad_w}),
                                     from(Ints{s.dilation_h, s.dilation_w}),
                                     from(false),
                                     from(Ints{0, 0}),
                                     from(s.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), mask.size()))};
  call("aten::convolution_backward", stack);
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

}  // namespace

Tensor aten_conv2d(const Conv2dShape& s, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool channels_last) {
  std::array<StableIValue, 9> stack{from(input),
                                    from(weight),
                                    from(bias),
                                    from(Ints{s.stride_h, s.stride_w}),
                                    from(Ints{s.pad_h, s.pad_w}),
                                    from(Ints{s.dilation_h, s.dilation_w}),
                                    from(false),
                                    from(Ints{0, 0}),
                                    from(s.groups)};
  call("aten::convolution", stack);
  return in_order(to<Tensor>(stack[0]), channels_last);
}

Gradients aten_conv2d_backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, bool needs_input, bool needs_weight) {
  auto [grad_input, grad_weight, grad_bias] =
      backward(s, grad_output, input, weight, {needs_input, needs_weight, needs_weight});
  if (needs_input) grad_input = in_order(grad_input, is_channels_last(input));
  if (needs_weight) grad_weight = in_order(grad_weight, is_channels_last(weight));
  return {grad_input, grad_weight, grad_bias};
}

Tensor aten_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                 bool channels_last) {
  const Tensor input = empty({s.N, s.C, s.H, s.W}, grad_output, channels_last);
  return in_order(backward(s, grad_output, input, weight, {true, false, false})[0], channels_last);
}

std::tuple<Tensor, Tensor> aten_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                       const Tensor& input, bool channels_last) {
  const Tensor weight = empty({s.K, s.group_C(), s.R, s.S}, input, channels_last);
  const auto gradients = backward(s, grad_output, input, weight, {false, true, true});
  return {in_order(gradients[1], channels_last), gradients[2]};
}

}  // namespace fastconv::cpu
