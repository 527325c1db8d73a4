#include "checks.h"

#include <limits>
#include <string>

namespace fastconv {
namespace {

void check_pair(const Ints& values, const char* name, const char* operation) {
  check(values.size() == 2, "expected ", name, " to be a single integer value or a list of 2 values to match the ",
        operation, " dimensions, but got ", name, "=", Sizes(values));
}

// Far above any image, and far below where sums of products overflow.
void check_countable(const Ints& stride, const Ints& padding, const Ints& dilation) {
  constexpr int64_t most = int64_t{1} << 40;
  for (int i = 0; i < 2; ++i) {
    check(stride[i] <= most && padding[i] <= most && dilation[i] <= most,
          "expected stride, padding and dilation to be at most 2^40");
  }
}

void check_conv2d_parameters(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check(padding[0] >= 0 && padding[1] >= 0, "negative padding is not supported");
  check(stride[0] > 0 && stride[1] > 0, "non-positive stride is not supported");
  check(dilation[0] > 0 && dilation[1] > 0, "non-positive dilation is not supported");
  check(groups > 0, "non-positive groups is not supported");
  check_countable(stride, padding, dilation);
}

void check_pairs(const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_pair(stride, "stride", "convolution");
  check_pair(padding, "padding", "convolution");
  check_pair(dilation, "dilation", "convolution");
}

std::string device_name(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

// The dispatcher asks for one tensor on a GPU, not for all.
void check_same_device(const Tensor& a, const Tensor& b) {
  check(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(),
        "Expected all tensors to be on the same device, but found at least two devices, ", device_name(a), " and ",
        device_name(b), "!");
}

void check_same_type(const Tensor& a, const Tensor& b, const char* what) {
  check_same_device(a, b);
  check(a.scalar_type() == b.scalar_type(), "expected ", what, " of type ",
        torch::headeronly::toString(a.scalar_type()), ", but got ", torch::headeronly::toString(b.scalar_type()));
}

Conv2dShape conv2d_shape(const Ints& input, int64_t K, int64_t R, int64_t S, const Ints& stride, const Ints& padding,
                         const Ints& dilation, int64_t groups) {
  Conv2dShape s{};
  s.N = input[0], s.C = input[1], s.H = input[2], s.W = input[3];
  s.K = K, s.R = R, s.S = S;
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.groups = groups;
  s.P = (s.H + 2 * s.pad_h - s.dilation_h * (R - 1) - 1) / s.stride_h + 1;
  s.Q = (s.W + 2 * s.pad_w - s.dilation_w * (S - 1) - 1) / s.stride_w + 1;
  return s;
}

// The number of windows along one side, by PyTorch's rule for ceil_mode: a last window that would start beyond the
// input and its left padding is dropped.
int64_t pooled_size(int64_t size, int64_t kernel, int64_t pad, int64_t stride, int64_t dilation, bool ceil_mode) {
  const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  int64_t windows = (span >= 0 ? span / stride : -((-span + stride - 1) / stride)) + 1;
  if (ceil_mode && (windows - 1) * stride >= size + pad) --windows;
  return windows;
}

void check_max_pool2d_parameters(const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                 const Ints& dilation) {
  check(kernel_size.size() == 2, "max_pool2d: kernel_size must either be a single int, or a tuple of two ints");
  check(stride.size() == 2, "max_pool2d: stride must either be omitted, a single int, or a tuple of two ints");
  check(padding.size() == 2, "max_pool2d: padding must either be a single int, or a tuple of two ints");
  check(dilation.size() == 2, "max_pool2d: dilation must be either a single int, or a tuple of two ints");
  check(stride[0] != 0 && stride[1] != 0, "stride should not be zero");
  check_countable(stride, padding, dilation);
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

// Within a window the kernels count in 32 bits; where the window stands, in 64.
void check_window(const Pool2dShape& s) {
  check((s.R - 1) * s.dilation_h * s.W + (s.S - 1) * s.dilation_w <= std::numeric_limits<int32_t>::max(),
        "max_pool2d: a window may span at most 2^31 - 1 pixels of the image");
}

Pool2dShape pool2d_shape(const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                         const Ints& dilation) {
  Pool2dShape s{};
  s.N = input[0], s.C = input[1], s.H = input[2], s.W = input[3];
  s.R = kernel_size[0], s.S = kernel_size[1];
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.pad_h = padding[0], s.pad_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  return s;
}

// The windows of a pool over an input of some size (N, C, H, W).
Pool2dShape pool2d_windows(const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                           const Ints& dilation, bool ceil_mode) {
  check(padding[0] <= kernel_size[0] / 2 && padding[1] <= kernel_size[1] / 2,
        "pad should be smaller than or equal to half of kernel size, but got padW = ", padding[1],
        ", padH = ", padding[0], ", kW = ", kernel_size[1], ", kH = ", kernel_size[0]);
  Pool2dShape s = pool2d_shape(input, kernel_size, stride, padding, dilation);
  s.P = pooled_size(s.H, s.R, s.pad_h, s.stride_h, s.dilation_h, ceil_mode);
  s.Q = pooled_size(s.W, s.S, s.pad_w, s.stride_w, s.dilation_w, ceil_mode);
  check(s.P >= 1 && s.Q >= 1, "Given input size: (", s.C, "x", s.H, "x", s.W, "). Calculated output size: (", s.C, "x",
        s.P, "x", s.Q, "). Output size is too small");
  check_window(s);
  return s;
}

// A position and `dead` share a byte.
void check_positions(const Ints& pool_kernel_size) {
  check(pool_kernel_size[0] <= dead && pool_kernel_size[1] <= dead && pool_kernel_size[0] * pool_kernel_size[1] <= dead,
        "expected a pool of at most ", static_cast<int>(dead), " pixels, but got kernel size ",
        Sizes(pool_kernel_size));
}

}  // namespace

// For the backward operators, which users reach through autograd only: every number must fit every other.
void check_grad_output(const Tensor& grad_output, const Conv2dShape& s) {
  const Ints expected{s.N, s.K, s.P, s.Q};
  check(sizes_of(grad_output) == expected, "expected grad_output of size ", Sizes(expected), ", but got ",
        Sizes(grad_output));
}

Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check(input.dim() == 4,
        "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: ", Sizes(input));
  check_pairs(stride, padding, dilation);
  check_conv2d_parameters(stride, padding, dilation, groups);
  check(weight.dim() == 4, "Expected ", weight.dim(), "-dimensional input for ", weight.dim(), "-dimensional weight ",
        Sizes(weight), ", but got 4-dimensional input of size ", Sizes(input), " instead");
  const int64_t K = weight.size(0), R = weight.size(2), S = weight.size(3);
  check(K >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
        " at dimension 0, but got weight of size ", Sizes(weight), " instead");
  check(K % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
        " at dimension 0, but got weight of size [", Sizes(weight), "] instead");
  check(input.size(1) == weight.size(1) * groups, "Given groups=", groups, ", weight of size ", Sizes(weight),
        ", expected input", Sizes(input), " to have ", weight.size(1) * groups, " channels, but got ", input.size(1),
        " channels instead");
  check(!bias || (bias->dim() == 1 && bias->size(0) == K), "Given weight of size ", Sizes(weight),
        ", expected bias to be 1-dimensional with ", K, " elements, but got bias of size ",
        bias ? Sizes(*bias) : Sizes(weight), " instead");
  check_same_type(input, weight, "weight");
  if (bias) check_same_type(input, *bias, "bias");
  const int64_t padded_h = input.size(2) + 2 * padding[0], padded_w = input.size(3) + 2 * padding[1];
  const int64_t reach_h = dilation[0] * (R - 1) + 1, reach_w = dilation[1] * (S - 1) + 1;
  check(padded_h >= reach_h && padded_w >= reach_w, "Calculated padded input size per channel: (", padded_h, " x ",
        padded_w, "). Kernel size: (", reach_h, " x ", reach_w,
        "). Kernel size can't be greater than actual input size");
  return conv2d_shape(sizes_of(input), K, R, S, stride, padding, dilation, groups);
}

Conv2dShape check_conv2d_backward_data(const Tensor& grad_output, const Tensor& weight, const Ints& input_size,
                                       const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check_pairs(stride, padding, dilation);
  check_conv2d_parameters(stride, padding, dilation, groups);
  check(input_size.size() == 4 && weight.dim() == 4, "expected a 4-dimensional input and weight");
  check_same_type(grad_output, weight, "weight");
  const int64_t K = weight.size(0);
  check(K % groups == 0 && input_size[1] == weight.size(1) * groups, "expected input of size ", Sizes(input_size),
        " to have ", weight.size(1) * groups, " channels");
  return conv2d_shape(input_size, K, weight.size(2), weight.size(3), stride, padding, dilation, groups);
}

Conv2dShape check_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input, const Ints& kernel_size,
                                         const Ints& stride, const Ints& padding, const Ints& dilation,
                                         int64_t groups) {
  check_pairs(stride, padding, dilation);
  check_pair(kernel_size, "kernel_size", "convolution");
  check_conv2d_parameters(stride, padding, dilation, groups);
  check(input.dim() == 4 && grad_output.dim() == 4, "expected a 4-dimensional input and grad_output");
  check_same_type(input, grad_output, "grad_output");
  const int64_t K = grad_output.size(1);
  check(K >= groups && K % groups == 0 && input.size(1) % groups == 0,
        "expected channels to be divisible by groups=", groups);
  return conv2d_shape(sizes_of(input), K, kernel_size[0], kernel_size[1], stride, padding, dilation, groups);
}

Pool2dShape check_max_pool2d(const Tensor& input, const Ints& kernel_size, const Ints& stride, const Ints& padding,
                             const Ints& dilation, bool ceil_mode) {
  check_max_pool2d_parameters(kernel_size, stride, padding, dilation);
  check(input.dim() == 4 && input.size(1) != 0 && input.size(2) != 0 && input.size(3) != 0,
        "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:", Sizes(input));
  return pool2d_windows(sizes_of(input), kernel_size, stride, padding, dilation, ceil_mode);
}

Pool2dShape check_max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, const Ints& input_size,
                                      const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                      const Ints& dilation) {
  check_max_pool2d_parameters(kernel_size, stride, padding, dilation);
  check(input_size.size() == 4 && grad_output.dim() == 4, "expected a 4-dimensional input and grad_output");
  check_same_device(grad_output, indices);
  check(indices.scalar_type() == ScalarType::Long, "expected indices of type Long, but got ",
        torch::headeronly::toString(indices.scalar_type()));
  Pool2dShape s = pool2d_shape(input_size, kernel_size, stride, padding, dilation);
  s.P = grad_output.size(2), s.Q = grad_output.size(3);
  const Ints expected{s.N, s.C, s.P, s.Q};
  check(sizes_of(grad_output) == expected && sizes_of(indices) == expected, "expected grad_output and indices of size ",
        Sizes(expected), ", but got ", Sizes(grad_output), " and ", Sizes(indices));
  check_window(s);
  return s;
}

void check_no_overlap(const Tensor& input) {
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

FusedShape check_conv2d_relu_max_pool2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                        const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                        const Ints& pool_kernel_size, const Ints& pool_stride, const Ints& pool_padding,
                                        const Ints& pool_dilation, bool pool_ceil_mode) {
  const Conv2dShape conv = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  check_max_pool2d_parameters(pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  check_positions(pool_kernel_size);
  const Ints pooled{conv.N, conv.K, conv.P, conv.Q};
  return {conv, pool2d_windows(pooled, pool_kernel_size, pool_stride, pool_padding, pool_dilation, pool_ceil_mode)};
}

FusedShape check_conv2d_relu_max_pool2d_backward(const Tensor& grad_output, const Tensor& argmax, const Tensor& input,
                                                 const Tensor& weight, const Ints& stride, const Ints& padding,
                                                 const Ints& dilation, int64_t groups, const Ints& pool_kernel_size,
                                                 const Ints& pool_stride, const Ints& pool_padding,
                                                 const Ints& pool_dilation) {
  const Conv2dShape conv = check_conv2d(input, weight, {}, stride, padding, dilation, groups);
  check_max_pool2d_parameters(pool_kernel_size, pool_stride, pool_padding, pool_dilation);
  check_positions(pool_kernel_size);
  check(grad_output.dim() == 4, "expected a 4-dimensional grad_output");
  check_same_type(input, grad_output, "grad_output");
  check_same_device(grad_output, argmax);
  check(argmax.scalar_type() == ScalarType::Byte, "expected argmax of type Byte, but got ",
        torch::headeronly::toString(argmax.scalar_type()));
  FusedShape f{
      conv, pool2d_shape({conv.N, conv.K, conv.P, conv.Q}, pool_kernel_size, pool_stride, pool_padding, pool_dilation)};
  Pool2dShape& s = f.pool;
  // Either rounding of the number of windows; which, is not said again.
  const auto windows = [](int64_t given, int64_t size, int64_t kernel, int64_t pad, int64_t stride, int64_t dilation) {
    const bool ceil_mode = given != pooled_size(size, kernel, pad, stride, dilation, false);
    return pooled_size(size, kernel, pad, stride, dilation, ceil_mode);
  };
  s.P = windows(grad_output.size(2), s.H, s.R, s.pad_h, s.stride_h, s.dilation_h);
  s.Q = windows(grad_output.size(3), s.W, s.S, s.pad_w, s.stride_w, s.dilation_w);
  const Ints expected{conv.N, conv.K, s.P, s.Q};
  check(sizes_of(grad_output) == expected && sizes_of(argmax) == expected, "expected grad_output and argmax of size ",
        Sizes(expected), ", but got ", Sizes(grad_output), " and ", Sizes(argmax));
  check_window(f.pool);
  return f;
}

}  // namespace fastconv
