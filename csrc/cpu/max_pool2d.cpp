#include <algorithm>
#include <cstring>

#include "capability.h"
#include "memory/reduced.h"
#include "memory/tiles.h"
#include "memory/workspace.h"
#include "ops.h"

namespace fastconv::cpu {
namespace {

// Computes the outputs tile by tile.
template <class Elements>
void forward(const Pool2dShape& s, const Elements& elements, const Tensor& input, const Tensor& output,
             const Tensor& indices, bool nhwc) {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;
  const auto kernel = nhwc ? kernels().max_pool2d<T>().nhwc : kernels().max_pool2d<T>().nchw;
  const Stored* x = data<Stored>(input);
  Stored* y = mutable_data<Stored>(output);
  int64_t* at = mutable_data<int64_t>(indices);
  const Tiles tiles(s.N, s.P, s.Q, 1024);
  for_each_tile(tiles, [&](const Tile& tile) {
    const Rows rows = rows_read_by(s, {tile.row, tile.rows});
    const int64_t row = s.W * s.C, out_row = s.Q * s.C;
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
      Stored* to = y + (n * s.P + tile.row) * out_row;
      const T* in = elements.load(x + (n * s.H + rows.first) * row, rows.count * row, Workspace::input_tile);
      T* out = elements.result(to, tile.rows * out_row, Workspace::output_tile);
      // The kernel expects pointers to row 0 of the image.
      kernel(s, in - rows.first * row, out - tile.row * out_row, at + n * s.P * out_row, tile.row,
             tile.row + tile.rows);
      elements.store(out, to, tile.rows * out_row);
    }
  });
}

// Computes grad_input tile by tile. A tile adds the gradients of all windows that reach its rows.
template <class Elements>
void backward(const Pool2dShape& s, const Elements& elements, const Tensor& grad_output, const Tensor& indices,
              const Tensor& grad_input) {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;
  const auto kernel = kernels().max_pool2d<T>().backward;
  const Stored* g = data<Stored>(grad_output);
  const int64_t* at = data<int64_t>(indices);
  Stored* dx = mutable_data<Stored>(grad_input);
  // A window may be entirely in the padding. As in PyTorch, its index may then point to a pixel some rows below.
  const bool leaves_its_rows = s.pad_w > 0 && s.dilation_w > s.W;
  const Tiles tiles(s.N, s.H, s.W, leaves_its_rows ? std::max<int64_t>(4096, s.H * s.W) : 4096);
  for_each_tile(tiles, [&](const Tile& tile) {
    const Rows windows = outputs_that_read(s, {tile.row, tile.rows});
    const int64_t row = s.W * s.C, out_row = s.Q * s.C, count = tile.rows * row;
    Pool2dShape part = s;
    part.H = tile.rows, part.P = windows.count;
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
      const int64_t from = (n * s.P + windows.first) * out_row;
      Stored* to = dx + (n * s.H + tile.row) * row;
      T* sums = elements.result(to, count, Workspace::input_tile);
      std::memset(sums, 0, static_cast<size_t>(count) * sizeof(T));
      kernel(part, elements.load(g + from, windows.count * out_row, Workspace::output_tile), at + from, sums,
             tile.row * s.W);
      elements.store(sums, to, count);
    }
  });
}

}  // namespace

void write_max_pool2d(const Pool2dShape& s, const Tensor& input, const Tensor& output, const Tensor& indices,
                      bool nhwc) {
  const auto run = [&](const auto& elements) { forward(images_of(s, nhwc), elements, input, output, indices, nhwc); };
  if (is_reduced(input)) return run(ReducedElements{reduced_kernels(input.scalar_type())});
  dispatch_real(input, "max_pool2d", [&](auto type) { run(PlainElements<decltype(type)>{}); });
}

void write_max_pool2d_backward(const Pool2dShape& s, const Tensor& grad_output, const Tensor& indices,
                               const Tensor& grad_input, bool nhwc) {
  dispatch_elements(grad_output, "max_pool2d_backward", [&](const auto& elements) {
    backward(images_of(s, nhwc), elements, grad_output, indices, grad_input);
  });
}

}  // namespace fastconv::cpu
