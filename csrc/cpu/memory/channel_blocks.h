// Tensors as kernels/thin_groups.h reads and writes them: one block of channels at a time, in dense tiles. `Elements`
// (reduced.h) says how the elements are stored. 16-bit tensors are converted tile by tile.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "reduced.h"
#include "tiles.h"

namespace fastconv::cpu {

// Reads an (N, C, H, W) tensor.
template <class Elements>
class BlockReader {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;

 public:
  BlockReader(const Elements& elements, const Tensor& tensor)
      : elements_(elements),
        tensor_(dense(tensor)),
        data_(fastconv::data<Stored>(tensor_)),
        nhwc_(is_nhwc(tensor_)),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)) {}

  // Copies the channels `c` of these rows and columns. Pixels outside of the image, and the rest of the block, become
  // zero.
  void copy(int64_t image, const Rows& rows, const Rows& columns, const ChannelRange& c, T* to) const {
    const int64_t first = std::clamp<int64_t>(-rows.first, 0, rows.count);
    const int64_t last = std::clamp(H_ - rows.first, first, rows.count);
    const int64_t left = std::clamp<int64_t>(-columns.first, 0, columns.count);
    const int64_t right = std::clamp(W_ - columns.first, left, columns.count);
    zero_pixels(to, first * columns.count);
    zero_pixels(to + last * columns.count * block_, (rows.count - last) * columns.count);
    for (int64_t row = first; row < last; ++row) {
      T* row_to = to + row * columns.count * block_;
      zero_pixels(row_to, left);
      zero_pixels(row_to + right * block_, columns.count - right);
      copy_pixels(image, (rows.first + row) * W_ + columns.first + left, right - left, c, row_to + left * block_);
    }
  }

 private:
  void copy_pixels(int64_t image, int64_t first, int64_t pixels, const ChannelRange& c, T* to) const {
    const int64_t channels = c.last - c.first;
    if (nhwc_) {
      const Stored* from = data_ + (image * H_ * W_ + first) * C_ + c.first;
      return elements_.copies().gather(from, C_, pixels, channels, to);
    }
    if (channels < block_) zero_pixels(to, pixels);
    const Stored* from = data_ + (image * C_ + c.first) * H_ * W_ + first;
    const auto transpose = kernels().conv2d<T>().transpose;
    if constexpr (std::is_same_v<Stored, T>) {
      transpose(from, H_ * W_, channels, pixels, to, block_);
    } else {
      T* wide = workspace<T>(Workspace::wide_rows, channels * pixels);
      for (int64_t i = 0; i < channels; ++i) elements_.kernels.widen(from + i * H_ * W_, wide + i * pixels, pixels);
      transpose(wide, pixels, channels, pixels, to, block_);
    }
  }

  void zero_pixels(T* to, int64_t pixels) const {
    if (pixels > 0) std::memset(to, 0, static_cast<size_t>(pixels * block_) * sizeof(T));
  }

  const Elements elements_;
  const Tensor tensor_;
  const Stored* data_;
  const bool nhwc_;
  const int64_t C_, H_, W_, block_ = kernels().conv2d<T>().thin_groups.block;
};

// Where a kernel writes some rows of one block of channels. Columns are `pixel` elements apart.
template <class T>
struct BlockRows {
  T* data;
  int64_t pixel;
};

// Writes an (N, C, H, W) tensor. If it is NHWC and its elements are stored as they are computed, kernels write it in
// place. Otherwise they write to workspace, and finish() copies that to the tensor.
template <class Elements>
class BlockWriter {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;

 public:
  BlockWriter(const Elements& elements, const Tensor& tensor)
      : elements_(elements),
        data_(mutable_data<Stored>(tensor)),
        nhwc_(is_nhwc(tensor)),
        in_place_(nhwc_ && std::is_same_v<Stored, T>),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)) {}

  // The rows to compute before finish(): all, or as many as stay in the first-level cache.
  int64_t rows_at_once() const { return in_place_ ? H_ : std::max<int64_t>(1, pixels_at_once / W_); }

  BlockRows<T> begin(int64_t image, const Rows& rows, const ChannelRange& c) const {
    if constexpr (std::is_same_v<Stored, T>) {
      if (in_place_) return {data_ + (image * H_ + rows.first) * W_ * C_ + c.first, C_};
    }
    return {workspace<T>(Workspace::output_tile, rows.count * W_ * block_), block_};
  }

  void finish(int64_t image, const Rows& rows, const ChannelRange& c, const T* from) const {
    if (in_place_) return;
    const int64_t pixels = rows.count * W_, channels = c.last - c.first;
    if (nhwc_) {
      Stored* to = data_ + (image * H_ + rows.first) * W_ * C_ + c.first;
      return elements_.copies().scatter(from, pixels, channels, to, C_);
    }
    Stored* to = data_ + ((image * C_ + c.first) * H_ + rows.first) * W_;
    const auto transpose = kernels().conv2d<T>().transpose;
    if constexpr (std::is_same_v<Stored, T>) {
      transpose(from, block_, pixels, channels, to, H_ * W_);
    } else {
      T* wide = workspace<T>(Workspace::wide_rows, channels * pixels);
      transpose(from, block_, pixels, channels, wide, pixels);
      for (int64_t i = 0; i < channels; ++i) elements_.kernels.round(wide + i * pixels, to + i * H_ * W_, pixels);
    }
  }

 private:
  static constexpr int64_t pixels_at_once = 256;

  const Elements elements_;
  Stored* data_;
  const bool nhwc_, in_place_;
  const int64_t C_, H_, W_, block_ = kernels().conv2d<T>().thin_groups.block;
};

}  // namespace fastconv::cpu
