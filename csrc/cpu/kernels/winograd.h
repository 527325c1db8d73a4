// 3 x 3 convolution of stride 1 with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", arXiv 1509.09308, section 4.1):
//
//   Y = A' [ sum over c of (G w[k, c] G') * (B' x[c] B) ] A       x: the pixels behind one tile of outputs
//
// F(2, 3) makes 2 outputs of 4 pixels with 4 multiplications instead of 6. In two dimensions a tile of 2 x 2 outputs
// takes 16 instead of 36. At an odd edge one dimension or both are F(1, 3), which is the plain sum of 3: tiles of 2 x 1
// and 1 x 2 take 12, of 1 x 1 take 9. So there are four kinds of tiles (conv3 of MnistCNN, 3 x 3 outputs: one of each,
// 49 multiplications; padded to whole tiles 64, direct 81).
//
// The sum over c is 16 (12, 9) small matrix products, [tiles][C] x [C][K], one for each element ("frequency") of the
// transformed tile, done by the same micro-kernel as the direct convolution. A tile of 2 x 2 is one window of a 2 x 2
// pool, so ReLU, maximum and argmax happen in the output transform.
//
// Tiles of a kind are numbered through all images, so only the last unit of a kind is not full. A unit's V and M
// (transformed inputs, products) stay in the second-level cache. x and y are NHWC and dense, padding is not in place.
//
// conv2 of MnistCNN with pool, batch 64, one thread of Zen 4: 1.19 ms, of which the products take 1.01, at the peak of
// the FMA units; direct 2.4. Its error against float64 is 0.86 of PyTorch's. An infinity or NaN in x or w spoils the
// whole tile, so results that are not finite are reported.
#pragma once

#include "conv2d_forward.h"

namespace fastconv::FC_LEVEL::winograd {

// Outputs and pixels of a tile along one dimension.
template <int m>
constexpr int pixels = m + 2;
constexpr int64_t unit_tiles = 2 * block_rows;
constexpr int kinds = 4;

// Where the tiles of one kind lie: `rows` x `columns` of them in each image, at outputs (row0 + 2 i, column0 + 2 j).
// Kind 0 is of 2 x 2 outputs, 1 of 2 x 1 (the last column), 2 of 1 x 2 (the last row), 3 of 1 x 1.
struct Tiling {
  int64_t rows, columns, row0, column0;

  Tiling(const FusedShape& f, int kind) {
    const bool pooled = f.window() == 4;
    const int64_t P = pooled ? 2 * f.pool.P : f.conv.P, Q = pooled ? 2 * f.pool.Q : f.conv.Q;
    const bool last_row = kind >= 2, last_column = kind % 2 == 1;
    rows = last_row ? P % 2 : P / 2;
    columns = last_column ? Q % 2 : Q / 2;
    row0 = last_row ? P - 1 : 0;
    column0 = last_column ? Q - 1 : 0;
  }
};

inline int64_t tile_count(const FusedShape& f, int kind) {
  const Tiling tiling(f, kind);
  return f.conv.N * tiling.rows * tiling.columns;
}

constexpr int frequency_count(int kind) { return (kind < 2 ? 4 : 3) * (kind % 2 == 0 ? 4 : 3); }

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

// G g; turned around, for backward_data, the first and the last exchange their places.
template <class T, int m>
FC_INLINE void transform_weight(Vec<T> g0, Vec<T> g1, Vec<T> g2, bool rotated, Vec<T> (&u)[pixels<m>]) {
  u[0] = rotated ? g2 : g0;
  u[m + 1] = rotated ? g0 : g2;
  if constexpr (m == 2) {
    const Vec<T> outer = g0 + g2;
    u[1] = (outer + g1) * T(0.5);
    u[2] = (outer - g1) * T(0.5);
  } else {
    u[1] = g1;
  }
}

// A' m; `at(i)` gives m[i].
template <class T, int m, class At>
FC_INLINE void transform_output(Vec<T> (&y)[m], At at) {
  if constexpr (m == 2) {
    const Vec<T> m1 = at(1), m2 = at(2);
    y[0] = at(0) + m1 + m2;
    y[1] = m1 - m2 - at(3);
  } else {
    y[0] = at(0) + at(1) + at(2);
  }
}

// ---- weights of one kind: [block of K][frequency][c][block_lanes of k] ----

template <class T>
int64_t packed_size(const Conv2dShape& s, int kind) {
  return frequency_count(kind) * s.C * round_up_to_lanes<T>(s.K);
}

template <class T, int mh, int mw>
void pack_block(const Conv2dShape& s, const T* packed, bool rotated, int64_t index, T* to) {
  const ChannelBlock<T> block(index, s.K);
  const int64_t width = block.vectors * lanes<T>;
  packed += block.first * 9 * s.C;
  to += block.first * pixels<mh> * pixels<mw> * s.C;
  for (int64_t i = 0; i < s.C * width; i += lanes<T>) {
    Vec<T> column[3][pixels<mh>];
    for (int64_t tap = 0; tap < 3; ++tap) {
      const T* from = packed + tap * s.C * width + i;
      transform_weight<T, mh>(load(from), load(from + 3 * s.C * width), load(from + 6 * s.C * width), rotated,
                              column[tap]);
    }
    for (int row = 0; row < pixels<mh>; ++row) {
      Vec<T> u[pixels<mw>];
      transform_weight<T, mw>(column[0][row], column[1][row], column[2][row], rotated, u);
      for (int j = 0; j < pixels<mw>; ++j) store(to + (row * pixels<mw> + j) * s.C * width + i, u[j]);
    }
  }
}

// One block, out of what pack_weight_forward (or pack_weight_backward, with `rotated`) made of it.
template <class T>
void pack_weight(const Conv2dShape& s, const T* packed, bool rotated, int kind, int64_t index, T* to) {
  const auto run = kind == 0   ? pack_block<T, 2, 2>
                   : kind == 1 ? pack_block<T, 2, 1>
                   : kind == 2 ? pack_block<T, 1, 2>
                               : pack_block<T, 1, 1>;
  run(s, packed, rotated, index, to);
}

// ---- one unit ----------------------------------------------------------------------------------------------------

// V[frequency][unit_tiles][C, rounded up], M[frequency][unit_tiles][block_lanes]
template <class T>
int64_t scratch_size(const Conv2dShape& s) {
  return frequency_count(0) * unit_tiles * (round_up_to_lanes<T>(s.C) + block_lanes<T>);
}

// The pixels of a tile, from (h0, w0) of one image on. `edge`: some may lie outside of it, and are zero.
template <class T, int mh, int mw, bool edge>
void input_tile(const Conv2dShape& s, const T* image, int64_t h0, int64_t w0, T* v, int64_t v_step) {
  const T* origin = image + (h0 * s.W + w0) * s.C;
  for (int64_t c = 0; c < s.C; c += lanes<T>) {
    Vec<T> d[pixels<mh>][pixels<mw>];
#pragma GCC unroll 4
    for (int i = 0; i < pixels<mh>; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < pixels<mw>; ++j) {
        const bool inside = !edge || (h0 + i >= 0 && h0 + i < s.H && w0 + j >= 0 && w0 + j < s.W);
        d[i][j] = inside ? load_upto(origin + (i * s.W + j) * s.C + c, s.C - c) : Vec<T>{};
      }
    }
    if constexpr (mh == 2) {
#pragma GCC unroll 4
      for (int j = 0; j < pixels<mw>; ++j) transform_input<T>(d[0][j], d[1][j], d[2][j], d[3][j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < pixels<mh>; ++i) {
      if constexpr (mw == 2) transform_input<T>(d[i][0], d[i][1], d[i][2], d[i][3]);
#pragma GCC unroll 4
      for (int j = 0; j < pixels<mw>; ++j) store(v + (i * pixels<mw> + j) * v_step + c, d[i][j]);
    }
  }
}

enum class Epilogue { none, relu, relu_max_pool };

// One tile, one block of channels: M -> y and argmax of the tile's window, or of its outputs from (p, q) on. Returns
// whether all sums are finite.
template <class T, int mh, int mw, Epilogue epilogue>
FC_INLINE bool output_tile(const FusedShape& f, const T* m, int64_t m_step, const ChannelBlock<T>& block, const T* bias,
                           T* y, uint8_t* argmax, int64_t n, int64_t p, int64_t q) {
  const Conv2dShape& s = f.conv;
  Vec<T> spoilt = {};  // zero as long as they are
  for (int v = 0; v < block.vectors; ++v) {
    const int64_t k = block.first + v * lanes<T>;
    const int64_t count = v < block.vectors - 1 ? lanes<T> : block.last_lanes;
    Vec<T> half[pixels<mw>][mh];
#pragma GCC unroll 4
    for (int j = 0; j < pixels<mw>; ++j) {
      transform_output<T, mh>(half[j], [&](int i) { return load(m + (i * pixels<mw> + j) * m_step + v * lanes<T>); });
    }
    const Vec<T> b = bias ? load_upto(bias + k, count) : Vec<T>{};
    Vec<T> out[mh][mw];
#pragma GCC unroll 2
    for (int i = 0; i < mh; ++i) {
      transform_output<T, mw>(out[i], [&](int j) { return half[j][i]; });
#pragma GCC unroll 2
      for (int j = 0; j < mw; ++j) {
        out[i][j] += b;
        spoilt += out[i][j] * T(0);
      }
    }
    if constexpr (epilogue == Epilogue::relu_max_pool) {
      WindowMax<T> max(out[0][0]);
      max.take(out[0][1], 1);
      max.take(out[1][0], 2);
      max.take(out[1][1], 3);
      const int64_t at = ((n * f.pool.P + p / 2) * f.pool.Q + q / 2) * s.K + k;
      max.store(y + at, argmax + at, count);
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < mh; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < mw; ++j) {
          const int64_t at = ((n * s.P + p + i) * s.Q + q + j) * s.K + k;
          if constexpr (epilogue == Epilogue::relu) {
            WindowMax<T>(out[i][j]).store(y + at, argmax + at, count);
          } else {
            store_upto(y + at, out[i][j], count);
          }
        }
      }
    }
  }
  return nonzero_lanes<T>(spoilt) == 0;
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

// Tiles [first, last) of one kind, at most unit_tiles. spoilt[n] is set where a sum of image n is not finite: its
// results are to be computed directly.
template <class T, int mh, int mw, Epilogue epilogue>
void unit(const FusedShape& f, const Tiling& tiling, const T* x, const T* packed, const T* bias, T* y, uint8_t* argmax,
          int64_t first, int64_t last, T* scratch, uint8_t* spoilt) {
  const Conv2dShape& s = f.conv;
  constexpr int frequencies = pixels<mh> * pixels<mw>;
  const int64_t v_row = round_up_to_lanes<T>(s.C), v_step = unit_tiles * v_row, m_step = unit_tiles * block_lanes<T>;
  T* v = scratch;
  T* m = scratch + frequencies * v_step;
  const auto each_tile = [&](auto visit) {
    const int64_t rows = tiling.rows, columns = tiling.columns;
    int64_t n = first / (rows * columns), row = first / columns % rows, column = first % columns;
    for (int64_t tile = 0; tile < last - first; ++tile) {
      visit(tile, n, tiling.row0 + 2 * row, tiling.column0 + 2 * column);
      if (++column < columns) continue;
      column = 0;
      if (++row == rows) row = 0, ++n;
    }
  };
  each_tile([&](int64_t tile, int64_t n, int64_t p, int64_t q) {
    const int64_t h0 = p - s.pad_h, w0 = q - s.pad_w;
    const bool inside = h0 >= 0 && h0 + pixels<mh> <= s.H && w0 >= 0 && w0 + pixels<mw> <= s.W;
    const auto run = inside ? input_tile<T, mh, mw, false> : input_tile<T, mh, mw, true>;
    run(s, x + n * s.H * s.W * s.C, h0, w0, v + tile * v_row, v_step);
  });
  for (int64_t index = 0; index < ceil_div(s.K, block_lanes<T>); ++index) {
    const ChannelBlock<T> block(index, s.K);
    const T* weight = packed + block.first * frequencies * s.C;
    const auto run = block.vectors == 2 ? multiply<T, 2> : multiply<T, 1>;
    for (int i = 0; i < frequencies; ++i) {
      run(v + i * v_step, v_row, s.C, weight + i * s.C * block.vectors * lanes<T>, m + i * m_step, last - first);
    }
    each_tile([&](int64_t tile, int64_t n, int64_t p, int64_t q) {
      if (!output_tile<T, mh, mw, epilogue>(f, m + tile * block_lanes<T>, m_step, block, bias, y, argmax, n, p, q)) {
        __atomic_store_n(spoilt + n, 1, __ATOMIC_RELAXED);
      }
    });
  }
}

// packed: of this kind. argmax is null where there is no ReLU.
template <class T>
void forward(const FusedShape& f, int kind, const T* x, const T* packed, const T* bias, T* y, uint8_t* argmax,
             int64_t first, int64_t last, T* scratch, uint8_t* spoilt) {
  using Unit = decltype(&unit<T, 2, 2, Epilogue::none>);
  constexpr Unit none[] = {unit<T, 2, 2, Epilogue::none>, unit<T, 2, 1, Epilogue::none>, unit<T, 1, 2, Epilogue::none>,
                           unit<T, 1, 1, Epilogue::none>};
  constexpr Unit relu[] = {unit<T, 2, 2, Epilogue::relu>, unit<T, 2, 1, Epilogue::relu>, unit<T, 1, 2, Epilogue::relu>,
                           unit<T, 1, 1, Epilogue::relu>};
  const Unit run = f.window() == 4 ? unit<T, 2, 2, Epilogue::relu_max_pool> : argmax ? relu[kind] : none[kind];
  run(f, Tiling(f, kind), x, packed, bias, y, argmax, first, last, scratch, spoilt);
}

}  // namespace fastconv::FC_LEVEL::winograd
