// Tensors of torch's stable ABI: errors in PyTorch's words, memory formats, and dispatch on the element type. Other
// files call torch's C functions through this one, because it gives their errors PyTorch's own text.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "shapes.h"

namespace fastconv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of input, weight and bias
using Fused = std::tuple<Tensor, Tensor>;              // the output and argmax of a fused operator

// Throws std::runtime_error with the text `parts` unless the condition holds. Python raises it as a RuntimeError with
// the same text.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

constexpr const char* not_enough_memory = "fastconv: not enough memory. Use a smaller batch or smaller images.";

// Rethrows the exception that is being handled. The text of a failed call of torch's C functions names the call, a
// header and a line. It is replaced by PyTorch's own message.
[[noreturn]] void rethrow_in_words();

// Calls `f`, which calls torch's C functions.
template <class F>
auto in_words(const F& f) {
  try {
    return f();
  } catch (...) {
    rethrow_in_words();
  }
}

inline Ints sizes_of(const Tensor& tensor) { return Ints(tensor.sizes().begin(), tensor.sizes().end()); }

// Prints as PyTorch prints sizes: [2, 3].
struct Sizes {
  const int64_t* values;
  size_t count;
  Sizes(const Tensor& tensor) : values(tensor.sizes().data()), count(tensor.sizes().size()) {}
  Sizes(const int64_t* values, size_t count) : values(values), count(count) {}
  Sizes(const Ints& ints) : values(ints.data()), count(ints.size()) {}
};
std::ostream& operator<<(std::ostream& out, const Sizes& sizes);

// Returns whether PyTorch regards the tensor as channels_last. The strides of dimensions of size 1 count, too,
// although they have no effect.
bool suggests_channels_last(const Tensor& tensor);

// Returns whether PyTorch's convolution of input and weight returns a channels_last tensor.
inline bool result_is_channels_last(const Tensor& input, const Tensor& weight) {
  return input.numel() > 0 && (suggests_channels_last(input) || suggests_channels_last(weight));
}

// Returns whether the fused operators return a channels_last tensor. PyTorch's ReLU returns a contiguous tensor if the
// convolution's result fits both memory formats.
inline bool fused_is_channels_last(const Conv2dShape& s, const Tensor& input, const Tensor& weight) {
  return s.K > 1 && s.P * s.Q > 1 && result_is_channels_last(input, weight);
}

// PyTorch's strides of a dense tensor, contiguous or channels_last. Wrong if the number of elements overflows.
Ints dense_strides(const Ints& sizes, bool channels_last);

// An uninitialised dense tensor of (N, C, H, W), contiguous or channels_last.
Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last);
Tensor empty(const Ints& sizes, const Tensor& like, bool channels_last, ScalarType type);

// An uninitialised tensor with the strides that PyTorch's elementwise operators give their result.
Tensor empty_as(const Tensor& tensor);

// Returns whether the elements fill their memory without gaps or overlaps, in any order.
bool fills_memory(const Tensor& tensor);

// The memory order of a 4-D tensor. A tensor of one channel, or of one pixel, is both NHWC and NCHW.
bool is_nhwc(const Tensor& tensor);
bool is_nchw(const Tensor& tensor);

// Returns whether a 4-D tensor is channels_last and not contiguous. Its gradient is then channels_last, too. PyTorch
// regards a tensor without elements as contiguous.
inline bool is_channels_last(const Tensor& tensor) { return tensor.numel() > 0 && is_nhwc(tensor) && !is_nchw(tensor); }

// One flag for the input and one for the weight.
struct InputAndWeight {
  bool input, weight;
};

// Uninitialised gradients of a convolution, contiguous or channels_last. Those that are not needed have no elements.
Gradients empty_gradients(const Conv2dShape& s, const Tensor& like, InputAndWeight needed,
                          InputAndWeight channels_last);

// Sets all elements to zero. The tensor is on the CPU and fills its memory.
void zero(const Tensor& tensor);

// Returns whether two tensors of the same sizes have the same memory order.
bool same_strides(const Tensor& a, const Tensor& b);

// Returns the tensor itself if it is NHWC or NCHW, else a copy in NHWC.
Tensor dense(const Tensor& tensor);

// Returns the tensor in NHWC (channels_last) or NCHW order: itself if it has that order, else a copy.
Tensor ordered(const Tensor& tensor, bool channels_last);

// Returns the tensor itself if it has the strides of `like`, else a copy with them. `like` fills its memory.
Tensor ordered_as(const Tensor& tensor, const Tensor& like);

// Returns the tensor itself if it is contiguous, else a copy.
Tensor as_contiguous(const Tensor& tensor);

// Copies the elements of one tensor to another of the same sizes.
void copy(const Tensor& from, const Tensor& to);

// The part [first, first + count) of a tensor along one dimension.
Tensor slice(const Tensor& tensor, int64_t dim, int64_t first, int64_t count);

// One image of a batch, as a batch of one.
inline Tensor image(const Tensor& tensor, int64_t n) { return slice(tensor, 0, n, 1); }

// Runs f(T{}) with the tensor's element type.
template <class F>
void dispatch_floating(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      check(false, "\"", name, "\" not implemented for '", torch::headeronly::toString(tensor.scalar_type()), "'");
  }
}

template <class F>
void dispatch_real(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
      return f(uint8_t{});
    case ScalarType::Char:
      return f(int8_t{});
    case ScalarType::Short:
      return f(int16_t{});
    case ScalarType::Int:
      return f(int32_t{});
    case ScalarType::Long:
      return f(int64_t{});
    default:
      return dispatch_floating(tensor, name, f);
  }
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(in_words([&] { return tensor.const_data_ptr(); }));
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(in_words([&] { return tensor.mutable_data_ptr(); }));
}

}  // namespace fastconv
