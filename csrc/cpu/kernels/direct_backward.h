// The gradients of the direct convolution (formula of the convolution: shapes.h):
//
//   dx[n, h, w, c] = sum over r, s, k of g[n, p, q, k] * w[k, r, s, c]
//                    where h = p * u + r * d - pad and w = q * v + s * d - pad
//   dw[k, r, s, c] = sum over n, p, q of g[n, p, q, k] * x[n, p * u + r * d - pad, q * v + s * d - pad, c]
//   db[k]          = sum over n, p, q of g[n, p, q, k]
//
// Layout: x, g and dx are NHWC. direct_pack.h packs the weight. dw is [r, s, c][K] and db is [K]. One call processes
// one tile of pixels and one block of channels. Calls for dx may run in parallel. Terms are added in a fixed order.
//
// Blocking: backward_data holds block_rows pixels of dx x block_lanes input channels in registers and sums over K.
// backward_weight holds block_rows taps x block_lanes output channels and sums over the pixels of the tile. The tile's
// x and g stay in the first-level cache and are read again for each block of taps.
#pragma once

#include "blocks.h"

namespace fastconv::FC_LEVEL::direct {

// ---- backward_data ---------------------------------------------------------------------------------------------

struct Tap {
  int64_t r, s;
};

// One tap (r, s): dx[pixel] += sum over k of g[pixel][k] * w[r, s][k][c]. It skips output pixels whose tap is in the
// padding or outside of the tile, so no product is wasted.
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
    // The sum starts at zero and is then added to dx. A sum that starts at dx has more than twice PyTorch's error.
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

// Adds the gradient to one block of channels of dx, which the caller has zeroed. g has the same images, and all output
// rows that read the tile's pixels.
template <class T>
void backward_data(const Conv2dShape& s, const GradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                   int64_t index) {
  FASTCONV_ASSERT(readable(g.data) && readable(packed) && readable(dx.data));
  FASTCONV_ASSERT(dx.images > 0 && dx.rows > 0 && dx.row >= 0 && dx.row + dx.rows <= s.H);
  FASTCONV_ASSERT(g.images == dx.images && g.row >= 0 && g.rows >= 0 && g.row + g.rows <= s.P);
  FASTCONV_ASSERT(is_block<T>(index, s.groups, s.group_C()));
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
    Block<T, vectors> acc = {};
    accumulate<T, vectors, partial>(acc, a, pixels, g.data, s.K, last_lanes);
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) {
      if (row < count) add_block(acc, row, dw + (first + row) * s.K, last_lanes);
    }
  }
}

// Adds one tile's contribution to dw, for a range of taps and one block of output channels, and to db. The images of g
// are contiguous.
template <class T>
void backward_weight(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g, const WeightSums<T>& sums,
                     const TapRange& taps, int64_t index) {
  FASTCONV_ASSERT(readable(g.data) && (s.C == 0 || (readable(x.data) && readable(sums.weight))));
  FASTCONV_ASSERT(g.images > 0 && g.rows > 0 && g.row >= 0 && g.row + g.rows <= s.P);
  FASTCONV_ASSERT(g.images == 1 || g.image_stride == g.rows * s.Q * s.K);
  FASTCONV_ASSERT(0 <= taps.first && taps.first <= taps.last && taps.last <= s.taps());
  FASTCONV_ASSERT(is_block<T>(index, s.groups, s.group_K()));
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
  if (sums.bias) backward_bias(s.K, block_g.data, sums.bias + k, g.images * g.rows * s.Q, block.count);
}

}  // namespace fastconv::FC_LEVEL::direct
