// The gradient of the weight of a 3x3 convolution with fewer multiplications. It transposes Winograd's forward pass
// (winograd.h), so the transforms are the same or transposed:
//
//   dw[k, c] = G' [ sum over tiles of (A g[tile, k] A') * (B' x[tile, c] B) ] G
//
// A tile of 4x4 outputs takes 36 multiplications instead of 144 for each pair of channels, one of 2x2 takes 16 instead
// of 36. The last tiles of a row or column may cross the edge: g is zero there.
//
// Layout: x and g are NHWC and contiguous. Transformed x is [frequency][vector of c][tile][lanes], the transformed
// gradient is [frequency][block of k][tile][block_lanes], and their products are [frequency][c][k]. So the sum over
// tiles reads both in the order of memory.
//
// Blocking: accumulate.h computes each frequency as a matrix product, [C][tiles] x [tiles][K]. The rows of a register
// block are channels of x. They are at most 8, so that a vector of channels is a whole number of register blocks.
#pragma once

#include "winograd_tiles.h"

namespace fastconv::FC_LEVEL::winograd {

template <class T>
constexpr int sum_rows = lanes<T> < (block_rows > 6 ? 8 : 4) ? lanes<T> : (block_rows > 6 ? 8 : 4);

// The tiles that are summed in registers before they are added to memory: about the square root of all tiles, so that
// both sums have about as many terms. Error / PyTorch's error with 16 and with 64, channels_last, tiles of 2x2:
//   64->64 32x32, batch of 8 (2048 tiles)    1.18 / 0.96        256->256 8x8, batch of 8 (128)    1.14 / 1.63
// The operands of 64 tiles fit in the first-level cache.
inline int longest_tile_sum(int64_t tiles) { return tiles <= 512 ? 16 : tiles <= 2048 ? 32 : 64; }

inline int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// Sets the steps for `tiles` tiles. They are 64 bytes longer than needed, as in winograd.h.
template <class T>
void set_sum_steps(const Conv2dShape& s, WinogradSums<T>& sums) {
  constexpr int64_t line = 64 / sizeof(T);
  sums.x_step = round_up(s.C, lanes<T>) * sums.tiles + line;
  sums.gradient_step = round_up(s.K, block_lanes<T>) * sums.tiles + line;
  sums.product_step = round_up(s.C, lanes<T>) * round_up(s.K, lanes<T>) + line;
}

// Transforms one tile of g. Adds its values to `bias`. `edge`: outputs may be outside. They are zero.
template <class T, int mh, int mw, bool edge>
void gradient_tile(const Conv2dShape& s, const WinogradSums<T>& sums, const T* g, const TileOutputs& at, T* to,
                   T* bias) {
  const T* origin = g + ((at.n * s.P + at.p) * s.Q + at.q) * s.K;
  for (int64_t k = 0; k < s.K; k += lanes<T>) {
    const int64_t count = s.K - k;
    Vec<T> half[pixels<mh>][mw], sum = {};
#pragma GCC unroll 4
    for (int j = 0; j < mw; ++j) {
      Vec<T> d[mh], u[pixels<mh>];
#pragma GCC unroll 4
      for (int i = 0; i < mh; ++i) {
        const bool inside = !edge || (i < at.rows && j < at.columns);
        d[i] = inside ? load_upto(origin + (i * s.Q + j) * s.K + k, count) : Vec<T>{};
        sum += d[i];
      }
      transform_gradient<T, mh>(d, u);
#pragma GCC unroll 6
      for (int i = 0; i < pixels<mh>; ++i) half[i][j] = u[i];
    }
    T* const vector = to + k / block_lanes<T> * sums.tiles * block_lanes<T> + k % block_lanes<T>;
#pragma GCC unroll 6
    for (int i = 0; i < pixels<mh>; ++i) {
      Vec<T> u[pixels<mw>];
      transform_gradient<T, mw>(half[i], u);
#pragma GCC unroll 6
      for (int j = 0; j < pixels<mw>; ++j) store(vector + (i * pixels<mw> + j) * sums.gradient_step, u[j]);
    }
    store_upto(bias + k, load_upto(bias + k, count) + sum, count);
  }
}

// Transforms the tiles [first, last) of those of `sums`, of x and of g. Adds the gradient of the bias to `bias`.
template <class T>
void transform_tiles(const Conv2dShape& s, const WinogradSums<T>& sums, int64_t first, int64_t last, const T* x,
                     const T* g, T* bias) {
  FASTCONV_ASSERT(readable(x) && readable(g) && readable(sums.x) && readable(sums.gradient) && readable(bias));
  FASTCONV_ASSERT(0 <= first && first < last && last <= sums.tiles);
  FASTCONV_ASSERT(sums.first_tile + last <= s.N * sums.kind.per_image());
  const WinogradUnit<T> unit{sums.kind, sums.first_tile + first, sums.first_tile + last, 0, 0, nullptr, nullptr};
  with_outputs(sums.kind.mh, [&](auto rows) {
    with_outputs(sums.kind.mw, [&](auto columns) {
      constexpr int mh = decltype(rows)::value, mw = decltype(columns)::value;
      input_tiles<T, mh, mw>(s, unit, x, sums.x + first * lanes<T>, lanes<T>, {sums.x_step, sums.tiles * lanes<T>});
      for_each_tile(unit, [&](int64_t tile, int64_t n, int64_t p, int64_t q) {
        const TileOutputs at{n, p, q, upto(mh, s.P - p), upto(mw, s.Q - q)};
        const auto run =
            at.rows == mh && at.columns == mw ? gradient_tile<T, mh, mw, false> : gradient_tile<T, mh, mw, true>;
        run(s, sums, g, at, sums.gradient + (first + tile) * block_lanes<T>, bias);
      });
    });
  });
}

// Adds the products of `count` tiles for all channels of x and one block of channels of g.
template <class T, int vectors>
void add_products(const T* x, int64_t x_vector, const T* g, int64_t count, int64_t C, T* product, int64_t row_step,
                  bool clear) {
  constexpr int rows = sum_rows<T>;
  for (int64_t c = 0; c < C; c += rows, product += rows * row_step) {
    const T* a[rows];
    const T* const from = x + c / lanes<T> * x_vector + c % lanes<T>;
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) a[row] = from + row;
    Block<T, vectors, rows> acc = {};
    accumulate<T, vectors, false>(acc, a, {1, 0, 1, 0, count, lanes<T>}, g, block_lanes<T>, 0);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* at = product + row * row_step + v * lanes<T>;
        store(at, clear ? acc.value[row][v] : load(at) + acc.value[row][v]);
      }
    }
  }
}

// Multiplies one frequency for one block of channels of g.
template <class T>
void multiply_tiles(const Conv2dShape& s, const WinogradSums<T>& sums, int64_t frequency, int64_t index) {
  FASTCONV_ASSERT(readable(sums.x) && readable(sums.gradient) && readable(sums.product));
  FASTCONV_ASSERT(0 <= frequency && frequency < sums.kind.frequencies() && is_block<T>(index, 1, s.K));
  const ChannelBlock<T> block(index, s.K);
  const int64_t x_vector = sums.tiles * lanes<T>, row_step = round_up(s.K, lanes<T>);
  const T* x = sums.x + frequency * sums.x_step;
  const T* g = sums.gradient + frequency * sums.gradient_step + index * sums.tiles * block_lanes<T>;
  T* product = sums.product + frequency * sums.product_step + block.first;
  const auto run = block.vectors == 2 ? add_products<T, 2> : add_products<T, 1>;
  const int longest = longest_tile_sum(s.N * sums.kind.per_image());
  for (int64_t tile = 0; tile < sums.tiles; tile += longest) {
    const int64_t count = upto(longest, sums.tiles - tile);
    run(x + tile * lanes<T>, x_vector, g + tile * block_lanes<T>, count, s.C, product, row_step,
        sums.overwrite && tile == 0);
  }
}

// Transforms the products of the channels [c0, c1) of x to dw, which is [r, s, c][K]. Returns whether all are finite.
template <class T>
bool finish_weight(const Conv2dShape& s, const WinogradSums<T>& sums, int64_t c0, int64_t c1, T* dw) {
  FASTCONV_ASSERT(readable(sums.product) && readable(dw) && 0 <= c0 && c0 <= c1 && c1 <= s.C);
  const int64_t row_step = round_up(s.K, lanes<T>);
  Vec<T> zero_if_finite = {};
  with_outputs(sums.kind.mh, [&](auto rows) {
    with_outputs(sums.kind.mw, [&](auto columns) {
      constexpr int mh = decltype(rows)::value, mw = decltype(columns)::value;
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t k = 0; k < s.K; k += lanes<T>) {
          const T* from = sums.product + c * row_step + k;
          Vec<T> half[3][pixels<mw>];
#pragma GCC unroll 6
          for (int j = 0; j < pixels<mw>; ++j) {
            Vec<T> u[pixels<mh>], g[3];
#pragma GCC unroll 6
            for (int i = 0; i < pixels<mh>; ++i) u[i] = load(from + (i * pixels<mw> + j) * sums.product_step);
            transform_weight_gradient<T, mh>(u, g);
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) half[i][j] = g[i];
          }
#pragma GCC unroll 3
          for (int i = 0; i < 3; ++i) {
            Vec<T> g[3];
            transform_weight_gradient<T, mw>(half[i], g);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
              zero_if_finite += g[j] * T(0);
              store_upto(dw + ((i * 3 + j) * s.C + c) * s.K + k, g[j], s.K - k);
            }
          }
        }
      }
    });
  });
  return nonzero_lanes<T>(zero_if_finite) == 0;
}

}  // namespace fastconv::FC_LEVEL::winograd
