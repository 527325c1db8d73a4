// Tensors as kernels/thin_groups.h reads and writes them, in dense tiles. `Elements` (reduced.h) says how the elements
// are stored. 16-bit tensors are converted tile by tile.
//
// A tile has one line of channels: as many as fill a cache line of the tensor. The kernel computes a block of channels,
// which fill a cache line of the tile. So a line of a 16-bit tensor has two blocks, one after the other in the tile. If
// two units of work read the halves of each line, 512 3x3, 14x14 takes 0.325 instead of 0.286 ms (batch of 8, one
// thread of Zen 5).
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "reduced.h"
#include "tiles.h"

namespace fastconv::cpu {

template <class Elements>
constexpr int64_t line_channels = 64 / int64_t{sizeof(typename Elements::Stored)};

template <class T>
int64_t block_channels() {
  return kernels().conv2d<T>().thin_groups.block;
}

// Reads an (N, C, H, W) tensor.
template <class Elements>
class LineReader {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;

 public:
  LineReader(const Elements& elements, const Tensor& tensor)
      : elements_(elements),
        tensor_(dense(tensor)),
        data_(fastconv::data<Stored>(tensor_)),
        nhwc_(is_nhwc(tensor_)),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)) {}

  // Copies the channels `c` of these rows and columns. Pixels outside of the image, and the other channels of the last
  // block, become zero. Each block has rows.count x columns.count pixels.
  void copy(int64_t image, const Rows& rows, const Rows& columns, const ChannelRange& c, T* to) const {
    const int64_t first = std::clamp<int64_t>(-rows.first, 0, rows.count);
    const int64_t last = std::clamp(H_ - rows.first, first, rows.count);
    const int64_t left = std::clamp<int64_t>(-columns.first, 0, columns.count);
    const int64_t right = std::clamp(W_ - columns.first, left, columns.count);
    const int64_t row = columns.count * block_, channels = c.last - c.first;
    const LineTile tile{last - first, left, right - left, columns.count, channels, rows.count * row};
    for (int64_t done = 0; done < channels; done += block_) {
      T* of_block = to + done / block_ * tile.block;
      zero(of_block, first * row);
      zero(of_block + last * row, (rows.count - last) * row);
    }
    const int64_t pixel = (rows.first + first) * W_ + columns.first + left;
    if (nhwc_) {
      const Stored* from = data_ + (image * H_ * W_ + pixel) * C_ + c.first;
      return elements_.copies().gather(from, W_ * C_, C_, tile, to + first * row);
    }
    for (int64_t done = 0; done < channels; done += block_) {
      const Stored* from = data_ + (image * C_ + c.first + done) * H_ * W_ + pixel;
      copy_block(from, tile, std::min(block_, channels - done), to + done / block_ * tile.block + first * row);
    }
  }

 private:
  // Copies one block of an NCHW tensor.
  void copy_block(const Stored* from, const LineTile& tile, int64_t channels, T* to) const {
    for (int64_t row = 0; row < tile.rows; ++row, from += W_, to += tile.columns * block_) {
      T* image = to + tile.left * block_;
      zero(to, (channels < block_ ? tile.columns : tile.left) * block_);
      zero(image + tile.pixels * block_, (tile.columns - tile.left - tile.pixels) * block_);
      copy_row(from, tile.pixels, channels, image);
    }
  }

  void copy_row(const Stored* from, int64_t pixels, int64_t channels, T* to) const {
    const auto transpose = kernels().conv2d<T>().transpose;
    if constexpr (std::is_same_v<Stored, T>) {
      transpose(from, H_ * W_, channels, pixels, to, block_);
    } else {
      T* wide = workspace<T>(Workspace::wide_rows, channels * pixels);
      for (int64_t i = 0; i < channels; ++i) elements_.kernels.widen(from + i * H_ * W_, wide + i * pixels, pixels);
      transpose(wide, pixels, channels, pixels, to, block_);
    }
  }

  static void zero(T* to, int64_t count) {
    if (count > 0) std::memset(to, 0, static_cast<size_t>(count) * sizeof(T));
  }

  const Elements elements_;
  const Tensor tensor_;
  const Stored* data_;
  const bool nhwc_;
  const int64_t C_, H_, W_, block_ = block_channels<T>();
};

// The memory for some rows of one line of channels, which a kernel writes. Columns are `pixel` elements apart, and
// blocks are `block` elements apart.
template <class T>
struct LineRows {
  T* data;
  int64_t pixel, block;
};

// Writes an (N, C, H, W) tensor. If it is NHWC and its elements are stored as they are computed, kernels write it in
// place. Otherwise they write to workspace, and finish() copies that to the tensor.
template <class Elements>
class LineWriter {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;

 public:
  LineWriter(const Elements& elements, const Tensor& tensor)
      : elements_(elements),
        data_(mutable_data<Stored>(tensor)),
        nhwc_(is_nhwc(tensor)),
        in_place_(nhwc_ && std::is_same_v<Stored, T>),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)) {}

  // The rows to compute before finish(): all, or as many as stay in the first-level cache.
  int64_t rows_at_once() const {
    constexpr int64_t bytes = 16 * 1024, row_bytes = line_channels<Elements> * int64_t{sizeof(T)};
    return in_place_ ? H_ : std::max<int64_t>(1, bytes / (W_ * row_bytes));
  }

  LineRows<T> begin(int64_t image, const Rows& rows, const ChannelRange& c) const {
    if constexpr (std::is_same_v<Stored, T>) {
      if (in_place_) return {data_ + (image * H_ + rows.first) * W_ * C_ + c.first, C_, block_};
    }
    const int64_t block = rows.count * W_ * block_;
    return {workspace<T>(Workspace::output_tile, rows.count * W_ * line_channels<Elements>), block_, block};
  }

  void finish(int64_t image, const Rows& rows, const ChannelRange& c, const LineRows<T>& from) const {
    if (in_place_) return;
    const int64_t pixels = rows.count * W_;
    if (nhwc_) {
      Stored* to = data_ + (image * H_ + rows.first) * W_ * C_ + c.first;
      return elements_.copies().scatter(from.data, from.block, pixels, c.last - c.first, to, C_);
    }
    for (int64_t first = c.first; first < c.last; first += block_) {
      const T* block = from.data + (first - c.first) / block_ * from.block;
      Stored* to = data_ + ((image * C_ + first) * H_ + rows.first) * W_;
      finish_block(block, pixels, std::min(block_, c.last - first), to);
    }
  }

 private:
  // Copies one block to an NCHW tensor.
  void finish_block(const T* from, int64_t pixels, int64_t channels, Stored* to) const {
    const auto transpose = kernels().conv2d<T>().transpose;
    if constexpr (std::is_same_v<Stored, T>) {
      transpose(from, block_, pixels, channels, to, H_ * W_);
    } else {
      T* wide = workspace<T>(Workspace::wide_rows, channels * pixels);
      transpose(from, block_, pixels, channels, wide, pixels);
      for (int64_t i = 0; i < channels; ++i) elements_.kernels.round(wide + i * pixels, to + i * H_ * W_, pixels);
    }
  }

  const Elements elements_;
  Stored* data_;
  const bool nhwc_, in_place_;
  const int64_t C_, H_, W_, block_ = block_channels<T>();
};

}  // namespace fastconv::cpu
