// 2-D convolution, dense in its groups: weights, backward_data, backward_weight (formula: shapes.h). The forward pass
// stands in conv2d_forward.h.
//
// Activations are NHWC with any strides between pixels, rows and images (Strides), padding already in place for the
// passes that read x. Each function serves one tile: some whole images, or some rows of one image, for a range of
// channel blocks (block_lanes channels of one group). Tiles and blocks are independent, so the caller may run them in
// any order on any thread; within one, sums run in a fixed order.
//
// Packed weights, written by pack_weight_*:
//   forward        [block of K][r, s, c][block_lanes of k]
//   backward_data  [block of C][r, s][k][block_lanes of c]
// The tail of the last block of a group is filled with zeros up to whole vectors.
#pragma once

#include "../../shapes.h"
#include "accumulate.h"
#include "operands.h"
#include "range.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL {

// One block of at most block_lanes channels out of `channels` in each group.
template <class T>
struct ChannelBlock {
  int64_t group, first, count;  // first: within the group
  int vectors;                  // 1 or 2, the last one perhaps partial
  int64_t last_lanes;           // lanes in use in the last vector

  ChannelBlock(int64_t index, int64_t channels) {
    const int64_t blocks = ceil_div(channels, block_lanes<T>);
    group = index / blocks;
    first = index % blocks * block_lanes<T>;
    count = channels - first < block_lanes<T> ? channels - first : block_lanes<T>;
    vectors = count > lanes<T> ? 2 : 1;
    last_lanes = count - (vectors - 1) * lanes<T>;
  }
};

template <class T>
int64_t round_up_to_lanes(int64_t channels) {
  return ceil_div(channels, lanes<T>) * lanes<T>;
}

// ---- weights ---------------------------------------------------------------------------------------------------

// weight is (K, C / groups, R, S) with adjacent c (KRSC) or adjacent s (KCRS), dense.
template <class T>
int64_t packed_forward_size(const Conv2dShape& s) {
  return s.groups * round_up_to_lanes<T>(s.group_K()) * s.taps();
}

template <class T>
int64_t packed_backward_size(const Conv2dShape& s) {
  return s.groups * round_up_to_lanes<T>(s.group_C()) * s.R * s.S * s.group_K();
}

template <class T>
void pack_weight_forward(const Conv2dShape& s, const T* weight, bool krsc, int64_t index, T* packed) {
  const ChannelBlock<T> block(index, s.group_K());
  const int64_t taps = s.taps(), RS = s.R * s.S, C = s.group_C();
  const int64_t width = block.vectors * lanes<T>;
  T* to = packed + (block.group * round_up_to_lanes<T>(s.group_K()) + block.first) * taps;
  const T* from = weight + (block.group * s.group_K() + block.first) * taps;
  if (block.count < width) {
    for (int64_t i = 0; i < taps * width; ++i) to[i] = 0;
  }
  if (krsc) {
    transpose(from, taps, block.count, taps, to, width);
  } else {
    transpose_to(from, taps, block.count, taps, [=](int64_t j) { return to + (j % RS * C + j / RS) * width; });
  }
}

template <class T>
void pack_weight_backward(const Conv2dShape& s, const T* weight, bool krsc, int64_t index, T* packed) {
  const ChannelBlock<T> block(index, s.group_C());
  const int64_t taps = s.taps(), RS = s.R * s.S, C = s.group_C(), K = s.group_K();
  const int64_t width = block.vectors * lanes<T>;
  T* to = packed + (block.group * round_up_to_lanes<T>(C) + block.first) * RS * K;
  if (block.count < width) {
    for (int64_t i = 0; i < RS * K * width; ++i) to[i] = 0;
  }
  for (int64_t k = 0; k < K; ++k) {
    const T* from = weight + (block.group * K + k) * taps;
    if (krsc) {
      for (int64_t rs = 0; rs < RS; ++rs) {
        T* row = to + (rs * K + k) * width;
        for (int64_t c = 0; c < block.count; ++c) row[c] = from[rs * C + block.first + c];
      }
    } else {
      transpose_to(from + block.first * RS, RS, block.count, RS, [=](int64_t rs) { return to + (rs * K + k) * width; });
    }
  }
}

// ---- blocks of sums --------------------------------------------------------------------------------------------

template <class T, int vectors, int rows>
FC_INLINE void store_block(const Block<T, vectors, rows>& acc, int row, T* to, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors - 1; ++v) store(to + v * lanes<T>, acc.value[row][v]);
  store_upto(to + (vectors - 1) * lanes<T>, acc.value[row][vectors - 1], last_lanes);
}

template <class T, int vectors, int rows>
FC_INLINE void add_block(const Block<T, vectors, rows>& acc, int row, T* to, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors - 1; ++v) store(to + v * lanes<T>, load(to + v * lanes<T>) + acc.value[row][v]);
  T* last = to + (vectors - 1) * lanes<T>;
  store_upto(last, load_upto(last, last_lanes) + acc.value[row][vectors - 1], last_lanes);
}

// ---- backward_data ---------------------------------------------------------------------------------------------

struct Tap {
  int64_t r, s;
};

// dx of one tap (r, s), over the output pixels that this tap takes into the tile's rows [h0, h0 + rows):
// dx[pixel] += sum over k of g[pixel][k] * w[r, s][k][c]. No product is computed that padding would throw away.
template <class T, int vectors>
FC_INLINE void backward_data_tap(const Conv2dShape& s, const GradientTile<T>& g, const T* packed,
                                 const OutputTile<T>& dx, const Tap& tap, int64_t last_lanes) {
  const int64_t shift_h = tap.r * s.dilation_h - s.pad_h, shift_w = tap.s * s.dilation_w - s.pad_w;
  const Range p_range(dx.row, dx.row + dx.rows, s.stride_h, shift_h, s.P), q_range(0, s.W, s.stride_w, shift_w, s.Q);
  const int64_t pixels = dx.images * (p_range.end - p_range.begin) * (q_range.end - q_range.begin);
  const Walk channels = {1, 0, 1, 0, s.group_K(), 1};
  int64_t n = 0, p = p_range.begin, q = q_range.begin;
  const T* from = nullptr;
  T* at = nullptr;
  const auto start_row = [&] {
    from = g.data + n * g.image_stride + ((p - g.row) * s.Q + q) * s.K;
    at = dx.data + ((n * dx.rows + p * s.stride_h + shift_h - dx.row) * s.W + q * s.stride_w + shift_w) * s.C;
  };
  start_row();
  for (int64_t first = 0; first < pixels; first += block_rows) {
    const int count = static_cast<int>(pixels - first < block_rows ? pixels - first : block_rows);
    const T* a[block_rows] = {};
    T* to[block_rows] = {};
    for (int row = 0; row < block_rows; ++row) {
      if (row >= count) {
        a[row] = a[0];
        to[row] = to[0];
        continue;
      }
      a[row] = from;
      to[row] = at;
      from += s.K;
      at += s.stride_w * s.C;
      if (++q == q_range.end) {
        q = q_range.begin;
        if (++p == p_range.end) p = p_range.begin, ++n;
        start_row();
      }
    }
    // From zero, and then added to dx: a sum that goes on from dx errs more than twice as much as PyTorch's.
    Block<T, vectors> acc = {};
    accumulate<T, vectors, false>(acc, a, channels, packed, vectors * lanes<T>, 0);
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) {
      if (row < count) add_block(acc, row, to[row], last_lanes);
    }
  }
}

template <class T, int vectors>
void backward_data_block(const Conv2dShape& s, const GradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                         int64_t last_lanes) {
  for (int64_t r = 0; r < s.R; ++r) {
    for (int64_t tap_s = 0; tap_s < s.S; ++tap_s) {
      backward_data_tap<T, vectors>(s, g, packed, dx, {r, tap_s}, last_lanes);
      packed += s.group_K() * vectors * lanes<T>;
    }
  }
}

// Adds to dx, which the caller has zeroed. g holds the rows of the same images that reach the tile, pixels adjacent.
template <class T>
void conv2d_backward_data(const Conv2dShape& s, const GradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                          int64_t index) {
  const ChannelBlock<T> block(index, s.group_C());
  GradientTile<T> group_g = g;
  group_g.data += block.group * s.group_K();
  OutputTile<T> to = dx;
  to.data += block.group * s.group_C() + block.first;
  packed += (block.group * round_up_to_lanes<T>(s.group_C()) + block.first) * s.R * s.S * s.group_K();
  const auto run = block.vectors == 2 ? backward_data_block<T, 2> : backward_data_block<T, 1>;
  run(s, group_g, packed, to, block.last_lanes);
}

// ---- backward_weight -------------------------------------------------------------------------------------------

template <class T, int vectors, bool partial>
FC_INLINE void backward_weight_taps(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g, T* dw,
                                    const TapRange& taps, int64_t last_lanes) {
  const int64_t C = s.group_C();
  const Strides& strides = x.strides;
  const Walk pixels = {g.images, strides.image, g.rows, s.stride_h * strides.row, s.Q, s.stride_w * strides.pixel};
  for (int64_t first = taps.first; first < taps.last; first += block_rows) {
    const int count = static_cast<int>(taps.last - first < block_rows ? taps.last - first : block_rows);
    const T* a[block_rows] = {};
    for (int row = 0; row < block_rows; ++row) {
      const int64_t tap = row < count ? first + row : first;
      const int64_t r = tap / (s.S * C), tap_s = tap / C % s.S, c = tap % C;
      a[row] = x.data + r * s.dilation_h * strides.row + tap_s * s.dilation_w * strides.pixel + c;
    }
    Block<T, vectors> acc;
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) {
      const T* from = dw + (row < count ? first + row : first) * s.K;
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        acc.value[row][v] = load_lane_vector<T, vectors, partial>(from, v, last_lanes);
      }
    }
    accumulate<T, vectors, partial>(acc, a, pixels, g.data, s.K, last_lanes);
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) {
      if (row < count) store_block(acc, row, dw + (first + row) * s.K, last_lanes);
    }
  }
}

// db[c] += sum over the pixels of g[pixel][c], in several partial sums for accuracy.
template <class T>
void backward_bias(const Conv2dShape& s, const T* g, T* db, int64_t pixels, int64_t count) {
  constexpr int partial_sums = 8;
  for (int64_t c = 0; c < count; c += lanes<T>) {
    const int64_t left = count - c;
    Vec<T> sum[partial_sums] = {};
    int64_t i = 0;
    for (; i + partial_sums <= pixels; i += partial_sums) {
      for (int j = 0; j < partial_sums; ++j) sum[j] += load_upto(g + (i + j) * s.K + c, left);
    }
    for (; i < pixels; ++i) sum[0] += load_upto(g + i * s.K + c, left);
    for (int step = partial_sums / 2; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) sum[j] += sum[j + step];
    }
    store_upto(db + c, load_upto(db + c, left) + sum[0], left);
  }
}

// Adds the tile's part of the gradient to the sums of the weight, [r, s, c][K], for some taps of one block of output
// channels; to those of the bias, [K], too where they are not null. The pixels of g are adjacent through all images.
template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g,
                            const WeightSums<T>& sums, const TapRange& taps, int64_t index) {
  const ChannelBlock<T> block(index, s.group_K());
  const int64_t k = block.group * s.group_K() + block.first;
  InputTile<T> group_x = x;
  group_x.data += block.group * s.group_C();
  GradientTile<T> block_g = g;
  block_g.data += k;
  const bool partial = block.last_lanes < lanes<T>;
  const auto run = block.vectors == 2
                       ? (partial ? backward_weight_taps<T, 2, true> : backward_weight_taps<T, 2, false>)
                       : (partial ? backward_weight_taps<T, 1, true> : backward_weight_taps<T, 1, false>);
  run(s, group_x, block_g, sums.weight + k, taps, block.last_lanes);
  if (sums.bias) backward_bias(s, block_g.data, sums.bias + k, g.images * g.rows * s.Q, block.count);
}

}  // namespace fastconv::FC_LEVEL
