// Groups of few channels, such as depthwise convolutions (kernels/thin_groups.h). A unit of work is one tile of rows
// and one block of channels. The unit is copied to workspace, so that the kernels read dense memory. This copy also
// converts 16-bit tensors. Their results are computed some rows at a time, and the copy to the tensor rounds them.
#include "../memory/channel_blocks.h"
#include "../memory/packed_weights.h"
#include "../memory/phases.h"
#include "epilogue.h"
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

// A tile has about this many input pixels. One block of their channels has 128 KB and fits in the second-level cache.
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
          if (group == 1) {
            std::memcpy(to, packed + at * blocks.width, static_cast<size_t>(blocks.width) * sizeof(T));
            continue;
          }
          for (int64_t c = 0; c < blocks.width; ++c) {
            to[c] = packed[(c % group * RS + at) * blocks.width + c / group * group + k];
          }
        }
      }
    }
  }
}

// ---- units of work -----------------------------------------------------------------------------------------------

// One line of channels of one image (memory/channel_blocks.h): reads it and computes its outputs.
template <class Elements>
struct Unit {
  using T = typename Elements::Computed;

  const LineReader<Elements>& reader;
  int64_t image;
  ChannelRange c;

  // Copies these rows and columns to a dense tile. Pixels outside of the image are zero.
  GroupTile<T> read(const Rows& rows, const Rows& columns, Workspace use) const {
    T* to = workspace<T>(use, rows.count * columns.count * line_channels<Elements>);
    reader.copy(image, rows, columns, c, to);
    return {to, columns.count * block_channels<T>(), rows.first, rows.count};
  }

  // The input that these rows of outputs read.
  GroupTile<T> input_of(const Conv2dShape& s, const Rows& y) const {
    const Rows columns{-s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w)};
    return read(rows_read_by(s, y), columns, Workspace::input_tile);
  }

  // Calls body(i, channels) for each block of the line.
  template <class Body>
  void for_each_block(const Body& body) const {
    const int64_t width = block_channels<T>();
    for (int64_t i = 0, first = c.first; first < c.last; ++i, first += width) {
      body(i, ChannelRange{first, std::min(first + width, c.last)});
    }
  }

  // Computes some rows of outputs. `y` is the result of the first block.
  void forward(const Conv2dShape& s, const GroupTile<T>& x, const PackedWeight<T>& all, GroupResult<T> y,
               int64_t y_block) const {
    for_each_block([&](int64_t i, const ChannelRange& of) {
      y.channels = of.last - of.first;
      kernel<T>().forward(s, block_of(x, i), {all.data + of.first * s.taps(), all.bias ? all.bias + of.first : nullptr},
                          y);
      y.data += y_block;
    });
  }

  // Block i of a tile that was read.
  static GroupTile<T> block_of(GroupTile<T> tile, int64_t i) {
    tile.data += i * tile.rows * tile.row;
    return tile;
  }
};

template <class Elements>
Blocks lines_of(const Conv2dShape& s) {
  return {1, s.C, line_channels<Elements>};
}

// Calls body(tile, unit) for each tile, image and line of channels, in parallel.
template <class Elements, class Body>
void for_each_unit(const Tiles& tiles, const LineReader<Elements>& x, const Blocks& lines, const Body& body) {
  parallel_for_each(tiles.count() * lines.count(), [&](int64_t i) {
    const Tile tile = tiles[i / lines.count()];
    const int64_t line = i % lines.count();
    for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
      body(tile, Unit<Elements>{x, n, {lines.first_channel(line), lines.first_channel(line + 1)}});
    }
  });
}

// Calls body(part) for parts of `count` rows each.
template <class Body>
void for_each_part(const Rows& rows, int64_t count, const Body& body) {
  for (int64_t row = rows.first; row < rows.end(); row += count) body(Rows{row, std::min(count, rows.end() - row)});
}

// Convolution, ReLU and max-pooling: each tile of the convolution is computed to workspace and then pooled.
template <class T>
void convolve_and_pool(const Forward& call, const LineReader<PlainElements<T>>& x, const PackedWeight<T>& weight) {
  const FusedShape& f = call.shape;
  const Conv2dShape& s = f.conv;
  const Blocks blocks = blocks_of<T>(s);
  const NhwcWriter<T> y(call.output);
  const Tiles tiles(s.N, f.pool.P, f.pool.Q, ceil_div(y.tile_pixels(tile_pixels), pixels_between_windows(f.pool)));
  for_each_tile(tiles, [&](const Tile& tile) {
    const Tile rows = convolution_rows(f, tile);
    T* conv = workspace<T>(Workspace::intermediate, rows.images * rows.rows * s.Q * s.K);
    for (int64_t n = 0; n < rows.images; ++n) {
      for (int64_t block = 0; block < blocks.count(); ++block) {
        const ChannelRange c{blocks.first_channel(block), blocks.first_channel(block + 1)};
        const Unit<PlainElements<T>> unit{x, rows.image + n, c};
        T* to = conv + n * rows.rows * s.Q * s.K + c.first;
        unit.forward(s, unit.input_of(s, {rows.row, rows.rows}), weight,
                     {to, s.Q * s.K, s.K, rows.row, rows.rows, s.Q, c.last - c.first}, 0);
      }
    }
    T* to = y.tile(tile);
    kernels().conv2d<T>().fused.relu_max_pool2d(
        f.pool, {conv, rows.images, rows.row, rows.rows},
        {to, call.argmax_from(tile.image, tile.row), tile.images, tile.row, tile.rows});
    y.finish(tile, to, 0, s.K);
  });
}

template <class Elements>
void convolve(const Elements& elements, const Forward& call, const LineReader<Elements>& x,
              const PackedWeight<typename Elements::Computed>& weight) {
  using T = typename Elements::Computed;
  const Conv2dShape& s = call.shape.conv;
  const LineWriter<Elements> y(elements, call.output);
  const TileEpilogue<T, typename Elements::Stored> epilogue(call);
  const Tiles tiles(s.N, s.P, s.Q, ceil_div(tile_input_pixels, s.stride_h * s.stride_w));
  for_each_unit(tiles, x, lines_of<Elements>(s), [&](const Tile& tile, const Unit<Elements>& unit) {
    const GroupTile<T> from = unit.input_of(s, {tile.row, tile.rows});
    for_each_part({tile.row, tile.rows}, y.rows_at_once(), [&](const Rows& rows) {
      const LineRows<T> to = y.begin(unit.image, rows, unit.c);
      unit.forward(s, from, weight, {to.data, s.Q * to.pixel, to.pixel, rows.first, rows.count, s.Q, 0}, to.block);
      const int64_t first = (unit.image * s.P + rows.first) * s.Q;
      unit.for_each_block([&](int64_t i, const ChannelRange& c) {
        epilogue.apply_to_block(elements, to.data + i * to.block, to.pixel, first, rows.count * s.Q, c);
      });
      y.finish(unit.image, rows, unit.c, to);
    });
  });
}

}  // namespace

template <class Elements>
void thin_groups_forward(const Elements& elements, const Forward& call) {
  using Stored = typename Elements::Stored;
  using T = typename Elements::Computed;
  constexpr bool reduced = !std::is_same_v<Stored, T>;
  const Conv2dShape& s = call.shape.conv;
  const Bias<T> bias(reduced && call.bias ? widened(call.bias, Workspace::wide_bias) : call.bias, call.weight);
  const Tensor from = dense(call.weight);
  const auto packed = packed_weight(
      s, from, {Packing::thin_groups, 0}, packed_size<T>(s) * static_cast<int64_t>(sizeof(T)), Workspace::packed_weight,
      [&, krsc = is_nhwc(from)](const void* values, void* to) {
        const T* weight = elements.load(static_cast<const Stored*>(values), from.numel(), Workspace::wide_weight);
        pack<T>(s, weight, krsc, static_cast<T*>(to));
      });
  const PackedWeight<T> weight{static_cast<const T*>(packed.get()), bias.data};
  const LineReader<Elements> x(elements, call.input);
  if constexpr (!reduced) {
    if (call.argmax) return convolve_and_pool(call, x, weight);
  }
  convolve(elements, call, x, weight);
}

template <class Elements>
void thin_groups_backward_data(const Elements& elements, const Conv2dShape& s, const Tensor& grad_output,
                               const Tensor& weight, const Tensor& grad_input) {
  using T = typename Elements::Computed;
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
  const LineReader<Elements> g(elements, grad_output);
  const LineWriter<Elements> dx(elements, grad_input);
  const Rows g_columns = rows_of(columns, {0, columns[0].count});
  // Tiles count steps of `stride_h` rows. Each step has one row of every phase. A tile has tile_input_pixels of dx.
  // If a tile has that many pixels of grad_output instead, 64 3x3 /2, 112x112 takes 1150 us instead of 880 (batch of 8,
  // 2 threads of Zen 5).
  const Tiles tiles(s.N, rows[0].count, columns[0].count, ceil_div(tile_input_pixels, s.stride_h * s.stride_w));
  const int64_t steps_at_once = ceil_div(dx.rows_at_once(), s.stride_h);
  for_each_unit(tiles, g, lines_of<Elements>(s), [&](const Tile& tile, const Unit<Elements>& unit) {
    const GroupTile<T> from = unit.read(rows_of(rows, {tile.row, tile.rows}), g_columns, Workspace::input_tile);
    for_each_part({tile.row, tile.rows}, steps_at_once, [&](const Rows& steps) {
      const int64_t first = steps.first * s.stride_h, last = std::min(s.H, steps.end() * s.stride_h);
      const LineRows<T> to = dx.begin(unit.image, {first, last - first}, unit.c);
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
                                 0};
          GroupTile<T> x = from;
          x.data += (-column.pad - g_columns.first) * block_channels<T>();
          unit.forward(f, x, {of_phase, nullptr}, y, to.block);
          of_phase += packed_size<T>(f);
        }
      }
      dx.finish(unit.image, {first, last - first}, unit.c, to);
    });
  });
}

template <class Elements>
void thin_groups_backward_weight(const Elements& elements, const Conv2dShape& s, const Tensor& grad_output,
                                 const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
  using T = typename Elements::Computed;
  const Blocks lines = lines_of<Elements>(s);
  const Tiles tiles(s.N, s.P, s.Q, ceil_div(tile_input_pixels, s.stride_h * s.stride_w));
  const Pieces<T> pieces(s, std::min({affordable_pieces<T>(s), ceil_div(wanted_pieces, lines.count()), tiles.count()}));
  const LineReader<Elements> x(elements, input), g(elements, grad_output);
  const int64_t taps = s.taps();
  const Rows columns{-s.pad_w, reach(s.Q, s.stride_w, s.S, s.dilation_w)};
  pieces.for_each(lines.count(), [&](int64_t piece, int64_t line) {
    const ChannelRange c{lines.first_channel(line), lines.first_channel(line + 1)};
    const WeightSums<T> all = pieces.at(piece, taps * s.K);
    zero_channels(all.weight, taps, s.K, c.first, c.last);
    zero_channels(all.bias, 1, s.K, c.first, c.last);
    pieces.for_each_tile(tiles, piece, [&](const Tile& tile) {
      const Rows rows{tile.row * s.stride_h - s.pad_h, reach(tile.rows, s.stride_h, s.R, s.dilation_h)};
      for (int64_t n = tile.image; n < tile.image + tile.images; ++n) {
        const Unit<Elements> of_x{x, n, c}, of_g{g, n, c};
        const GroupTile<T> from = of_x.read(rows, columns, Workspace::input_tile);
        const GroupTile<T> gradient = of_g.read({tile.row, tile.rows}, {0, s.Q}, Workspace::output_tile);
        of_x.for_each_block([&](int64_t block, const ChannelRange& k) {
          kernel<T>().backward_weight(s, of_x.block_of(from, block), of_g.block_of(gradient, block),
                                      {all.weight + k.first, all.bias + k.first}, k.last - k.first);
        });
      }
    });
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(Elements)                                                                         \
  template void thin_groups_forward(const Elements&, const Forward&);                                          \
  template void thin_groups_backward_data(const Elements&, const Conv2dShape&, const Tensor&, const Tensor&,   \
                                          const Tensor&);                                                      \
  template void thin_groups_backward_weight(const Elements&, const Conv2dShape&, const Tensor&, const Tensor&, \
                                            const Tensor&, const Tensor&);
FASTCONV_INSTANTIATE(PlainElements<float>)
FASTCONV_INSTANTIATE(PlainElements<double>)
FASTCONV_INSTANTIATE(ReducedElements)

}  // namespace fastconv::cpu
