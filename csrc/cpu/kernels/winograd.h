// F(2x2, 3x3): 3 x 3 convolution of stride 1 with 16 multiplications for each 2 x 2 tile of outputs instead of 36
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.1):
//
//   Y = A' [ sum over c of (G w[k, c] G') * (B' x[c] B) ] A       x: the 4 x 4 pixels behind the tile
//
// The sum over c is 16 small matrix products, [tiles][C] x [C][K], one for each element ("frequency") of the transformed
// tile, done by the same micro-kernel as the direct convolution. A tile is one window of a 2 x 2 pool, so ReLU, maximum
// and argmax happen in the output transform.
//
// Tiles are numbered through all images, so only the last unit of a call is not full. A unit's V and M (transformed
// inputs, products) stay in the second-level cache. x and y are NHWC and dense, padding is not in place.
//
// conv2 of MnistCNN with pool, batch 64, 2 threads of Zen 4: 0.55 ms; direct 1.25. Error: half of direct's, as sums are
// shorter. An infinity or NaN in x or w spoils the whole tile, so results that are not finite are reported.
#pragma once

#include "conv2d_forward.h"

namespace fastconv::FC_LEVEL::winograd {

constexpr int side = 4;
constexpr int frequencies = side * side;
constexpr int64_t unit_tiles = 2 * block_rows;

// How many tiles a call has, and in what rows.
struct TileGrid {
  int64_t rows, columns;

  explicit TileGrid(const FusedShape& f) {
    const bool pooled = f.window() == 4;
    rows = pooled ? f.pool.P : ceil_div(f.conv.P, 2);
    columns = pooled ? f.pool.Q : ceil_div(f.conv.Q, 2);
  }
};

inline int64_t tile_count(const FusedShape& f) {
  const TileGrid grid(f);
  return f.conv.N * grid.rows * grid.columns;
}

// ---- transforms, one dimension -----------------------------------------------------------------------------------

// B' d
template <class T>
FC_INLINE void transform_input(Vec<T>& d0, Vec<T>& d1, Vec<T>& d2, Vec<T>& d3) {
  const Vec<T> sum = d1 + d2, difference = d2 - d1;
  d0 = d0 - d2;
  d3 = d1 - d3;
  d1 = sum;
  d2 = difference;
}

// G g
template <class T>
FC_INLINE void transform_weight(Vec<T> g0, Vec<T> g1, Vec<T> g2, Vec<T> (&u)[side]) {
  const Vec<T> outer = g0 + g2;
  u[0] = g0;
  u[1] = (outer + g1) * T(0.5);
  u[2] = (outer - g1) * T(0.5);
  u[3] = g2;
}

// A' m
template <class T>
FC_INLINE void transform_output(Vec<T> m0, Vec<T> m1, Vec<T> m2, Vec<T> m3, Vec<T>& y0, Vec<T>& y1) {
  y0 = m0 + m1 + m2;
  y1 = m1 - m2 - m3;
}

// ---- weights: [block of K][frequency][c][block_lanes of k] -----------------------------------------------------------

template <class T>
int64_t packed_size(const Conv2dShape& s) {
  return frequencies * s.C * round_up_to_lanes<T>(s.K);
}

// One block, out of what pack_weight_forward made of it. `rotated`: the kernel turned by half a circle, as backward_data
// convolves with it, which exchanges the first and the last frequency.
template <class T>
void pack_weight(const Conv2dShape& s, const T* packed, bool rotated, int64_t index, T* to) {
  const ChannelBlock<T> block(index, s.K);
  const int64_t width = block.vectors * lanes<T>;
  packed += block.first * 9 * s.C;
  to += block.first * frequencies * s.C;
  const auto place = [=](int i) { return rotated && i % 3 == 0 ? 3 - i : i; };
  for (int64_t i = 0; i < s.C * width; i += lanes<T>) {
    Vec<T> column[3][side];
    for (int64_t tap = 0; tap < 3; ++tap) {
      const T* from = packed + tap * s.C * width + i;
      transform_weight<T>(load(from), load(from + 3 * s.C * width), load(from + 6 * s.C * width), column[tap]);
    }
    for (int row = 0; row < side; ++row) {
      Vec<T> u[side];
      transform_weight<T>(column[0][row], column[1][row], column[2][row], u);
      for (int j = 0; j < side; ++j) store(to + (place(row) * side + place(j)) * s.C * width + i, u[j]);
    }
  }
}

// ---- one unit ----------------------------------------------------------------------------------------------------

// V[frequency][unit_tiles][C, rounded up], M[frequency][unit_tiles][block_lanes]
template <class T>
int64_t scratch_size(const Conv2dShape& s) {
  return frequencies * unit_tiles * (round_up_to_lanes<T>(s.C) + block_lanes<T>);
}

// The 4 x 4 pixels at (h0, w0) of one image. `edge`: some may lie outside of it, and are zero.
template <class T, bool edge>
void input_tile(const Conv2dShape& s, const T* image, int64_t h0, int64_t w0, T* v, int64_t v_step) {
  const T* origin = image + (h0 * s.W + w0) * s.C;
  for (int64_t c = 0; c < s.C; c += lanes<T>) {
    Vec<T> d[side][side];
#pragma GCC unroll 4
    for (int i = 0; i < side; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < side; ++j) {
        const bool inside = !edge || (h0 + i >= 0 && h0 + i < s.H && w0 + j >= 0 && w0 + j < s.W);
        d[i][j] = inside ? load_upto(origin + (i * s.W + j) * s.C + c, s.C - c) : Vec<T>{};
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < side; ++j) transform_input<T>(d[0][j], d[1][j], d[2][j], d[3][j]);
#pragma GCC unroll 4
    for (int i = 0; i < side; ++i) {
      transform_input<T>(d[i][0], d[i][1], d[i][2], d[i][3]);
#pragma GCC unroll 4
      for (int j = 0; j < side; ++j) store(v + (i * side + j) * v_step + c, d[i][j]);
    }
  }
}

enum class Epilogue { none, relu, relu_max_pool };

// One tile, one block of channels: M -> y and argmax of the tile's window or pixels. Adds to `spoilt` what is not zero
// where the sums are not finite.
template <class T, Epilogue epilogue>
FC_INLINE void output_tile(const FusedShape& f, const T* m, int64_t m_step, const ChannelBlock<T>& block, const T* bias,
                           T* y, uint8_t* argmax, int64_t n, int64_t row, int64_t column, Vec<T>& spoilt) {
  const Conv2dShape& s = f.conv;
  for (int v = 0; v < block.vectors; ++v) {
    const int64_t k = block.first + v * lanes<T>;
    const int64_t count = v < block.vectors - 1 ? lanes<T> : block.last_lanes;
    Vec<T> half[2][side];
#pragma GCC unroll 4
    for (int j = 0; j < side; ++j) {
      const T* from = m + j * m_step + v * lanes<T>;
      transform_output<T>(load(from), load(from + side * m_step), load(from + 2 * side * m_step),
                          load(from + 3 * side * m_step), half[0][j], half[1][j]);
    }
    const Vec<T> b = bias ? load_upto(bias + k, count) : Vec<T>{};
    Vec<T> out[2][2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      transform_output<T>(half[i][0], half[i][1], half[i][2], half[i][3], out[i][0], out[i][1]);
      out[i][0] += b;
      out[i][1] += b;
      spoilt += (out[i][0] + out[i][1]) * T(0);
    }
    if constexpr (epilogue == Epilogue::relu_max_pool) {
      WindowMax<T> max(out[0][0]);
      max.take(out[0][1], 1);
      max.take(out[1][0], 2);
      max.take(out[1][1], 3);
      const int64_t at = ((n * f.pool.P + row) * f.pool.Q + column) * s.K + k;
      max.store(y + at, argmax + at, count);
    } else {
      for (int i = 0; i < 2 && 2 * row + i < s.P; ++i) {
        for (int j = 0; j < 2 && 2 * column + j < s.Q; ++j) {
          const int64_t at = ((n * s.P + 2 * row + i) * s.Q + 2 * column + j) * s.K + k;
          if constexpr (epilogue == Epilogue::relu) {
            WindowMax<T>(out[i][j]).store(y + at, argmax + at, count);
          } else {
            store_upto(y + at, out[i][j], count);
          }
        }
      }
    }
  }
}

template <class T, int vectors>
void multiply(const T* v, int64_t v_step, int64_t C, const T* weight, T* m, int64_t tiles) {
  for (int64_t first = 0; first < tiles; first += block_rows) {
    const T* a[block_rows];
    for (int row = 0; row < block_rows; ++row) a[row] = v + (first + row < tiles ? first + row : first) * v_step;
    Block<T, vectors> acc = {};
    accumulate<T, vectors, false>(acc, a, {1, 0, 1, 0, C, 1}, weight, vectors * lanes<T>, 0);
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) {
#pragma GCC unroll 2
      for (int i = 0; i < vectors; ++i) store(m + (first + row) * block_lanes<T> + i * lanes<T>, acc.value[row][i]);
    }
  }
}

// Tiles [first, last), at most unit_tiles. False if a sum is not finite: then the tiles are to be computed directly.
template <class T, Epilogue epilogue>
bool unit(const FusedShape& f, const T* x, const T* packed, const T* bias, T* y, uint8_t* argmax, int64_t first,
          int64_t last, T* scratch) {
  const Conv2dShape& s = f.conv;
  const TileGrid grid(f);
  const int64_t v_row = round_up_to_lanes<T>(s.C), v_step = unit_tiles * v_row, m_step = unit_tiles * block_lanes<T>;
  T* v = scratch;
  T* m = scratch + frequencies * v_step;
  const auto each_tile = [&](auto visit) {
    int64_t n = first / (grid.rows * grid.columns), row = first / grid.columns % grid.rows,
            column = first % grid.columns;
    for (int64_t tile = 0; tile < last - first; ++tile) {
      visit(tile, n, row, column);
      if (++column < grid.columns) continue;
      column = 0;
      if (++row == grid.rows) row = 0, ++n;
    }
  };
  each_tile([&](int64_t tile, int64_t n, int64_t row, int64_t column) {
    const int64_t h0 = 2 * row - s.pad_h, w0 = 2 * column - s.pad_w;
    const bool inside = h0 >= 0 && h0 + side <= s.H && w0 >= 0 && w0 + side <= s.W;
    const auto run = inside ? input_tile<T, false> : input_tile<T, true>;
    run(s, x + n * s.H * s.W * s.C, h0, w0, v + tile * v_row, v_step);
  });
  Vec<T> spoilt = {};
  for (int64_t index = 0; index < ceil_div(s.K, block_lanes<T>); ++index) {
    const ChannelBlock<T> block(index, s.K);
    const T* weight = packed + block.first * frequencies * s.C;
    const auto run = block.vectors == 2 ? multiply<T, 2> : multiply<T, 1>;
    for (int i = 0; i < frequencies; ++i) {
      run(v + i * v_step, v_row, s.C, weight + i * s.C * block.vectors * lanes<T>, m + i * m_step, last - first);
    }
    each_tile([&](int64_t tile, int64_t n, int64_t row, int64_t column) {
      output_tile<T, epilogue>(f, m + tile * block_lanes<T>, m_step, block, bias, y, argmax, n, row, column, spoilt);
    });
  }
  return nonzero_lanes<T>(spoilt) == 0;
}

// argmax is null where there is no ReLU.
template <class T>
bool forward(const FusedShape& f, const T* x, const T* packed, const T* bias, T* y, uint8_t* argmax, int64_t first,
             int64_t last, T* scratch) {
  const auto run = f.window() == 4 ? unit<T, Epilogue::relu_max_pool>
                   : argmax        ? unit<T, Epilogue::relu>
                                   : unit<T, Epilogue::none>;
  return run(f, x, packed, bias, y, argmax, first, last, scratch);
}

}  // namespace fastconv::FC_LEVEL::winograd
