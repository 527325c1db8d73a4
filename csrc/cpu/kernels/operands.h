// The operands of the kernels. Drivers fill these structs once for each tile. Activations are NHWC. Kernels copy the
// members to local variables before their loops, because the compiler would reload members after each store. This file
// uses neither torch nor the STL.
#pragma once

#include <cstdint>

#include "../../shapes.h"

namespace fastconv {

// The input of a convolution, from the first pixel that the kernel reads. Padding is stored as zeros.
template <class T>
struct InputTile {
  const T* data;
  Strides strides;
};

// The form in which forward of direct_forward.h stores a sum x of channel c:
//
//   min(max((x - center[c]) * scale[c] + shift[c] + residual, least), most)
//
// `residual` has one element for each element of the tile, or is null. `Stored` is the type of the result and of
// `residual`, `T` that of the sums.
template <class T, class Stored = T>
struct StoredForm {
  const T *center, *scale, *shift;
  const Stored* residual;
  T least, most;
};

// The rows [row, row + rows) of `images` images of a result, contiguous. Only forward of direct_forward.h uses the last
// two members. `streamed`: stores bypass the cache. All vectors of such a result are whole and aligned. `form`: null if
// the sums are stored as they are.
template <class T>
struct OutputTile {
  T* data;
  int64_t images, row, rows;
  bool streamed = false;
  const StoredForm<T>* form = nullptr;
};

// The rows of a result after ReLU and max-pooling. `argmax` (shapes.h) has one byte for each element of `data`.
template <class T>
struct PooledTile {
  T* data;
  uint8_t* argmax;
  int64_t images, row, rows;
  bool streamed = false;
  const StoredForm<T>* form = nullptr;
};

// The rows [row, row + rows) of a convolution's output gradient. Images are `image_stride` elements apart.
template <class T>
struct GradientTile {
  const T* data;
  int64_t image_stride;
  int64_t images, row, rows;
};

// The gradient of the output of ReLU and max-pooling: one value and one byte of `argmax` (shapes.h) for each window and
// channel. The tile has the rows [row, row + rows) of windows of each image. Both pointers point to its first window.
// Images are P * Q windows apart.
template <class T>
struct SparseGradientTile {
  const T* data;
  const uint8_t* argmax;
  int64_t images, row, rows;
};

// A tile that channel_blocks.h fills: one line of `channels` channels of an image. Each row has `left` pixels of
// padding, then `pixels` pixels of the image, then padding up to `columns`. Blocks are `block` elements apart.
struct LineTile {
  int64_t rows, left, pixels, columns;
  int64_t channels, block;
};

// The rows [first, first + rows) of one image and one block of channels of x or grad_output, as thin_groups.h reads
// them: dense, with the padding of the columns. `row` is the stride of the rows.
template <class T>
struct GroupTile {
  const T* data;
  int64_t row;
  int64_t first, rows;
};

// The rows [first, first + rows) of one image and one block of `channels` channels of a result with thin groups. `row`
// and `pixel` are the strides of the rows and columns.
template <class T>
struct GroupResult {
  T* data;
  int64_t row, pixel;
  int64_t first, rows;
  int64_t columns, channels;
};

// A weight in the order that the kernel reads, and the bias. `bias` may be null. `data` begins with element `first` of
// the packed weight.
template <class T>
struct PackedWeight {
  const T* data;
  const T* bias;
  int64_t first = 0;
};

// The gradients of the weight and of the bias, to which backward_weight adds. `bias` may be null.
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

// The part of the weight's gradient that one call of gemm_weight.h computes: output channels of one group,
// counted over all groups, and taps. `overwrite`: the first tile stores its sums. The others add theirs. `x_ahead` and
// `g_ahead`: the distance to the next tile, which is fetched into the cache, or 0.
struct WeightPart {
  ChannelRange k;
  TapRange taps;
  bool overwrite;
  int64_t x_ahead, g_ahead;
};

struct PlaneSize {
  int64_t rows, columns;
};

// One channel of some rows of an image. Rows are `row` elements apart.
template <class T>
struct Plane {
  T* data;
  int64_t row;
};

// The planes of several channels, which are `plane` elements apart.
template <class T>
struct Planes {
  const T* data;
  int64_t row, plane;
};

// A list of output pixels. The input that pixel i reads begins offset[i] elements after InputTile::data.
struct PixelList {
  const int64_t* offset;
  int64_t count;
};

// An offset in a list of non-zero values. It is as wide as the element type.
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

// Workspace for lists of non-zero gradients. Each pointer has list_size elements.
template <class T>
struct NonZeroList {
  Offset<T>* offset;
  T* value;
};

// The activation in activation((x - center) * scale + shift + residual). The formula subtracts center first, because
// this rounds least if the mean of x is large. `slope` is that of leaky_relu.
enum class Activation : int32_t { none, relu, relu6, leaky_relu, hardswish, silu };

// center, scale and shift have one value for each channel.
template <class T>
struct Normalization {
  const T *center, *scale, *shift;
  Activation activation = Activation::none;
  T slope = 0;
};

// A matrix with one row for each pixel and one column for each channel. Rows are `stride` elements apart.
template <class T>
struct PixelRows {
  T* data;
  int64_t stride;
};

struct MatrixSize {
  int64_t pixels, channels;
};

// Statistics of the pixels that were read so far, for each channel: the mean, and the sum of the squared differences
// from the mean.
struct Moments {
  int64_t pixels;
  double *mean, *squares;
};

// The gradient g of a batch norm's result, and the operands of its gradients. `y` is the result, or null if it is
// computed again from x. `masked` gets g where the activation lets it pass; it may be null.
template <class T>
struct NormalizedGradient {
  const T *g, *x, *y;
  T* masked;
  int64_t stride;  // of the rows of all four
};

// For each channel, sums over the pixels of g and of g * (x - center).
struct GradientSums {
  double *g, *gx;
};

// For each channel, dx = (g - constant - (x - center) * of_x) * scale. `of_x` may be null: then dx = g * scale.
template <class T>
struct GradientFactors {
  const T *scale, *of_x, *constant;
};

// One kind of Winograd's tiles, with mh x mw outputs (1 to 4 along each side). An image has `rows` x `columns` tiles of
// this kind. The first one begins at output (row0, column0). The last ones may cross the edge of the output.
struct WinogradTileKind {
  int mh, mw;
  int64_t row0, column0, rows, columns;

  int64_t frequencies() const { return (mh + 2) * (mw + 2); }
  int64_t per_image() const { return rows * columns; }
};

// One call of the Winograd kernel: the tiles [first_tile, last_tile) of one kind, numbered through all images, and the
// channel blocks [first_block, last_block). The kernel sets non_finite[n] to 1 if a sum of image n is not finite.
template <class T>
struct WinogradUnit {
  WinogradTileKind kind;
  int64_t first_tile, last_tile;
  int64_t first_block, last_block;
  T* workspace;  // workspace_size elements
  uint8_t* non_finite;
};

// A part of the tiles in Winograd's backward_weight (winograd_weight.h), in workspace: the transformed tiles of x and
// of the gradient, and the sums of their products. The steps are elements from one frequency to the next. `overwrite`:
// the products of this part are stored. Otherwise they are added.
template <class T>
struct WinogradSums {
  WinogradTileKind kind;
  int64_t first_tile, tiles;
  bool overwrite;
  int64_t x_step, gradient_step, product_step;
  T *x, *gradient, *product;
};

}  // namespace fastconv
