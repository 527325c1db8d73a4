#include "checks.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>

#include "sizes.h"

namespace fastconv {
namespace {

// The rest of csrc counts elements and bytes in 64 bits. 2^50 elements are more than any machine's memory, and leave
// room for the padding of blocks and lists.
void check_elements(const char* what, std::initializer_list<Wide> sizes) {
  constexpr Wide most = Wide{1} << 50;
  Wide elements = 1;
  for (const Wide size : sizes) {
    if (size > 1) elements = size > most ? most + 1 : std::min(elements * size, most + 1);
  }
  if (elements <= most) return;
  std::ostringstream text;
  for (const Wide size : sizes) text << (text.tellp() > 0 ? ", " : "") << Count{size};
  check(false, "expected ", what, " to have at most 2^50 elements, but got size [", text.str(), "]");
}

void check_sizes(const Ints& sizes) {
  for (const int64_t size : sizes) {
    check(size >= 0, "Trying to create tensor with negative dimension ", size, ": ", Sizes(sizes));
  }
}

void check_pair(const Ints& values, const char* name, const char* operation) {
  check(values.size() == 2, "expected ", name, " to be a single integer value or a list of 2 values to match the ",
        operation, " dimensions, but got ", name, "=", Sizes(values));
}

// 2^40 is far above the size of any image. Sums of such numbers fit in 64 bits. The product of two may not.
void check_countable(const Ints& stride, const Ints& padding, const Ints& dilation) {
  constexpr int64_t most = int64_t{1} << 40;
  for (int i = 0; i < 2; ++i) {
    check(stride[i] <= most && padding[i] <= most && dilation[i] <= most,
          "expected stride, padding and dilation to be at most 2^40");
  }
}

std::string device_name(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
            type == ScalarType::BFloat16,
        "\"", name, "\" not implemented for '", torch::headeronly::toString(type), "'");
}

// The dispatcher calls CUDA's operator if one tensor is on a GPU, even if others are not.
void check_same_device(const Tensor& a, const Tensor& b) {
  // A caller may pass None, which has no device.
  const bool same =
      in_words([&] { return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(); });
  check(same, "Expected all tensors to be on the same device, but found at least two devices, ", device_name(a),
        " and ", device_name(b), "!");
}

// The one place where a convolution's sizes are computed. `weight`: (K, C / groups, R, S).
Conv2dShape conv2d_shape(const Ints& input, const Ints& weight, const std::optional<Sizes>& bias, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups) {
  check_sizes(input);
  check_sizes(weight);
  Conv2dShape s{};
  s.N = input[0], s.C = input[1], s.H = input[2], s.W = input[3];
  s.K = weight[0], s.R = weight[2], s.S = weight[3];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.stride_h = useful_stride(stride[0], s.H, s.pad_h), s.stride_w = useful_stride(stride[1], s.W, s.pad_w);
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.groups = groups;
  check(s.K >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
        " at dimension 0, but got weight of size ", Sizes(weight), " instead");
  check(s.K % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
        " at dimension 0, but got weight of size [", Sizes(weight), "] instead");
  const Wide channels = static_cast<Wide>(weight[1]) * groups;
  check(s.C == channels, "Given groups=", groups, ", weight of size ", Sizes(weight), ", expected input", Sizes(input),
        " to have ", Count{channels}, " channels, but got ", s.C, " channels instead");
  check(!bias || (bias->count == 1 && bias->values[0] == s.K), "Given weight of size ", Sizes(weight),
        ", expected bias to be 1-dimensional with ", s.K, " elements, but got bias of size ",
        bias ? *bias : Sizes(weight), " instead");
  check(s.R > 0 && s.S > 0, "kernel size should be greater than zero, but got kernel_height: ", s.R,
        " kernel_width: ", s.S);
  const Wide padded_h = padded(s.H, s.pad_h), padded_w = padded(s.W, s.pad_w);
  const Wide extent_h = extent(s.R, s.dilation_h), extent_w = extent(s.S, s.dilation_w);
  check(padded_h >= extent_h && padded_w >= extent_w, "Calculated padded input size per channel: (", Count{padded_h},
        " x ", Count{padded_w}, "). Kernel size: (", Count{extent_h}, " x ", Count{extent_w},
        "). Kernel size can't be greater than actual input size");
  check((s.H > 0 && s.W > 0) || s.N == 0 || s.C == 0,
        "Only zero batch or zero channel inputs are supported, but got input shape: ", Sizes(input));
  const Wide P = output_size(s.H, s.R, s.pad_h, s.stride_h, s.dilation_h);
  const Wide Q = output_size(s.W, s.S, s.pad_w, s.stride_w, s.dilation_w);
  check_elements("the padded input of conv2d", {s.N, s.C, padded_h, padded_w});
  check_elements("the output of conv2d", {s.N, s.K, P, Q});
  check_elements("the weight of conv2d", {s.K, s.C, s.R, s.S});
  // With one tap, the dilation has no effect, but a kernel might compute an address with it that overflows.
  if (s.R == 1) s.dilation_h = 1;
  if (s.S == 1) s.dilation_w = 1;
  s.P = static_cast<int64_t>(P), s.Q = static_cast<int64_t>(Q);
  return s;
}

// The one place where a pool's sizes are computed. `input`: (N, C, H, W). `given`: the (P, Q) of the gradient in
// backward, else null. The schemas of backward operators omit ceil_mode, so backward accepts either rounding.
Pool2dShape pool2d_shape(const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                         const Ints& dilation, bool ceil_mode, const Ints* given) {
  check_sizes(input);
  check(input[1] != 0 && input[2] != 0 && input[3] != 0,
        "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:", Sizes(input));
  check(padding[0] <= kernel_size[0] / 2 && padding[1] <= kernel_size[1] / 2,
        "pad should be smaller than or equal to half of kernel size, but got padW = ", padding[1],
        ", padH = ", padding[0], ", kW = ", kernel_size[1], ", kH = ", kernel_size[0]);
  Pool2dShape s{};
  s.N = input[0], s.C = input[1], s.H = input[2], s.W = input[3];
  s.R = kernel_size[0], s.S = kernel_size[1];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  const auto windows = [&](int side) {
    const auto rounded = [&](bool up) {
      return pooled_size(input[2 + side], kernel_size[side], padding[side], stride[side], dilation[side], up);
    };
    return rounded(given ? (*given)[side] != rounded(false) : ceil_mode);
  };
  const Wide P = windows(0), Q = windows(1);
  check(P >= 1 && Q >= 1, "Given input size: (", s.C, "x", s.H, "x", s.W, "). Calculated output size: (", s.C, "x",
        Count{P}, "x", Count{Q}, "). Output size is too small");
  check_elements("the input of max_pool2d", {s.N, s.C, padded(s.H, s.pad_h), padded(s.W, s.pad_w)});
  check_elements("the output of max_pool2d", {s.N, s.C, P, Q});
  s.P = static_cast<int64_t>(P), s.Q = static_cast<int64_t>(Q);
  // The kernels store the distance of two pixels of one window in 32 bits, and all other positions in 64 bits.
  check((extent(s.R, s.dilation_h) - 1) * s.W + extent(s.S, s.dilation_w) - 1 <= std::numeric_limits<int32_t>::max(),
        "max_pool2d: a window may span at most 2^31 - 1 pixels of the image");
  return s;
}

// A byte of the argmax holds either a position in the window or `no_gradient`.
void check_positions(const Ints& pool_kernel_size) {
  check(pool_kernel_size[0] <= no_gradient && pool_kernel_size[1] <= no_gradient &&
            pool_kernel_size[0] * pool_kernel_size[1] <= no_gradient,
        "expected a pool of at most ", static_cast<int>(no_gradient), " pixels, but got kernel size ",
        Sizes(pool_kernel_size));
}

// Autograd calls the backward operators, so all sizes must match exactly.
void check_grad_output(const Tensor& grad_output, const Conv2dShape& s) {
  const Ints expected{s.N, s.K, s.P, s.Q};
  check(sizes_of(grad_output) == expected, "expected grad_output of size ", Sizes(expected), ", but got ",
        Sizes(grad_output));
}

}  // namespace

void check_geometry(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                    const Ints* kernel_size) {
  check_pair(stride, "stride", "convolution");
  check_pair(padding, "padding", "convolution");
  check_pair(dilation, "dilation", "convolution");
  if (kernel_size) check_pair(*kernel_size, "kernel_size", "convolution");
  check(groups > 0, "non-positive groups is not supported");
  check(padding[0] >= 0 && padding[1] >= 0, "negative padding is not supported");
  check(stride[0] > 0 && stride[1] > 0, "non-positive stride is not supported");
  check(dilation[0] > 0 && dilation[1] > 0, "non-positive dilation is not supported");
  check_countable(stride, padding, dilation);
}

void check_max_pool2d_parameters(const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                 const Ints& dilation) {
  check(kernel_size.size() == 2, "max_pool2d: kernel_size must either be a single int, or a tuple of two ints");
  check(stride.size() == 2, "max_pool2d: stride must either be omitted, a single int, or a tuple of two ints");
  check(padding.size() == 2, "max_pool2d: padding must either be a single int, or a tuple of two ints");
  check(dilation.size() == 2, "max_pool2d: dilation must be either a single int, or a tuple of two ints");
  check(stride[0] != 0 && stride[1] != 0, "stride should not be zero");
  for (const Ints* values : {&kernel_size, &stride, &padding, &dilation}) {
    for (const int64_t value : *values) {
      check(value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max(),
            "value cannot be converted to type int without overflow");
    }
  }
  for (int i = 0; i < 2; ++i) {
    check(padding[i] >= 0, "pad must be non-negative, but got pad: ", padding[i]);
    check(padding[i] <= (dilation[i] * (kernel_size[i] - 1) + 1) / 2,
          "pad should be at most half of effective kernel size, but got pad=", padding[i],
          ", kernel_size=", kernel_size[i], " and dilation=", dilation[i]);
  }
  check(kernel_size[0] > 0 && kernel_size[1] > 0,
        "kernel size should be greater than zero, but got kH: ", kernel_size[0], " kW: ", kernel_size[1]);
  check(stride[0] > 0 && stride[1] > 0, "stride should be greater than zero, but got dH: ", stride[0],
        " dW: ", stride[1]);
  check(dilation[0] > 0 && dilation[1] > 0, "dilation should be greater than zero, but got dilationH: ", dilation[0],
        " dilationW: ", dilation[1]);
}

void check_same_type(const Tensor& a, const Tensor& b, const char* what) {
  check_same_device(a, b);
  check(a.scalar_type() == b.scalar_type(), "expected ", what, " of type ",
        torch::headeronly::toString(a.scalar_type()), ", but got ", torch::headeronly::toString(b.scalar_type()));
}

Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check(input.dim() == 4,
        "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: ", Sizes(input));
  check_geometry(stride, padding, dilation, groups);
  check(weight.dim() == 4, "Expected ", weight.dim(), "-dimensional input for ", weight.dim(), "-dimensional weight ",
        Sizes(weight), ", but got 4-dimensional input of size ", Sizes(input), " instead");
  const auto of_bias = bias ? std::optional<Sizes>(*bias) : std::nullopt;
  const Conv2dShape s = conv2d_shape(sizes_of(input), sizes_of(weight), of_bias, stride, padding, dilation, groups);
  check_same_type(input, weight, "weight");
  if (bias) check_same_type(input, *bias, "bias");
  check_floating(input, "conv2d");
  return s;
}

Conv2dShape check_conv2d_sizes(const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding,
                               const Ints& dilation, int64_t groups, const std::optional<Sizes>& bias) {
  check_geometry(stride, padding, dilation, groups);
  check(input.size() == 4 && weight.size() == 4, "expected input_size and weight_size to have 4 values");
  return conv2d_shape(input, weight, bias, stride, padding, dilation, groups);
}

Conv2dShape check_conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  const Conv2dShape s = check_conv2d(input, weight, {}, stride, padding, dilation, groups);
  check_grad_output(grad_output, s);
  check_same_type(input, grad_output, "grad_output");
  return s;
}

Conv2dShape check_conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                       const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check_geometry(stride, padding, dilation, groups);
  check(input_size.size() == 4 && weight.dim() == 4, "expected a 4-dimensional input and weight");
  const Conv2dShape s = conv2d_shape(input_size, sizes_of(weight), {}, stride, padding, dilation, groups);
  check_grad_output(grad_output, s);
  check_same_type(grad_output, weight, "weight");
  check_floating(grad_output, "conv2d_backward_data");
  return s;
}

Conv2dShape check_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input, const Ints& kernel_size,
                                         const Ints& stride, const Ints& padding, const Ints& dilation,
                                         int64_t groups) {
  check_geometry(stride, padding, dilation, groups, &kernel_size);
  check(input.dim() == 4 && grad_output.dim() == 4, "expected a 4-dimensional input and grad_output");
  const int64_t K = grad_output.size(1), C = input.size(1);
  check(C % groups == 0, "expected the ", C, " channels of input to be divisible by groups=", groups);
  const Conv2dShape s = conv2d_shape(sizes_of(input), {K, C / groups, kernel_size[0], kernel_size[1]}, {}, stride,
                                     padding, dilation, groups);
  check_grad_output(grad_output, s);
  check_same_type(input, grad_output, "grad_output");
  check_floating(input, "conv2d_backward_weight");
  return s;
}

Pool2dShape check_max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool ceil_mode) {
  check_max_pool2d_parameters(kernel_size, stride, padding, dilation);
  check(input.dim() == 4,
        "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:", Sizes(input));
  return pool2d_shape(sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode, nullptr);
}

Pool2dShape check_max_pool2d_sizes(const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                   const Ints& dilation, bool ceil_mode, bool fused, const Ints* given) {
  check_max_pool2d_parameters(kernel_size, stride, padding, dilation);
  if (fused) check_positions(kernel_size);
  return pool2d_shape(input, kernel_size, stride, padding, dilation, ceil_mode, given);
}

Pool2dShape check_max_pool2d_backward(const Tensor& grad_output, const Tensor& positions, const Ints& input_size,
                                      const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                      const Ints& dilation, bool fused) {
  check_max_pool2d_parameters(kernel_size, stride, padding, dilation);
  if (fused) check_positions(kernel_size);
  check(input_size.size() == 4 && grad_output.dim() == 4, "expected a 4-dimensional input and grad_output");
  check_same_device(grad_output, positions);
  const char* name = fused ? "argmax" : "indices";
  const ScalarType type = fused ? ScalarType::Byte : ScalarType::Long;
  check(positions.scalar_type() == type, "expected ", name, " of type ", torch::headeronly::toString(type),
        ", but got ", torch::headeronly::toString(positions.scalar_type()));
  const Ints given{grad_output.size(2), grad_output.size(3)};
  const Pool2dShape s = pool2d_shape(input_size, kernel_size, stride, padding, dilation, false, &given);
  const Ints expected{s.N, s.C, s.P, s.Q};
  check(sizes_of(grad_output) == expected && sizes_of(positions) == expected, "expected grad_output and ", name,
        " of size ", Sizes(expected), ", but got ", Sizes(grad_output), " and ", Sizes(positions));
  check_floating(grad_output, "max_pool2d_backward");
  return s;
}

void check_no_overlap(const Tensor& input) {
  if (input.numel() == 0) return;
  for (int64_t d = 0; d < input.dim(); ++d) {
    check(input.stride(d) != 0 || input.size(d) < 2,
          "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
          "Please clone() the tensor before performing the operation.");
  }
}

void check_relu_backward(const Tensor& grad_output, const Tensor& output) {
  check(sizes_of(grad_output) == sizes_of(output), "expected grad_output of size ", Sizes(output), ", but got ",
        Sizes(grad_output));
  check_same_type(grad_output, output, "output");
}

FusedShape check_conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                                 const Tensor& weight, const Ints& stride, const Ints& padding,
                                                 const Ints& dilation, int64_t groups, const Ints& pool_kernel_size,
                                                 const Ints& pool_stride, const Ints& pool_padding,
                                                 const Ints& pool_dilation) {
  const Conv2dShape conv = check_conv2d(input, weight, {}, stride, padding, dilation, groups);
  const Pool2dShape pool = check_max_pool2d_backward(grad_output, argmax, {conv.N, conv.K, conv.P, conv.Q},
                                                     pool_kernel_size, pool_stride, pool_padding, pool_dilation, true);
  check_same_type(input, grad_output, "grad_output");
  return {conv, pool};
}

}  // namespace fastconv
