// Large calls are computed band by band. A band is some images, or some rows of one image. So the copies that a call
// makes of its tensors (in float32, in NHWC, without the zeros) have the size of a band and not of the tensors.
//
// A band is a call with its own shape. Its first output begins pad_h rows above its first input row. The padding
// below its last input row follows from its number of output rows and may differ from pad_h. Bands depend on the shape
// alone and never on the number of threads.
#pragma once

#include <algorithm>
#include <optional>

#include "../../tensor.h"
#include "../plan.h"
#include "tiles.h"
#include "workspace.h"

namespace fastconv::cpu {

// Cuts images of rows x width pixels into bands. A pixel has `elements` elements.
inline Tiles bands(int64_t images, int64_t rows, int64_t width, int64_t elements, int64_t weight, bool by_rows,
                   const BandLimits& limits) {
  const int64_t all = images * rows * width;
  int64_t pixels = std::max<int64_t>(1, std::max(limits.band, limits.weights * weight) / (2 * elements));
  if (!by_rows) pixels = std::max(pixels, rows * width);
  if (all <= limits.call / elements) pixels = std::max<int64_t>(1, all);
  return Tiles(images, rows, width, pixels, 1);
}

inline Tensor part_of(const Tensor& tensor, const Tile& images, const Rows& rows) {
  Tensor part = tensor;
  if (images.images != tensor.size(0)) part = slice(part, 0, images.image, images.images);
  if (rows.count != tensor.size(2)) part = slice(part, 2, rows.first, rows.count);
  return part;
}

// Images can be cut into rows only if every output reads at least one row of the image.
inline bool rows_divide(const Conv2dShape& s) { return s.pad_h <= (s.R - 1) * s.dilation_h; }

inline int64_t elements_per_output(const Conv2dShape& s) {
  return s.K + s.C * std::min(s.stride_h, s.H) * std::min(s.stride_w, s.W);
}

// The shape of the call that computes a tile of outputs.
inline Conv2dShape band_of(const Conv2dShape& s, const Tile& tile) {
  const Rows rows = rows_read_by(s, {tile.row, tile.rows});
  Conv2dShape band = s;
  band.N = tile.images, band.P = tile.rows, band.H = rows.count;
  band.pad_h = rows.first - (tile.row * s.stride_h - s.pad_h);
  return band;
}

// The outputs of the band that computes these rows of grad_input: all that read the rows, and at least one. The first
// one begins at or above the first row, so pad_h of the band is not negative.
inline Rows outputs_of_data_band(const Conv2dShape& s, const Rows& rows) {
  const Rows outputs = outputs_that_read(s, rows);
  const int64_t first = std::min({outputs.first, (rows.first + s.pad_h) / s.stride_h, s.P - 1});
  return {first, std::max(outputs.end(), first + 1) - first};
}

// Sums the gradients of the bands. The first band writes directly to the sums.
class BandSum {
 public:
  BandSum(const Tensor& weight, const Tensor& bias) : weight_(weight), bias_(bias) {}

  template <class Run>
  void add(const Run& run) {
    if (first_) {
      first_ = false;
      return run(weight_, bias_);
    }
    if (!next_weight_) next_weight_ = empty_as(weight_), next_bias_ = empty_as(bias_);
    run(*next_weight_, *next_bias_);
    dispatch_floating(weight_, "conv2d_backward_weight", [&](auto type) {
      using T = decltype(type);
      add_up<T>(weight_, *next_weight_);
      add_up<T>(bias_, *next_bias_);
    });
  }

 private:
  template <class T>
  static void add_up(const Tensor& sum, const Tensor& term) {
    T* to = mutable_data<T>(sum);
    const T* from = data<T>(term);
    parallel_for(0, sum.numel(), grain_size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
    });
  }

  Tensor weight_, bias_;
  std::optional<Tensor> next_weight_, next_bias_;
  bool first_ = true;
};

// A band: its shape, images, rows of the input and rows of pooling windows.
struct Band {
  FusedShape shape;
  Tile images;
  Rows input, windows;
};

// The band that computes a tile of windows. Every row of the convolution belongs to a band, even if no window reads it.
// Its gradient is zero, but zero times an infinite input is NaN, which must reach the gradient of the weight.
inline Band band_of(const FusedShape& f, const Tile& tile) {
  Rows conv = rows_read_by(f.pool, {tile.row, tile.rows});
  if (tile.row == 0) conv = {0, conv.end()};
  const int64_t last = tile.row + tile.rows, next = last * f.pool.stride_h - f.pool.pad_h;
  const int64_t end = last == f.pool.P ? f.conv.P : std::clamp(next, conv.end(), f.conv.P);
  conv.count = end - conv.first;
  const Tile outputs{tile.image, tile.images, conv.first, conv.count};
  Band band{f, tile, rows_read_by(f.conv, conv), {tile.row, tile.rows}};
  band.shape.conv = band_of(f.conv, outputs);
  Pool2dShape& pool = band.shape.pool;
  pool.N = tile.images, pool.H = conv.count, pool.P = tile.rows;
  pool.pad_h = conv.first - (tile.row * f.pool.stride_h - f.pool.pad_h);
  return band;
}

// Calls run(band) for each band of windows.
template <class Run>
void for_each_band(const FusedShape& f, bool by_rows, const BandLimits& limits, const Run& run) {
  const Conv2dShape& s = f.conv;
  const int64_t pixels = std::max<int64_t>(1, s.P * s.Q / (f.pool.P * f.pool.Q));
  const Tiles tiles = bands(s.N, f.pool.P, f.pool.Q, elements_per_output(s) * pixels, s.K * s.taps(),
                            by_rows && rows_divide(s), limits);
  if (tiles.count() <= 1) return run(Band{f, {0, s.N, 0, f.pool.P}, {0, s.H}, {0, f.pool.P}});
  for (int64_t i = 0; i < tiles.count(); ++i) run(band_of(f, tiles[i]));
}

// Calls run(band) for each band of the input's rows. All windows that reach these rows belong to the band.
template <class Run>
void for_each_data_band(const FusedShape& f, bool by_rows, const BandLimits& limits, const Run& run) {
  const Conv2dShape& s = f.conv;
  const int64_t elements = s.C + s.K / (s.stride_h * s.stride_w) + 1;
  const Tiles tiles = bands(s.N, s.H, s.W, elements, s.K * s.taps(), by_rows, limits);
  if (tiles.count() <= 1) return run(Band{f, {0, s.N, 0, f.pool.P}, {0, s.H}, {0, f.pool.P}});
  for (int64_t i = 0; i < tiles.count(); ++i) {
    const Tile tile = tiles[i];
    const Rows outputs = outputs_of_data_band(s, {tile.row, tile.rows});
    const Pool2dShape& pool = f.pool;
    const Rows reading = outputs_that_read(pool, outputs);
    const int64_t end = std::max<int64_t>(reading.end(), 1), first = std::min(reading.first, end - 1);
    const Rows windows{first, end - first}, read = rows_read_by(pool, windows);
    // Rows of the convolution between windows belong to the band, too.
    const int64_t row = std::min(read.first, outputs.first), row_end = std::max(read.end(), outputs.end());
    Band band{f, tile, {tile.row, tile.rows}, windows};
    Conv2dShape& conv = band.shape.conv;
    conv.N = tile.images, conv.H = tile.rows, conv.P = row_end - row;
    conv.pad_h = tile.row + s.pad_h - row * s.stride_h;
    band.shape.pool.N = tile.images, band.shape.pool.H = conv.P, band.shape.pool.P = windows.count;
    band.shape.pool.pad_h = row - (first * pool.stride_h - pool.pad_h);
    run(band);
  }
}

}  // namespace fastconv::cpu
