#include "tensor.h"

namespace fastconv {
namespace {

// Whether walking the dimensions in `order`, innermost first, walks memory without gaps.
bool is_dense_in_order(const Tensor& tensor, const int (&order)[4]) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  for (const int d : order) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.count; ++i) out << (i ? ", " : "") << sizes.values[i];
  return out << ']';
}

bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    // Where every order of the dimensions fits the strides, the answer is contiguous.
    if (d == 0 && least == strides[1]) return false;
    least = strides[d];
    if (sizes[d] > 1) least *= sizes[d];
  }
  return true;
}

Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last, ScalarType type) {
  using torch::headeronly::MemoryFormat;
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format);
}

Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last) {
  return empty(sizes, like, channels_last, like.scalar_type());
}

bool is_nhwc(const Tensor& tensor) { return is_dense_in_order(tensor, {1, 3, 2, 0}); }
bool is_nchw(const Tensor& tensor) { return is_dense_in_order(tensor, {3, 2, 1, 0}); }

Tensor dense(const Tensor& tensor) {
  if (is_nchw(tensor) || is_nhwc(tensor)) return tensor;
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace fastconv
