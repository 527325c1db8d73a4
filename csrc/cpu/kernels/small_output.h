// The forward pass of the convolution for few output pixels and many channels:
//
//   y[i, k] = b[k] + sum over r, s, c of x[offset[i] + (r, s) + c] * w[k, r, s, c]
//
// Layout: x is NHWC. The weight is channels_last (KRSC) and is not packed. y is [pixel][K].
//
// Blocking: lanes are input channels, of x and of the weight. A register block holds block_rows pixels x 2 output
// channels. Its lanes are added up at the end. The weight is read once for each block of pixels. That read is the main
// cost when the weight comes from memory and only a few pixels use it, as in inference on one image.
#pragma once

#include "blocks.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL::small_output {

// Sums the lanes of each vector of a block, row by row. The block is transposed first, so that whole vectors are added.
// Adding lane by lane costs as much as all multiplications of 512 channels.
template <class T>
FC_INLINE void sum_lanes(const Block<T, 2>& acc, T* sums) {
  constexpr int64_t count = 2 * block_rows;
  T turned[lanes<T> * count];
  transpose(reinterpret_cast<const T*>(acc.value), lanes<T>, count, lanes<T>, turned, count);
  for (int64_t i = 0; i < count; ++i) sums[i] = turned[i];
  for (int64_t lane = 1; lane < lanes<T>; ++lane) {
    for (int64_t i = 0; i < count; ++i) sums[i] += turned[lane * count + i];
  }
}

// Computes some output channels of a list of pixels. There is one group, and C is a multiple of the lanes.
template <class T>
void forward(const Conv2dShape& s, const InputTile<T>& input, const PixelList& list, const PackedWeight<T>& krsc, T* y,
             const ChannelRange& channels) {
  FASTCONV_ASSERT(readable(input.data) && readable(krsc.data) && readable(y) && list.count > 0);
  FASTCONV_ASSERT(s.groups == 1 && s.C % lanes<T> == 0);
  FASTCONV_ASSERT(0 <= channels.first && channels.first < channels.last && channels.last <= s.K);
  const T *x = input.data, *weight = krsc.data, *bias = krsc.bias;
  const Strides& strides = input.strides;
  const int64_t *at = list.offset, pixels = list.count, k0 = channels.first, k1 = channels.last;
  const bool runs = s.dilation_w == 1 && strides.pixel == s.C;  // a row of taps is contiguous
  const int64_t runs_in_row = runs ? 1 : s.S, length = runs ? s.S * s.C : s.C;
  for (int64_t k = k0; k < k1; k += 2) {
    const bool both = k + 1 < k1;
    for (int64_t first = 0; first < pixels; first += block_rows) {
      const T* a[block_rows];
      for (int row = 0; row < block_rows; ++row) a[row] = x + at[first + row < pixels ? first + row : first];
      const T *w0 = weight + k * s.taps(), *w1 = both ? w0 + s.taps() : w0;
      Block<T, 2> acc = {};
      for (int64_t r = 0; r < s.R; ++r) {
        for (int64_t run = 0; run < runs_in_row; ++run) {
          const int64_t begin = r * s.dilation_h * strides.row + run * s.dilation_w * strides.pixel;
          for (int64_t offset = begin; offset < begin + length; offset += lanes<T>) {
            const Vec<T> b0 = load(w0), b1 = load(w1);
#pragma GCC unroll 12
            for (int row = 0; row < block_rows; ++row) {
              const Vec<T> value = load(a[row] + offset);
              acc.value[row][0] += value * b0;
              acc.value[row][1] += value * b1;
            }
            w0 += lanes<T>;
            w1 += lanes<T>;
          }
        }
      }
      T sums[2 * block_rows];
      sum_lanes(acc, sums);
      for (int row = 0; row < block_rows && first + row < pixels; ++row) {
        T* to = y + (first + row) * s.K + k;
        to[0] = sums[2 * row] + (bias ? bias[k] : 0);
        if (both) to[1] = sums[2 * row + 1] + (bias ? bias[k + 1] : 0);
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL::small_output
