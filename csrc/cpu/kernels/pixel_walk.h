// The walk over the input pixels that the outputs of a tile read, for the forward kernels and for packing.
#pragma once

#include "blocks.h"

namespace fastconv::FC_LEVEL {

// A row of Q pooling windows of R x S pixels, without gaps, inside the image. No pooling is 1x1 pooling here.
struct WindowRow {
  int64_t R, S, Q;
};

// Gives the address in x of the first pixel that each window reads, for `images` images of `rows` rows of windows.
template <class T>
class PixelWalk {
 public:
  PixelWalk(const Conv2dShape& s, const WindowRow& w, const InputTile<T>& x, int64_t images, int64_t rows)
      : first_(x.data),
        image_(x.strides.image),
        row_(w.R * s.stride_h * x.strides.row),
        step_(w.S * s.stride_w * x.strides.pixel),
        rows_(rows),
        Q_(w.Q),
        adjacent_(row_ == w.Q * step_ && (images == 1 || image_ == rows * row_)),
        contiguous_(adjacent_ && step_ == s.C),
        next_(x.data) {}

  FC_INLINE const T* next() {
    const T* from = next_;
    next_ += step_;
    if (++q_ == Q_) {
      q_ = 0;
      if (++p_ == rows_) p_ = 0, ++n_;
      next_ = first_ + n_ * image_ + p_ * row_;
    }
    return from;
  }

  // Gives `count` addresses. Do not call next() for the same walk.
  FC_INLINE void take(int count, const T** a) {
    if (adjacent_) {
      for (int i = 0; i < count; ++i, next_ += step_) a[i] = next_;
      return;
    }
    for (int i = 0; i < count; ++i) a[i] = next();
  }

  // Prefetches later blocks to the second-level cache, if a block of `size` elements is contiguous in memory.
  // Milliseconds of forward in bfloat16, batch of 8, 2 threads of Zen 5, x not in the caches, without / with 4 KB /
  // with 12 KB ahead:
  //   256->64 1x1, 56x56    1.28 / 0.97 / 0.97        32->64 1x1, 112x112    0.71 / 0.68 / 0.57
  FC_INLINE void fetch_ahead(int64_t size) const {
    constexpr int64_t least = 12 * 1024 / int64_t{sizeof(T)};
    if (!contiguous_) return;
    const T* ahead = next_ + (size < least ? least : size);
    for (int64_t i = 0; i < size; i += 64 / int64_t{sizeof(T)}) __builtin_prefetch(ahead + i, 0, 2);
  }

 private:
  const T* first_;
  int64_t image_, row_, step_;  // distances in x between images, rows of windows, and windows
  int64_t rows_, Q_;
  bool adjacent_;    // windows are at a constant distance, also across rows and images
  bool contiguous_;  // and there is nothing between them
  const T* next_;
  int64_t n_ = 0, p_ = 0, q_ = 0;
};

}  // namespace fastconv::FC_LEVEL
