// Tensors in the order of the convolution kernels: NHWC, with zeros for the padding. A tensor in that order is read and
// written in place. Any other tensor is copied through per-thread workspace, one tile at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "../../tensor.h"
#include "../capability.h"
#include "tiles.h"
#include "workspace.h"

namespace fastconv {

// Reads an (N, C, H, W) tensor. It must be NHWC if T has 16 bits.
template <class T>
class NhwcReader {
 public:
  explicit NhwcReader(const Tensor& tensor)
      : tensor_(dense(tensor)),
        data_(fastconv::data<T>(tensor_)),
        nhwc_(is_nhwc(tensor_)),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)) {}

  bool readable_in_place(int64_t h0, int64_t rows, int64_t w0, int64_t columns) const {
    return nhwc_ && h0 >= 0 && h0 + rows <= H_ && w0 >= 0 && w0 + columns <= W_;
  }

  InputTile<T> in_place(int64_t image, int64_t h0, int64_t w0) const {
    return {data_ + ((image * H_ + h0) * W_ + w0) * C_, {H_ * W_ * C_, W_ * C_, C_}};
  }

  // Copies rows [h0, h0 + rows) and columns [w0, w0 + columns) of some images to `to`, dense. Pixels outside of the
  // image become zero.
  void copy(int64_t image, int64_t images, int64_t h0, int64_t rows, int64_t w0, int64_t columns, T* to) const {
    if (rows * columns * C_ == 0) return;
    for (int64_t n = image; n < image + images; ++n) {
      copy_image(n, h0, rows, w0, columns, to);
      to += rows * columns * C_;
    }
  }

  // Returns these rows and columns in place if possible, else a copy in workspace.
  InputTile<T> view(int64_t image, int64_t images, int64_t h0, int64_t rows, int64_t w0, int64_t columns,
                    Workspace use) const {
    if (readable_in_place(h0, rows, w0, columns)) return in_place(image, h0, w0);
    T* to = workspace<T>(use, images * rows * columns * C_);
    copy(image, images, h0, rows, w0, columns, to);
    return {to, {rows * columns * C_, columns * C_, C_}};
  }

 private:
  static void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
    if constexpr (sizeof(T) >= sizeof(float)) {
      kernels().conv2d<T>().transpose(from, from_stride, rows, columns, to, to_stride);
    }
  }

  void copy_image(int64_t n, int64_t h0, int64_t rows, int64_t w0, int64_t columns, T* to) const {
    const int64_t first = std::clamp<int64_t>(-h0, 0, rows), last = std::clamp(H_ - h0, first, rows);
    const int64_t left = std::clamp<int64_t>(-w0, 0, columns), right = std::clamp(W_ - w0, left, columns);
    const bool whole_rows = w0 == 0 && columns == W_;
    const T* image = data_ + n * C_ * H_ * W_;
    zero(to, first * columns * C_);
    if (whole_rows && !nhwc_ && last > first) {
      transpose(image + (h0 + first) * W_, H_ * W_, C_, (last - first) * W_, to + first * columns * C_, C_);
    } else {
      for (int64_t row = first; row < last; ++row) {
        T* row_to = to + row * columns * C_;
        zero(row_to, left * C_);
        if (right > left) {
          const int64_t pixel = (h0 + row) * W_ + w0 + left;
          if (nhwc_) {
            std::memcpy(row_to + left * C_, image + pixel * C_, static_cast<size_t>((right - left) * C_) * sizeof(T));
          } else {
            transpose(image + pixel, H_ * W_, C_, right - left, row_to + left * C_, C_);
          }
        }
        zero(row_to + right * C_, (columns - right) * C_);
      }
    }
    zero(to + last * columns * C_, (rows - last) * columns * C_);
  }

  static void zero(T* to, int64_t count) {
    if (count > 0) std::memset(to, 0, static_cast<size_t>(count) * sizeof(T));
  }

  Tensor tensor_;
  const T* data_;
  bool nhwc_;
  int64_t C_, H_, W_;
};

// The tensor itself if it is NHWC, else a copy in NHWC.
template <class T>
Tensor to_nhwc(const Tensor& tensor) {
  if (is_nhwc(tensor)) return tensor;
  const Tensor copy = empty(sizes_of(tensor), tensor, true);
  const NhwcReader<T> from(tensor);
  const int64_t H = tensor.size(2), W = tensor.size(3), image = tensor.size(1) * H * W;
  T* to = mutable_data<T>(copy);
  parallel_for(0, tensor.size(0), ceil_div(grain_size, image > 0 ? image : 1),
               [&](int64_t begin, int64_t end) { from.copy(begin, end - begin, 0, H, 0, W, to + begin * image); });
  return copy;
}

// Writes an (N, K, P, Q) tensor tile by tile.
template <class T>
class NhwcWriter {
 public:
  explicit NhwcWriter(const Tensor& tensor)
      : data_(mutable_data<T>(tensor)),
        nhwc_(is_nhwc(tensor)),
        C_(tensor.size(1)),
        H_(tensor.size(2)),
        W_(tensor.size(3)),
        bytes_(tensor.numel() * static_cast<int64_t>(sizeof(T))) {}

  // The pixels of a tile. A tile of a large image that goes through workspace is smaller, to stay in the first-level
  // cache.
  int64_t tile_pixels(int64_t pixels) const {
    const int64_t pixel_bytes = C_ * static_cast<int64_t>(sizeof(T));
    if (nhwc_ || H_ * W_ * pixel_bytes <= 64 * 1024) return pixels;
    return std::min(pixels, std::max<int64_t>(48, 16 * 1024 / pixel_bytes));
  }

  // Returns the memory for the results of a tile, NHWC and dense.
  T* tile(const Tile& tile) const {
    if (nhwc_) return data_ + (tile.image * H_ + tile.row) * W_ * C_;
    return workspace<T>(Workspace::output_tile, tile.images * tile.rows * W_ * C_);
  }

  // Returns whether tiles are written past the caches: the tensor has at least 3/8 of the largest cache, and the blocks
  // of channels of each group are whole aligned vectors. The CPU then does not read memory that it overwrites, but the
  // next operator finds nothing in the cache. Milliseconds without / with, 2 threads of Zen 4 with 32 MB of cache, for
  // the convolution alone and for convolution, ReLU in place and a 1x1 convolution:
  //   16->96 1x1, 112x112, batch of 8   38.5 MB    3.31 / 1.75    12.4 / 10.1
  //   64->256 1x1, 56x56, batch of 8    25.7 MB    4.96 / 3.79    10.1 / 9.7
  //   3->64 3x3, 224x224                12.8 MB    1.44 / 0.90     3.7 / 3.1
  //   64->256 1x1, 56x56, batch of 4    12.8 MB    2.40 / 1.88     4.2 / 4.4
  //   64->256 1x1, 56x56, batch of 3     9.6 MB    1.78 / 1.42     3.0 / 3.2
  bool streamed(int64_t group_channels) const {
    constexpr int64_t line = 64;
    return nhwc_ && bytes_ >= last_level_cache() / 8 * 3 &&
           group_channels * static_cast<int64_t>(sizeof(T)) % line == 0 &&
           reinterpret_cast<uintptr_t>(data_) % line == 0;
  }

  // Copies channels [c0, c1) of a computed tile to the tensor, unless they are already there.
  void finish(const Tile& tile, const T* from, int64_t c0, int64_t c1) const {
    if (nhwc_) return;
    const auto transpose = kernels().conv2d<T>().transpose;
    const int64_t pixels = tile.rows * W_;
    for (int64_t n = 0; n < tile.images; ++n) {
      T* to = data_ + ((tile.image + n) * C_ + c0) * H_ * W_ + tile.row * W_;
      transpose(from + n * pixels * C_ + c0, C_, pixels, c1 - c0, to, H_ * W_);
    }
  }

 private:
  T* data_;
  bool nhwc_;
  int64_t C_, H_, W_, bytes_;
};

// Writes an (N, K, P, Q) tensor as a whole, through a copy in NHWC if it is not NHWC itself.
template <class T>
class WholeResult {
 public:
  explicit WholeResult(const Tensor& tensor)
      : tensor_(tensor), nhwc_(is_nhwc(tensor) ? tensor : empty(sizes_of(tensor), tensor, true)) {}

  T* data() const { return mutable_data<T>(nhwc_); }

  void finish() const {
    if (is_nhwc(tensor_)) return;
    const NhwcWriter<T> result(tensor_);
    const int64_t C = tensor_.size(1), H = tensor_.size(2), image = C * H * tensor_.size(3);
    parallel_for(0, tensor_.size(0), ceil_div(grain_size, image), [&](int64_t begin, int64_t end) {
      result.finish({begin, end - begin, 0, H}, data() + begin * image, 0, C);
    });
  }

 private:
  Tensor tensor_, nhwc_;
};

}  // namespace fastconv
