#include "aten.h"

#include <algorithm>
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
void call_torch(const char* name, std::array<StableIValue, n>& stack) {
  const NoGrad guard;
  in_words([&] { STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION)); });
}

// Returns the tensor if it is dense in the wanted memory format, else a copy in that format.
Tensor in_order(const Tensor& tensor, bool channels_last) {
  const Ints sizes = sizes_of(tensor), wanted = dense_strides(sizes, channels_last);
  const auto strides = tensor.strides();
  if (std::equal(wanted.begin(), wanted.end(), strides.begin(), strides.end())) return tensor;
  const Tensor result = empty(sizes, tensor, channels_last);
  copy(tensor, result);
  return result;
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
  call_torch("aten::convolution", stack);
  return in_order(to<Tensor>(stack[0]), channels_last);
}

Gradients aten_conv2d_backward(const Backward& call, bool needs_input, bool needs_weight) {
  const Conv2dShape& s = call.shape.conv;
  const Tensor& g = call.grad_output;
  // PyTorch needs a tensor in place of an operand that is not needed. It reads only its sizes and strides.
  const Tensor input = call.input ? *call.input : empty({s.N, s.C, s.H, s.W}, g, call.input_nhwc);
  const Tensor weight = call.weight ? *call.weight : empty({s.K, s.group_C(), s.R, s.S}, g, call.weight_nhwc);
  const std::array<bool, 3> mask{needs_input, needs_weight, needs_weight};
  std::array<StableIValue, 11> stack{from(g),
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
  call_torch("aten::convolution_backward", stack);
  Tensor grad_input = to<Tensor>(stack[0]), grad_weight = to<Tensor>(stack[1]);
  if (needs_input) grad_input = in_order(grad_input, call.input_nhwc);
  if (needs_weight) grad_weight = in_order(grad_weight, call.weight_nhwc);
  return {grad_input, grad_weight, to<Tensor>(stack[2])};
}

}  // namespace fastconv::cpu
