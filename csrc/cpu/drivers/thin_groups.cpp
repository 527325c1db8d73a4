// Groups of few channels, such as depthwise convolutions (kernels/thin_groups.h). A unit of work is one tile of rows
// and one block of channels. The unit is copied to workspace, so that the kernels read dense memory.
#include "../memory/packed_weights.h"
#include "../memory/phases.h"
#include "epilogue.h"
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

// A tile has about this many input pixels. One block of channels of them has 128 KB and fits in the second-level cache.
constexpr int64_t tile_input_pixels = 2048;

template <class T>
const ThinGroupsKernels<T>& kernel() {
  return kernels().conv2d<T>().thin_groups;
}

template <class T>
Blocks blocks_of(const Conv2dShape& s) {
  return {1, s.C, kernel<T>().block};
}

// ---- weights -----------------------------------------------------------------------------------------------------

template <class T>
int64_t packed_size(const Conv2dShape& s) {
  return blocks_of<T>(s).count() * s.taps() * kernel<T>().block;
}

// Packs a weight as [block][c][r, s][block of k]. With `krsc`, `weight` is [k][r][s][c] in memory, else [k][c][r][s].
template <class T>
void pack(const Conv2dShape& s, const T* weight, bool krsc, T* packed) {
  const Blocks blocks = blocks_of<T>(s);
  const int64_t taps = s.taps(), RS = s.R * s.S, group = s.group_C();
  const int64_t from_c = krsc ? 1 : RS, from_tap = krsc ? group : 1;
  std::memset(packed, 0, static_cast<size_t>(packed_size<T>(s)) * sizeof(T));
  for (int64_t k = 0; k < s.K; ++k) {
    const T* from = weight + k * taps;
    T* to = packed + k / blocks.width * taps * blocks.width + k % blocks.width;
    for (int64_t c = 0; c < group; ++c) {
      for (int64_t tap = 0; tap < RS; ++tap) to[(c * RS + tap) * blocks.width] = from[c * from_c + tap * from_tap];
    }
  }
}

// Packs the taps of one phase of backward_data. `packed` has all taps. The taps are written in reverse order, and the
// input and output channels of each group are exchanged.
template <class T>
void pack_phase(const Conv2dShape& s, const Phase& rows, const Phase& columns, const T* packed, T* to) {
  const Blocks blocks = blocks_of<T>(s);
  const int64_t RS = s.R * s.S, group = s.group_C();
  for (int64_t block = 0; block < blocks.count(); ++block, packed += s.taps() * blocks.width) {
    for (int64_t k = 0; k < group; ++k) {
      for (int64_t r = rows.taps; r-- > 0;) {
        for (int64_t tap = columns.taps; tap-- > 0; to += blocks.width) {
          const int64_t at = (rows.tap + r * rows.tap_step) * s.S + columns.tap + tap * columns.tap_step;
          for (int64_t c = 0; c < blocks.width; ++c) {
            to[c] = packed[(c % group * RS + at) * blocks.width + c / group * group + k];
          }
        }
      }
    }
  }
}

// ---- units of work -----------------------------------------------------------------------------------------------

// One block of channels of one image: reads it and computes its outputs.
template <class T>
struct Unit {
  const NhwcReader<T>& reader;
  const Blocks& blocks;
  int64_t image, block;

  int64_t first_channel() const { return blocks.first_channel(block); }
  int64_t channels() const { return blocks.first_channel(block + 1) - first_channel(); }

  // Copies these rows and columns to a dense tile. Pixels outside of the image are zero.
  GroupTile<T> read(const Rows& rows, const Rows& columns, Workspace use) const {
    T* to = workspace<T>(use, rows.count * columns.count * blocks.width);
    reader.copy_block(image, rows.first, rows.count, columns.first, columns.count,
                      {first_channel(), first_channel() + channels()}, to);
    return {to, columns.count * blocks.width, rows.first, rows.count};
  }

  PackedWeight<T> weight(const Conv2dShape& s, const PackedWeight<T>& all) const {
    return {all.data + block * s.taps() * blocks.width, all.bias ? all.bias + first_channel() : nullptr};
  }

  // Computes the output rows y.first to y.first + y.rows.
  void forward(const Conv2dShape& s, const PackedWeight<T>& all, const GroupResult<T>& y) const {
    const Rows columns{-s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w)};
    const GroupTile<T> x = read(rows_read_by(s, {y.first, y.rows}), columns, Workspace::input_tile);
    kernel<T>().forward(s, x, weight(s, all), y);
  }
};

// Calls body(tile, unit) for each tile, image and block of channels, in parallel.
template <class T, class Body>
void for_each_unit(const Tiles& tiles, const NhwcReader<T>& x, const Blocks& blocks, const Body& body) {
  parallel_for(0, tiles.count() * blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i / blocks.count()];
      for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
        body(tile, Unit<T>{x, blocks, n, i % blocks.count()});
      }
    }
  });
}

// Where a unit writes its rows. For an NCHW tensor, this is workspace, and finish() transposes it to the tensor.
template <class T>
class UnitResult {
 public:
  UnitResult(T* tensor, bool nhwc, int64_t C, int64_t H, int64_t W, const Unit<T>& unit, const Rows& rows)
      : nhwc_(nhwc), C_(C), H_(H), W_(W), unit_(unit), rows_(rows), tensor_(tensor) {
    pixel = nhwc ? C : unit.blocks.width;
    data = nhwc ? tensor + (unit.image * H + rows.first) * W * C + unit.first_channel()
                : workspace<T>(Workspace::output_tile, rows.count * W * unit.blocks.width);
  }

  void finish() const {
    if (nhwc_) return;
    T* to = tensor_ + ((unit_.image * C_ + unit_.first_channel()) * H_ + rows_.first) * W_;
    kernels().conv2d<T>().transpose(data, pixel, rows_.count * W_, unit_.channels(), to, H_ * W_);
  }

  T* data;
  int64_t pixel;  // the stride of the columns

 private:
  bool nhwc_;
  int64_t C_, H_, W_;
  Unit<T> unit_;
  Rows rows_;
  T* tensor_;
};

// Convolution, ReLU and max-pooling: each tile of the convolution is computed to workspace and then pooled.
template <class T>
void convolve_and_pool(const Forward& call, const NhwcReader<T>& x, const PackedWeight<T>& weight) {
  const FusedShape& f = call.shape;
  const Conv2dShape& s = f.conv;
  const Blocks blocks = blocks_of<T>(s);
  const NhwcWriter<T> y(call.output);
  const Tiles tiles(s.N, f.pool.P, f.pool.Q, ceil_div(y.tile_pixels(tile_pixels), pixels_between_windows(f.pool)));
  parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i], rows = convolution_rows(f, tile);
      T* conv = workspace<T>(Workspace::intermediate, rows.images * rows.rows * s.Q * s.K);
      for (int64_t n = 0; n < rows.images; ++n) {
        for (int64_t block = 0; block < blocks.count(); ++block) {
          const Unit<T> unit{x, blocks, rows.image + n, block};
          T* to = conv + n * rows.rows * s.Q * s.K + unit.first_channel();
          unit.forward(s, weight, {to, s.Q * s.K, s.K, rows.row, rows.rows, s.Q, unit.channels()});
        }
      }
      T* to = y.tile(tile);
      kernels().conv2d<T>().fused.relu_max_pool2d(
          f.pool, {conv, rows.images, rows.row, rows.rows},
          {to, call.argmax_from(tile.image, tile.row), tile.images, tile.row, tile.rows});
      y.finish(tile, to, 0, s.K);
    }
  });
}

}  // namespace

template <class T>
void thin_groups_forward(const Forward& call) {
  const Conv2dShape& s = call.shape.conv;
  const Bias<T> bias(call.bias, call.weight);
  const Tensor from = dense(call.weight);
  const auto packed =
      packed_weight(s, from, {Packing::thin_groups, 0}, packed_size<T>(s) * static_cast<int64_t>(sizeof(T)),
                    Workspace::packed_weight, [&, krsc = is_nhwc(from)](const void* values, void* to) {
                      pack<T>(s, static_cast<const T*>(values), krsc, static_cast<T*>(to));
                    });
  const PackedWeight<T> weight{static_cast<const T*>(packed.get()), bias.data};
  const NhwcReader<T> x(call.input);
  if (call.argmax) return convolve_and_pool(call, x, weight);
  const bool nhwc = is_nhwc(call.output);
  T* y = mutable_data<T>(call.output);
  const TileEpilogue<T> epilogue(call);
  const Tiles tiles(s.N, s.P, s.Q, ceil_div(tile_input_pixels, s.stride_h * s.stride_w));
  for_each_unit(tiles, x, blocks_of<T>(s), [&](const Tile& tile, const Unit<T>& unit) {
    const UnitResult<T> to(y, nhwc, s.K, s.P, s.Q, unit, {tile.row, tile.rows});
    unit.forward(s, weight, {to.data, s.Q * to.pixel, to.pixel, tile.row, tile.rows, s.Q, unit.channels()});
    epilogue.apply(to.data, to.pixel, (unit.image * s.P + tile.row) * s.Q, tile.rows * s.Q,
                   {unit.first_channel(), unit.first_channel() + unit.channels()});
    to.finish();
  });
}

template <class T>
void thin_groups_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                               const Tensor& grad_input) {
  const auto rows = phases(s.H, s.stride_h, s.dilation_h, s.R, s.pad_h);
  const auto columns = phases(s.W, s.stride_w, s.dilation_w, s.S, s.pad_w);
  T* all_taps = workspace<T>(Workspace::packed_weight, packed_size<T>(s));
  T* packed = workspace<T>(Workspace::phase_weight, packed_size<T>(s));  // all phases, one after the other
  pack<T>(s, data<T>(weight), is_nhwc(weight), all_taps);
  T* end = packed;
  for (const Phase& row : rows) {
    for (const Phase& column : columns) {
      pack_phase(s, row, column, all_taps, end);
      end += packed_size<T>(shape_of(s, row, column));
    }
  }
  const NhwcReader<T> g(grad_output);
  const bool nhwc = is_nhwc(grad_input);
  T* dx = mutable_data<T>(grad_input);
  const Rows g_columns = rows_of(columns, {0, columns[0].count});
  // Tiles count steps of `stride_h` rows. Each step has one row of every phase.
  const Tiles tiles(s.N, rows[0].count, columns[0].count, tile_input_pixels);
  for_each_unit(tiles, g, blocks_of<T>(s), [&](const Tile& tile, const Unit<T>& unit) {
    const Rows steps{tile.row, tile.rows};
    const int64_t first = steps.first * s.stride_h, last = std::min(s.H, steps.end() * s.stride_h);
    const UnitResult<T> to(dx, nhwc, s.C, s.H, s.W, unit, {first, last - first});
    const GroupTile<T> from = unit.read(rows_of(rows, steps), g_columns, Workspace::input_tile);
    const T* of_phase = packed;
    for (const Phase& row : rows) {
      for (const Phase& column : columns) {
        const Conv2dShape f = shape_of(s, row, column);
        const int64_t count = std::min(steps.end(), row.count) - steps.first;
        const GroupResult<T> y{to.data + (row.first * s.W + column.first) * to.pixel,
                               s.stride_h * s.W * to.pixel,
                               s.stride_w * to.pixel,
                               steps.first,
                               std::max<int64_t>(0, count),
                               column.count,
                               unit.channels()};
        GroupTile<T> x = from;
        x.data += (-column.pad - g_columns.first) * unit.blocks.width;
        kernel<T>().forward(f, x, unit.weight(f, {of_phase, nullptr}), y);
        of_phase += packed_size<T>(f);
      }
    }
    to.finish();
  });
}

template <class T>
void thin_groups_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                                 const Tensor& grad_weight, const Tensor& grad_bias) {
  const Blocks blocks = blocks_of<T>(s);
  const Tiles tiles(s.N, s.P, s.Q, ceil_div(tile_input_pixels, s.stride_h * s.stride_w));
  const Pieces<T> pieces(s,
                         std::min({affordable_pieces<T>(s), ceil_div(wanted_pieces, blocks.count()), tiles.count()}));
  const NhwcReader<T> x(input), g(grad_output);
  const int64_t taps = s.taps();
  const Rows columns{-s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w)};
  parallel_for(0, pieces.count * blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i / blocks.count(), block = i % blocks.count();
      const int64_t c0 = blocks.first_channel(block), c1 = blocks.first_channel(block + 1);
      const WeightSums<T> all = pieces.at(piece, taps * s.K);
      zero_channels(all.weight, taps, s.K, c0, c1);
      zero_channels(all.bias, 1, s.K, c0, c1);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const Rows rows{tile.row * s.stride_h - s.pad_h, reach(tile.rows, s.stride_h, s.R, s.dilation_h)};
        for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
          const GroupTile<T> from = Unit<T>{x, blocks, n, block}.read(rows, columns, Workspace::input_tile);
          const GroupTile<T> gradient =
              Unit<T>{g, blocks, n, block}.read({tile.row, tile.rows}, {0, s.Q}, Workspace::output_tile);
          kernel<T>().backward_weight(s, from, gradient, {all.weight + c0, all.bias + c0}, c1 - c0);
        }
      }
    }
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(T)                                                                                 \
  template void thin_groups_forward<T>(const Forward&);                                                         \
  template void thin_groups_backward_data<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&);  \
  template void thin_groups_backward_weight<T>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&, \
                                               const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
