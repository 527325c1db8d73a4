// Depthwise 2-D convolution (groups == C == K), forward and backward. Lanes are channels. The direct kernels would use
// one lane in sixteen here.
//
//   y[n, p, q, c]  = b[c] + sum over r, s of x[n, p * u + r * d - pad, q * v + s * d - pad, c] * w[r, s, c]
//   dx[n, h, w, c] = sum over r, s of g[n, p, q, c] * w[r, s, c]     h = p * u + r * d - pad, w = q * v + s * d - pad
//   dw[r, s, c]    = sum over n, p, q of g[n, p, q, c] * x[...]
//
// Layout: x, y, g and dx are NHWC. The packed weight and dw are [r, s][C]. The interface is that of the direct kernels.
// A block is block_lanes adjacent channels.
//
// Blocking: forward holds 4 output pixels of one vector of channels in registers. They share each load of the weight.
// backward_weight holds the sums of 9 taps. backward_data adds one tap at a time to dx in memory.
#pragma once

#include "blocks.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL::depthwise {

template <class T>
FC_INLINE ChannelRange channels_of_block(const Conv2dShape& s, int64_t index) {
  const int64_t first = index * block_lanes<T>, last = first + block_lanes<T>;
  return {first, last < s.C ? last : s.C};
}

template <class T>
int64_t packed_size(const Conv2dShape& s) {
  return s.R * s.S * s.C;
}

template <class T>
void pack_weight(const Conv2dShape& s, const T* weight, bool, int64_t index, T* packed) {
  const ChannelRange c = channels_of_block<T>(s, index);
  const int64_t RS = s.R * s.S;
  transpose(weight + c.first * RS, RS, c.last - c.first, RS, packed + c.first, s.C);
}

// Number of output pixels that share one load of the weight.
constexpr int pixels_at_once = 4;

template <class T>
void forward(const Conv2dShape& s, const InputTile<T>& input, const PackedWeight<T>& weight, const OutputTile<T>& to,
             int64_t index) {
  FASTCONV_ASSERT(readable(input.data) && readable(weight.data) && readable(to.data));
  FASTCONV_ASSERT(to.images > 0 && to.row >= 0 && to.rows >= 0 && to.row + to.rows <= s.P);
  FASTCONV_ASSERT(is_block<T>(index, 1, s.C));
  const T *x = input.data, *packed = weight.data, *bias = weight.bias;
  const Strides& strides = input.strides;
  T* y = to.data;
  const int64_t images = to.images, rows = to.rows;
  const ChannelRange channels = channels_of_block<T>(s, index);
  const int64_t step = s.stride_w * strides.pixel;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t p = 0; p < rows; ++p) {
      const T* x_row = x + n * strides.image + p * s.stride_h * strides.row;
      T* y_row = y + (n * rows + p) * s.Q * s.C;
      for (int64_t c = channels.first; c < channels.last; c += lanes<T>) {
        const int64_t left = channels.last - c;
        const Vec<T> start = bias ? load_upto(bias + c, left) : Vec<T>{};
        for (int64_t q = 0; q < s.Q; q += pixels_at_once) {
          const T* a[pixels_at_once];
          Vec<T> acc[pixels_at_once];
          for (int i = 0; i < pixels_at_once; ++i) {
            a[i] = x_row + (q + i < s.Q ? q + i : q) * step + c;
            acc[i] = start;
          }
          for (int64_t r = 0; r < s.R; ++r) {
            for (int64_t tap = 0; tap < s.S; ++tap) {
              const int64_t offset = r * s.dilation_h * strides.row + tap * s.dilation_w * strides.pixel;
              const Vec<T> w = load_upto(packed + (r * s.S + tap) * s.C + c, left);
              for (int i = 0; i < pixels_at_once; ++i) acc[i] += load_upto(a[i] + offset, left) * w;
            }
          }
          for (int i = 0; i < pixels_at_once; ++i) {
            if (q + i < s.Q) store_upto(y_row + (q + i) * s.C + c, acc[i], left);
          }
        }
      }
    }
  }
}

template <class T>
void backward_data(const Conv2dShape& s, const GradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                   int64_t index) {
  FASTCONV_ASSERT(readable(g.data) && readable(packed) && readable(dx.data));
  FASTCONV_ASSERT(dx.images > 0 && dx.rows > 0 && dx.row >= 0 && dx.row + dx.rows <= s.H);
  FASTCONV_ASSERT(g.images == dx.images && g.row >= 0 && g.rows >= 0 && g.row + g.rows <= s.P);
  FASTCONV_ASSERT(is_block<T>(index, 1, s.C));
  const int64_t images = dx.images, h0 = dx.row, rows = dx.rows;
  const ChannelRange channels = channels_of_block<T>(s, index);
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t r = 0; r < s.R; ++r) {
      const int64_t shift_h = r * s.dilation_h - s.pad_h;
      const Range p_range(h0, h0 + rows, s.stride_h, shift_h, s.P);
      for (int64_t p = p_range.begin; p < p_range.end; ++p) {
        const T* g_row = g.data + n * g.image_stride + (p - g.row) * s.Q * s.C;
        T* dx_row = dx.data + (n * rows + p * s.stride_h + shift_h - h0) * s.W * s.C;
        for (int64_t tap = 0; tap < s.S; ++tap) {
          const int64_t shift_w = tap * s.dilation_w - s.pad_w;
          const Range q_range(0, s.W, s.stride_w, shift_w, s.Q);
          for (int64_t c = channels.first; c < channels.last; c += lanes<T>) {
            const int64_t left = channels.last - c;
            const Vec<T> w = load_upto(packed + (r * s.S + tap) * s.C + c, left);
            for (int64_t q = q_range.begin; q < q_range.end; ++q) {
              T* to = dx_row + (q * s.stride_w + shift_w) * s.C + c;
              store_upto(to, load_upto(to, left) + load_upto(g_row + q * s.C + c, left) * w, left);
            }
          }
        }
      }
    }
  }
}

// Taps whose sums stay in registers together.
constexpr int64_t taps_at_once = 9;

template <class T>
void backward_weight(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g, const WeightSums<T>& sums,
                     const TapRange& range, int64_t index) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(sums.weight));
  FASTCONV_ASSERT(g.images > 0 && g.rows > 0 && g.row >= 0 && g.row + g.rows <= s.P);
  FASTCONV_ASSERT(g.images == 1 || g.image_stride == g.rows * s.Q * s.K);
  FASTCONV_ASSERT(0 <= range.first && range.first <= range.last && range.last <= s.taps());
  FASTCONV_ASSERT(is_block<T>(index, 1, s.C));
  const Strides& strides = x.strides;
  const int64_t images = g.images, rows = g.rows;
  const ChannelRange channels = channels_of_block<T>(s, index);
  for (int64_t tap0 = range.first; tap0 < range.last; tap0 += taps_at_once) {
    const int64_t taps = range.last - tap0 < taps_at_once ? range.last - tap0 : taps_at_once;
    int64_t offset[taps_at_once];
    for (int64_t t = 0; t < taps_at_once; ++t) {
      const int64_t tap = t < taps ? tap0 + t : tap0;
      offset[t] = tap / s.S * s.dilation_h * strides.row + tap % s.S * s.dilation_w * strides.pixel;
    }
    for (int64_t c = channels.first; c < channels.last; c += lanes<T>) {
      const int64_t left = channels.last - c;
      Vec<T> acc[taps_at_once] = {};
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t p = 0; p < rows; ++p) {
          const T* x_row = x.data + n * strides.image + p * s.stride_h * strides.row + c;
          const T* g_row = g.data + (n * rows + p) * s.Q * s.C + c;
          for (int64_t q = 0; q < s.Q; ++q) {
            const Vec<T> value = load_upto(g_row + q * s.C, left);
            const T* from = x_row + q * s.stride_w * strides.pixel;
            for (int64_t t = 0; t < taps_at_once; ++t) acc[t] += load_upto(from + offset[t], left) * value;
          }
        }
      }
      for (int64_t t = 0; t < taps; ++t) {
        T* to = sums.weight + (tap0 + t) * s.C + c;
        store_upto(to, load_upto(to, left) + acc[t], left);
      }
    }
  }
  if (!sums.bias) return;
  backward_bias(s, g.data + channels.first, sums.bias + channels.first, images * rows * s.Q,
                channels.last - channels.first);
}

}  // namespace fastconv::FC_LEVEL::depthwise
