// The forward pass of the convolution, dense in its groups, alone or with ReLU and max-pooling in its epilogue:
//
//   y[n, k, p, q] = max over the window (p, q) of max(0, conv2d(x, w, b)[n, k, ...])
//
// A register block holds the sums of whole windows (with AVX-512, 12 pixels are 12 windows of 1, 3 of 2 x 2 or 1 of 3 x
// 3; with 6 rows, 6 of 1 or 1 of 2 x 2, and 3 x 3 takes 9 rows of one vector), so bias, ReLU, maximum and argmax happen
// in registers: a quarter of the values and a byte for each is written instead of the activations, and pixels that no
// window reads are never computed. conv1 of MnistCNN, batch 64, one thread of Zen 4: 0.37 ms, of which the FMAs are
// 0.22.
//
// Layouts, tiles and channel blocks: conv2d.h. argmax: window.h.
#pragma once

#include "conv2d.h"
#include "window.h"

namespace fastconv::FC_LEVEL {

template <class T, int vectors, int rows>
FC_INLINE void set_to_bias(Block<T, vectors, rows>& acc, const T* bias, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    Vec<T> value = {};
    if (bias) value = v < vectors - 1 ? load(bias + v * lanes<T>) : load_upto(bias + v * lanes<T>, last_lanes);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) acc.value[row][v] = value;
  }
}

template <class T, int vectors, int rows>
FC_INLINE void add(Block<T, vectors, rows>& sum, const Block<T, vectors, rows>& term) {
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum.value[row][v] += term.value[row][v];
  }
}

// `rows` rows of the taps of one group, in the order of NHWC memory. A row is one run where its pixels touch.
inline Walk taps_walk(const Conv2dShape& s, const Strides& x, int64_t rows) {
  const bool runs = s.groups == 1 && s.dilation_w == 1 && x.pixel == s.C;
  const int64_t row = s.dilation_h * x.row, pixel = s.dilation_w * x.pixel;
  if (runs) return {1, 0, rows, row, s.S * s.C, 1};
  return {rows, row, s.S, pixel, s.group_C(), 1};
}

// A sum longer than this is added up from the sums of its rows: half the rounding error on 576 taps, 1 % of the time.
constexpr int64_t longest_sum = 256;

// Windows of R x S pixels, Q in a row. They touch, and none hangs over.
struct WindowRow {
  int64_t R, S, Q;
};

// A block's columns of the packed weight: elements from tap to tap, and lanes in use in its last vector.
struct PackedColumns {
  int64_t step, last_lanes;
};

// `by_rows`: a long sum, added up from the sums of its rows. (Chosen in here, the choice costs short sums half as much
// again.) `window`: R * S of the windows. `weight` and `to` begin at the block's first channel.
template <class T, int vectors, bool by_rows, int window, bool fused>
void forward_block(const Conv2dShape& s, const WindowRow& w, const InputTile<T>& input, const PackedWeight<T>& weight,
                   const PackedColumns& columns, const PooledTile<T>& to) {
  constexpr int at_once = window <= block_rows ? block_rows / window : 1;
  constexpr int block = at_once * window;
  const T *x = input.data, *packed = weight.data, *bias = weight.bias;
  const Strides& strides = input.strides;
  const int64_t packed_step = columns.step, last_lanes = columns.last_lanes, rows = to.rows;
  T* y = to.data;
  uint8_t* argmax = to.argmax;
  const Walk taps = taps_walk(s, strides, by_rows ? 1 : s.R);
  const int64_t pixel_step = s.stride_w * strides.pixel, row_step = s.stride_h * strides.row;
  int64_t offset[window];
  for (int i = 0; i < window; ++i) offset[i] = i / w.S * row_step + i % w.S * pixel_step;
  const int64_t windows = to.images * rows * w.Q;
  int64_t n = 0, p = 0, q = 0;
  const T* from = x;
  for (int64_t first = 0; first < windows; first += at_once) {
    // Where a block is one window, the compiler shall see it: conv1 of MnistCNN 0.51 to 0.49 ms (Zen 3).
    const bool full = at_once == 1 || windows - first >= at_once;
    const int count = full ? at_once : static_cast<int>(windows - first);
    const T* a[block];
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j < window; ++j) a[i * window + j] = from + offset[j];
      from += w.S * pixel_step;
      if (++q == w.Q) {
        q = 0;
        if (++p == rows) p = 0, ++n;
        from = x + n * strides.image + p * w.R * row_step;
      }
    }
    for (int row = count * window; row < block; ++row) a[row] = a[0];
    Block<T, vectors, block> acc;
    set_to_bias(acc, bias, last_lanes);
    if constexpr (!by_rows) {
      accumulate<T, vectors, false>(acc, a, taps, packed, packed_step, 0);
    } else {
      for (int64_t r = 0; r < s.R; ++r) {
        Block<T, vectors, block> row_sum = {};
        accumulate<T, vectors, false>(row_sum, a, taps, packed + r * (s.taps() / s.R) * packed_step, packed_step, 0);
        add(acc, row_sum);
        for (const T*& row : a) row += s.dilation_h * strides.row;
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < at_once; ++i) {
      if (i >= count) continue;
      const int64_t at = (first + i) * s.K;
      if constexpr (!fused) {
        store_block(acc, i, y + at, last_lanes);
      } else {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          WindowMax<T> max(acc.value[i * window][v]);
#pragma GCC unroll 9
          for (int j = 1; j < window; ++j) max.take(acc.value[i * window + j][v], j);
          const int64_t lane = at + v * lanes<T>;
          max.store(y + lane, argmax + lane, v < vectors - 1 ? lanes<T> : last_lanes);
        }
      }
    }
  }
}

// One block of output channels. x: the first pixel that the tile reads; y: the tile's first window, its windows
// adjacent; its argmax is null where nothing is fused.
template <class T, int window, bool fused>
void forward_tile(const Conv2dShape& s, const WindowRow& w, const InputTile<T>& x, const PackedWeight<T>& weight,
                  const PooledTile<T>& y, int64_t index) {
  const ChannelBlock<T> block(index, s.group_K());
  const int64_t k = block.group * s.group_K() + block.first;
  const T* packed = weight.data + (block.group * round_up_to_lanes<T>(s.group_K()) + block.first) * s.taps();
  const InputTile<T> group_x = {x.data + block.group * s.group_C(), x.strides};
  const bool by_rows = s.taps() > longest_sum;
  const int64_t step = block.vectors * lanes<T>;
  // A window larger than the block of this level takes one vector at a time.
  constexpr int most = window <= block_rows ? block_vectors : 1;
  for (int v = 0; v < block.vectors; v += most) {
    const auto run =
        most == 2 && block.vectors == 2
            ? (by_rows ? forward_block<T, most, true, window, fused> : forward_block<T, most, false, window, fused>)
            : (by_rows ? forward_block<T, 1, true, window, fused> : forward_block<T, 1, false, window, fused>);
    const int64_t at = k + v * lanes<T>;
    run(s, w, group_x, {packed + v * lanes<T>, weight.bias ? weight.bias + at : nullptr},
        {step, v + most >= block.vectors ? block.last_lanes : lanes<T>},
        {y.data + at, fused ? y.argmax + at : nullptr, y.images, y.row, y.rows});
  }
}

template <class T>
void conv2d_forward(const Conv2dShape& s, const InputTile<T>& x, const PackedWeight<T>& weight, const OutputTile<T>& y,
                    int64_t index) {
  forward_tile<T, 1, false>(s, {1, 1, s.Q}, x, weight, {y.data, nullptr, y.images, y.row, y.rows}, index);
}

// Windows of as many pixels as window_kernel_serves says; they touch, without padding or dilation.
template <class T>
void conv2d_relu_max_pool2d_forward(const FusedShape& f, const InputTile<T>& x, const PackedWeight<T>& weight,
                                    const PooledTile<T>& y, int64_t index) {
  const Pool2dShape& pool = f.pool;
  const auto run = f.window() == 1   ? forward_tile<T, 1, true>
                   : f.window() == 4 ? forward_tile<T, 4, true>
                                     : forward_tile<T, 9, true>;
  run(f.conv, {pool.R, pool.S, pool.Q}, x, weight, y, index);
}

}  // namespace fastconv::FC_LEVEL
