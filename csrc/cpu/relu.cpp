#include "capability.h"
#include "memory/reduced.h"
#include "memory/reorder.h"
#include "memory/tiles.h"
#include "memory/workspace.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

template <class T>
void apply(void (*kernel)(const T*, T*, int64_t), const Tensor& from, const Tensor& to) {
  const T* x = data<T>(from);
  T* y = mutable_data<T>(to);
  parallel_for(0, from.numel(), grain_size,
               [&](int64_t begin, int64_t end) { kernel(x + begin, y + begin, end - begin); });
}

// Computes dx if g and y differ only by transposed matrices (memory/reorder.h), else returns false. It transposes one
// matrix at a time in per-thread workspace. A copy of all of g would cost more than the rest of the operator, because
// of fresh pages.
template <class T>
bool apply_backward_transposed(const Tensor& g, const Tensor& y, const Tensor& dx) {
  if (same_strides(g, y) || !fills_memory(g)) return false;
  const auto matrices = transposition(g, y);
  if (!matrices) return false;
  const int64_t rows = matrices->rows, columns = matrices->columns, size = rows * columns;
  const T *from = data<T>(g), *at = data<T>(y);
  T* to = mutable_data<T>(dx);
  const int64_t grain = ceil_div(grain_size, std::max<int64_t>(size, 1));
  parallel_for(0, matrices->batches, grain, [&](int64_t begin, int64_t end) {
    T* turned = workspace<T>(Workspace::input_tile, size);
    for (int64_t i = begin * size; i < end * size; i += size) {
      kernels().conv2d<T>().transpose(from + i, columns, rows, columns, turned, rows);
      kernels().relu<T>().backward(turned, at + i, to + i, size);
    }
  });
  return true;
}

template <class T>
void apply_backward(void (*kernel)(const T*, const T*, T*, int64_t), const Tensor& g, const Tensor& y,
                    const Tensor& dx) {
  const T *from = data<T>(g), *at = data<T>(y);
  T* to = mutable_data<T>(dx);
  parallel_for(0, g.numel(), grain_size,
               [&](int64_t begin, int64_t end) { kernel(from + begin, at + begin, to + begin, end - begin); });
}

}  // namespace

void write_relu(const Tensor& from, const Tensor& to) {
  if (is_reduced(from)) return apply(reduced_kernels(from.scalar_type()).relu, from, to);
  dispatch_real(from, "relu", [&](auto type) {
    using T = decltype(type);
    apply<T>(kernels().relu<T>().forward, from, to);
  });
}

void write_relu_backward(const Tensor& grad_output, const Tensor& output, const Tensor& grad_input) {
  if (is_reduced(output)) {
    const auto kernel = reduced_kernels(output.scalar_type()).relu_backward;
    return apply_backward(kernel, ordered_as(grad_output, output), output, grad_input);
  }
  dispatch_floating(grad_output, "relu_backward", [&](auto type) {
    using T = decltype(type);
    if (apply_backward_transposed<T>(grad_output, output, grad_input)) return;
    apply_backward<T>(kernels().relu<T>().backward, ordered_as(grad_output, output), output, grad_input);
  });
}

}  // namespace fastconv::cpu
