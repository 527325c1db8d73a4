// Cuts work into tiles (several small images, or some rows of one large image) and into blocks of channels. Cuts depend
// on the shape alone and never on the number of threads, so sums do not depend on it either.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../capability.h"
#include "../kernels/range.h"
#include "workspace.h"

namespace fastconv {

// The number of independent pieces that a call is cut into, if possible: enough for 16 cores.
constexpr int64_t wanted_pieces = 16;

struct Tile {
  int64_t image, images;  // first image, how many
  int64_t row, rows;      // rows of each of them
};

// Cuts `images` images of rows x width pixels into tiles of about `pixels` pixels. `pieces`: the number of tiles to
// aim for if the images are small.
class Tiles {
 public:
  Tiles(int64_t images, int64_t rows, int64_t width, int64_t pixels, int64_t pieces = wanted_pieces)
      : images_(images), rows_(rows) {
    const int64_t image_pixels = rows * width > 0 ? rows * width : 1;
    row_tiles_ = ceil_div(image_pixels, 2 * pixels);
    if (row_tiles_ > rows) row_tiles_ = rows;
    if (row_tiles_ < 1) row_tiles_ = 1;
    images_per_tile_ = row_tiles_ > 1 ? 1 : pixels / image_pixels;
    // At most 1 / pieces of the images, but at least 12 pixels: a register block of AVX-512, or two of other levels.
    const int64_t fair_share = ceil_div(images, pieces), least = ceil_div(12, image_pixels);
    const int64_t most = fair_share > least ? fair_share : least;
    if (images_per_tile_ > most) images_per_tile_ = most;
    if (images_per_tile_ < 1) images_per_tile_ = 1;
    count_ = ceil_div(images, images_per_tile_) * row_tiles_;
  }

  int64_t count() const { return count_; }

  Tile operator[](int64_t i) const {
    const int64_t first = i / row_tiles_ * images_per_tile_, part = i % row_tiles_;
    const int64_t row = rows_ * part / row_tiles_, row_end = rows_ * (part + 1) / row_tiles_;
    const int64_t left = images_ - first;
    return {first, left < images_per_tile_ ? left : images_per_tile_, row, row_end - row};
  }

 private:
  int64_t images_, rows_, row_tiles_, images_per_tile_, count_;
};

// Calls body(tile) for each tile, in parallel.
template <class Body>
void for_each_tile(const Tiles& tiles, const Body& body) {
  parallel_for_each(tiles.count(), [&](int64_t i) { body(tiles[i]); });
}

// The input rows, or columns, that `outputs` neighbouring outputs read.
inline int64_t reach(int64_t outputs, int64_t stride, int64_t taps, int64_t dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

struct Rows {
  int64_t first, count;
  int64_t end() const { return first + count; }
};

// The rows of the image that these rows of outputs read, without padding. Shape: Conv2dShape or Pool2dShape.
template <class Shape>
Rows rows_read_by(const Shape& s, const Rows& outputs) {
  const int64_t first = outputs.first * s.stride_h - s.pad_h;
  const int64_t begin = std::clamp<int64_t>(first, 0, s.H);
  const int64_t end = std::clamp<int64_t>(first + reach(outputs.count, s.stride_h, s.R, s.dilation_h), begin, s.H);
  return {begin, end - begin};
}

// The rows of outputs that read these rows of the image, or that span them with a gap between two taps.
template <class Shape>
Rows outputs_that_read(const Shape& s, const Rows& rows) {
  const int64_t last_tap = (s.R - 1) * s.dilation_h - s.pad_h, first_tap = -s.pad_h;
  const int64_t end = Range(0, rows.end(), s.stride_h, first_tap, s.P).end;
  const int64_t begin = std::min(Range(rows.first, rows.end(), s.stride_h, last_tap, s.P).begin, end);
  return {begin, end - begin};
}

// The shape as the kernels of max-pooling see it: NCHW is N * C images of one channel.
inline Pool2dShape images_of(const Pool2dShape& s, bool nhwc) {
  Pool2dShape images = s;
  if (!nhwc) images.N = s.N * s.C, images.C = 1;
  return images;
}

// The channels of all groups in blocks of the kernels' width.
struct Blocks {
  int64_t groups, channels, width;

  int64_t per_group() const { return ceil_div(channels, width); }
  int64_t count() const { return groups * per_group(); }
  // The first channel of block i, counted over all groups. first_channel(count()) is the number of all channels.
  int64_t first_channel(int64_t i) const { return i / per_group() * channels + i % per_group() * width; }
};

namespace cpu {

template <class T>
const Conv2dKernels<T>& direct_kernels() {
  return kernels().conv2d<T>().direct;
}

// Blocks of input or output channels. `group_channels` is the number of them in a group.
template <class T>
Blocks channel_blocks(const Conv2dShape& s, int64_t group_channels) {
  return {s.groups, group_channels, direct_kernels<T>().block_lanes};
}

}  // namespace cpu
}  // namespace fastconv
