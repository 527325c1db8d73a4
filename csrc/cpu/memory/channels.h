// An (N, C, ...) tensor as batch norm reads it: matrices whose columns have one channel each. If the channels of a
// pixel are adjacent, the tensor is one matrix of pixels x channels. If the planes of the channels are small, it is one
// matrix too: a row is an image, and each channel has `repeat` columns. Otherwise each plane is passed as a matrix
// whose columns all have the constants of its channel.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "../../tensor.h"
#include "../capability.h"
#include "reduced.h"
#include "tiles.h"

namespace fastconv::cpu {

// The columns of a matrix that is one plane. Smaller planes of one image are one row.
constexpr int64_t plane_columns = 64;

struct ChannelLayout {
  int64_t N, C, plane;
  int64_t repeat = 1;
  bool one_matrix;

  explicit ChannelLayout(const Tensor& tensor) : N(tensor.size(0)), C(tensor.size(1)), plane(1) {
    for (int64_t d = 2; d < tensor.dim(); ++d) plane *= tensor.size(d);
    const bool by_pixel = plane == 1 || (tensor.dim() == 4 && !tensor.is_contiguous() && is_nhwc(tensor));
    // Forward and backward with ReLU, 64 x 512 planes of 4x4 pixels, 2 threads of Zen 4: 2.5 ms by planes, 1.2 by
    // images.
    one_matrix = by_pixel || plane < plane_columns;
    if (one_matrix && !by_pixel) repeat = plane;
  }
  // The number of values of a channel.
  int64_t pixels() const { return N * plane; }
  // The size of the matrix, if there is only one.
  int64_t rows() const { return pixels() / repeat; }
  int64_t columns() const { return C * repeat; }
};

// Returns the tensor itself if it is contiguous or channels_last, else a copy.
inline Tensor channel_ordered(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  return tensor.dim() == 4 ? ordered(tensor, suggests_channels_last(tensor)) : as_contiguous(tensor);
}

// One value for each channel, from a vector of any floating type.
template <class T>
std::vector<T> channel_values(const std::optional<Tensor>& tensor, int64_t C, T missing) {
  std::vector<T> values(static_cast<size_t>(C), missing);
  if (!tensor) return values;
  const Tensor from = tensor->is_contiguous() ? *tensor : as_contiguous(*tensor);
  if (is_reduced(from)) {
    std::vector<float> wide(static_cast<size_t>(C));
    reduced_kernels(from.scalar_type()).widen(data<uint16_t>(from), wide.data(), C);
    std::copy(wide.begin(), wide.end(), values.begin());
  } else {
    dispatch_floating(from, "batch_norm", [&](auto type) {
      const auto* first = data<decltype(type)>(from);
      std::transform(first, first + C, values.begin(), [](auto value) { return static_cast<T>(value); });
    });
  }
  return values;
}

// Writes one value for each channel into a vector of any floating type, which is contiguous.
template <class T>
void store_channel_values(const std::vector<T>& values, const Tensor& to) {
  if (is_reduced(to)) {
    const std::vector<float> wide(values.begin(), values.end());
    reduced_kernels(to.scalar_type()).round(wide.data(), mutable_data<uint16_t>(to), to.numel());
  } else {
    dispatch_floating(to, "batch_norm", [&](auto type) {
      auto* first = mutable_data<decltype(type)>(to);
      std::transform(values.begin(), values.end(), first, [](T value) { return static_cast<decltype(type)>(value); });
    });
  }
}

// `count` vectors with one constant for each channel.
template <class T, size_t count>
using ChannelConstants = std::array<std::vector<T>, count>;

// Repeats each constant `repeat` times: one constant for each column.
template <class T, size_t count>
ChannelConstants<T, count> repeated(const ChannelConstants<T, count>& constants, int64_t repeat) {
  ChannelConstants<T, count> result;
  for (size_t i = 0; i < count; ++i) {
    for (const T value : constants[i]) result[i].insert(result[i].end(), static_cast<size_t>(repeat), value);
  }
  return result;
}

// The constants of the columns of one matrix. All columns of a plane get the constants of its channel.
template <class T, size_t count>
class ColumnConstants {
 public:
  explicit ColumnConstants(const ChannelConstants<T, count>& all) {
    for (size_t i = 0; i < count; ++i) columns_[i] = all[i].empty() ? nullptr : all[i].data();
  }
  ColumnConstants(const ChannelConstants<T, count>& all, int64_t c, int64_t columns) {
    for (size_t i = 0; i < count; ++i) {
      if (!all[i].empty()) std::fill_n(filled_[i].begin(), columns, all[i][static_cast<size_t>(c)]);
      columns_[i] = all[i].empty() ? nullptr : filled_[i].data();
    }
  }
  ColumnConstants(const ColumnConstants&) = delete;  // columns_ may point into filled_
  ColumnConstants& operator=(const ColumnConstants&) = delete;

  const T* operator[](size_t i) const { return columns_[i]; }

 private:
  std::array<std::array<T, plane_columns>, count> filled_;
  std::array<const T*, count> columns_;
};

// Calls body(offset, size) for blocks of at most `most` of the rows [first, last) of the matrix, or of one plane.
// `offset`: the index of the block's first element.
template <class Body>
void for_each_block_of_rows(const ChannelLayout& l, int64_t first, int64_t last, int64_t most, const Body& body) {
  for (int64_t p = first; p < last; p += most) body(p * l.columns(), MatrixSize{std::min(most, last - p), l.columns()});
}

template <class Body>
void for_each_block_of_plane(const ChannelLayout& l, int64_t index, int64_t most, const Body& body) {
  const int64_t begin = index * l.plane, columns = std::min(l.plane, plane_columns), rows = l.plane / columns;
  for (int64_t p = 0; p < rows; p += most) body(begin + p * columns, MatrixSize{std::min(most, rows - p), columns});
  if (const int64_t rest = l.plane - rows * columns) body(begin + rows * columns, MatrixSize{1, rest});
}

// Calls body(offset, size, constants) for blocks of all elements, in parallel.
template <class T, size_t count, class Body>
void for_each_block(const ChannelLayout& l, const ChannelConstants<T, count>& constants, const Body& body) {
  if (l.one_matrix) {
    const int64_t most = std::clamp<int64_t>(16384 / l.columns(), 1, 64);  // the rows of a block in 16 bits are widened
    const ChannelConstants<T, count> of_columns = l.repeat > 1 ? repeated(constants, l.repeat) : constants;
    const ColumnConstants<T, count> columns(of_columns);
    parallel_for(0, l.rows(), ceil_div(grain_size, l.columns()), [&](int64_t first, int64_t last) {
      for_each_block_of_rows(l, first, last, most,
                             [&](int64_t offset, const MatrixSize& size) { body(offset, size, columns); });
    });
  } else {
    parallel_for(0, l.N * l.C, ceil_div(grain_size, l.plane), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const ColumnConstants<T, count> columns(constants, i % l.C, std::min(l.plane, plane_columns));
        for_each_block_of_plane(l, i, 64, [&](int64_t offset, const MatrixSize& size) { body(offset, size, columns); });
      }
    });
  }
}

}  // namespace fastconv::cpu
