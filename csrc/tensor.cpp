#include "tensor.h"

#include <algorithm>
#include <cstring>
#include <string>

// Returns the message of the last C function that failed in this thread. In torch 2.12 and older, its address is null.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace fastconv {
namespace {

using torch::headeronly::MemoryFormat;

// Returns whether the dimensions in `order`, innermost first, fill memory without gaps.
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

// Calls the C function, because torch::stable::empty looks up aten::empty by its name on every call (1 us).
Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, const Tensor& like, ScalarType type) {
  int64_t bytes = static_cast<int64_t>(sizeof(double));  // the largest element
  bool fits = true;
  for (int64_t d = 0; d < dim; ++d)
    fits = !__builtin_mul_overflow(bytes, std::max<int64_t>(1, sizes[d]), &bytes) && fits;
  check(fits, "Storage size calculation overflowed with sizes=", Sizes(sizes, static_cast<size_t>(dim)));
  return in_words([&] {
    int32_t device_type = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    AtenTensorHandle handle = nullptr;
    const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dim, sizes, strides, number, device_type, like.get_device_index(), &handle));
    return Tensor(handle);
  });
}

// Returns the tensor itself if it has the memory format, else a copy.
Tensor in_format(const Tensor& tensor, MemoryFormat format) {
  return in_words([&] { return torch::stable::contiguous(tensor, format); });
}

}  // namespace

void rethrow_in_words() {
  try {
    throw;
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()).find(" API call failed at ") == std::string::npos) throw;
    const char* words = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
    throw std::runtime_error(*words ? words : not_enough_memory);
  }
}

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
    // Here C, H and W are 1 and their strides are equal, so every order fits. PyTorch regards that as contiguous.
    if (d == 0 && least == strides[1]) return false;
    least = strides[d];
    if (sizes[d] > 1) least *= sizes[d];
  }
  return true;
}

Ints dense_strides(const Ints& sizes, bool channels_last) {
  Ints strides(sizes.size());
  int64_t step = 1;
  // PyTorch's strides: a dimension of size 0 counts as 1 in NCHW, and as 0 in channels_last.
  const int64_t least = channels_last ? 0 : 1;
  const auto place = [&](size_t d) {
    strides[d] = step;
    // empty_strided reports the overflow.
    if (__builtin_mul_overflow(step, std::max(least, sizes[d]), &step)) step = 1;
  };
  if (channels_last) {
    for (const size_t d : {1, 3, 2, 0}) place(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) place(d);
  }
  return strides;
}

Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last, ScalarType type) {
  const Ints strides = dense_strides(sizes, channels_last);
  return empty_strided(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), like, type);
}

Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last) {
  return empty(sizes, like, channels_last, like.scalar_type());
}

Gradients empty_gradients(const Conv2dShape& s, const Tensor& like, InputAndWeight needed,
                          InputAndWeight channels_last) {
  const auto gradient = [&](bool is_needed, const Ints& sizes, bool nhwc) {
    return is_needed ? empty(sizes, like, nhwc) : empty({0}, like, false);
  };
  return {gradient(needed.input, {s.N, s.C, s.H, s.W}, channels_last.input),
          gradient(needed.weight, {s.K, s.group_C(), s.R, s.S}, channels_last.weight),
          gradient(needed.weight, {s.K}, false)};
}

void zero(const Tensor& tensor) {
  const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  if (bytes > 0) std::memset(mutable_data<char>(tensor), 0, bytes);
}

bool fills_memory(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  for (size_t found = 0; found < sizes.size(); ++found) {
    for (size_t d = sizes.size(); d-- > 0;) {
      if (sizes[d] != 1 && strides[d] == expected) {
        expected *= sizes[d];
        break;
      }
    }
  }
  return expected == tensor.numel();
}

Tensor empty_as(const Tensor& tensor) {
  const Ints sizes = sizes_of(tensor);
  if (tensor.is_contiguous()) return empty(sizes, tensor, false);
  if (tensor.dim() == 4 && is_nhwc(tensor)) return empty(sizes, tensor, true);
  if (!fills_memory(tensor)) return in_words([&] { return torch::stable::empty_like(tensor); });
  return empty_strided(sizes.data(), tensor.strides().data(), tensor.dim(), tensor, tensor.scalar_type());
}

bool is_nhwc(const Tensor& tensor) { return is_dense_in_order(tensor, {1, 3, 2, 0}); }
bool is_nchw(const Tensor& tensor) { return is_dense_in_order(tensor, {3, 2, 1, 0}); }

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

Tensor dense(const Tensor& tensor) {
  if (is_nchw(tensor) || is_nhwc(tensor)) return tensor;
  return in_format(tensor, MemoryFormat::ChannelsLast);
}

Tensor ordered(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_nhwc(tensor) : is_nchw(tensor)) return tensor;
  return in_format(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor ordered_as(const Tensor& tensor, const Tensor& like) {
  if (same_strides(tensor, like)) return tensor;
  const Tensor result = empty_as(like);
  copy(tensor, result);
  return result;
}

Tensor as_contiguous(const Tensor& tensor) { return in_format(tensor, MemoryFormat::Contiguous); }

void copy(const Tensor& from, const Tensor& to) {
  Tensor result = to;
  in_words([&] { torch::stable::copy_(result, from); });
}

Tensor slice(const Tensor& tensor, int64_t dim, int64_t first, int64_t count) {
  Tensor from = tensor;
  return in_words([&] { return torch::stable::narrow(from, dim, first, count); });
}

}  // namespace fastconv
