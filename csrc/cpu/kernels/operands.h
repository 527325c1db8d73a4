// The operands of the kernels: what each pointer is, and the numbers that belong to it. Drivers fill these structs
// once for a tile. Pixels are NHWC, and the channels of a pixel are adjacent. No torch and no STL here.
#pragma once

#include <cstdint>

#include "../../shapes.h"

namespace fastconv {

// The input of a convolution, from the first pixel that the kernel reads. The padding is in place.
template <class T>
struct InputTile {
  const T* data;
  Strides strides;
};

// `rows` rows of each of `images` images, dense. `row` is the first of them, counted in the whole image.
template <class T>
struct OutputTile {
  T* data;
  int64_t images, row, rows;
};

// The results after ReLU and max-pooling. `argmax` has one byte for each element of `data`.
template <class T>
struct PooledTile {
  T* data;
  uint8_t* argmax;
  int64_t images, row, rows;
};

// A gradient of the convolution's results, with all values. Images are `image_stride` elements apart.
template <class T>
struct GradientTile {
  const T* data;
  int64_t image_stride;
  int64_t images, row, rows;
};

// A gradient that is mostly zeros: one value and one byte of `argmax` for each pooling window and channel. The images
// are whole ones of P x Q windows. The tile is the rows [row, row + rows) of windows of each of them, and both pointers
// point to its first window.
template <class T>
struct SparseGradientTile {
  const T* data;
  const uint8_t* argmax;
  int64_t images, row, rows;
};

// A weight in the order that the kernel reads, and the bias, which may be null.
template <class T>
struct PackedWeight {
  const T* data;
  const T* bias;
};

// The sums that backward_weight adds to: the gradients of the weight and of the bias. `bias` may be null.
template <class T>
struct WeightSums {
  T* weight;
  T* bias;
};

// The taps [first, last) of a kernel, counted in the order (r, s, c).
struct TapRange {
  int64_t first, last;
};

// The channels [first, last).
struct ChannelRange {
  int64_t first, last;
};

// Output pixels: where each reads its first input pixel, in elements from InputTile::data.
struct PixelList {
  const int64_t* offset;
  int64_t count;
};

// Offsets in lists of non-zero values, as wide as the element type.
template <class T>
struct OffsetOf;
template <>
struct OffsetOf<float> {
  using type = int32_t;
};
template <>
struct OffsetOf<double> {
  using type = int64_t;
};
template <class T>
using Offset = typename OffsetOf<T>::type;

// Workspace for lists of non-zero gradients: list_size elements each.
template <class T>
struct NonZeroList {
  Offset<T>* offset;
  T* value;
};

// One kind of Winograd tiles: each of mh x mw outputs, 1 to 4; `rows` x `columns` of them in an image, from output
// (row0, column0) on. The last ones may hang over the edge.
struct WinogradTiles {
  int mh, mw;
  int64_t row0, column0, rows, columns;

  int64_t frequencies() const { return (mh + 2) * (mw + 2); }
  int64_t per_image() const { return rows * columns; }
};

// A unit of Winograd's work: tiles [first_tile, last_tile) of one kind, numbered through all images, and channel blocks
// [first_block, last_block). The kernel sets non_finite[n] to 1 when a sum of image n is not finite.
template <class T>
struct WinogradUnit {
  WinogradTiles kind;
  int64_t first_tile, last_tile;
  int64_t first_block, last_block;
  T* workspace;  // scratch_size elements
  uint8_t* non_finite;
};

}  // namespace fastconv
