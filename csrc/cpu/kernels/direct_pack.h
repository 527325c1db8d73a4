// The packed weights of the direct convolution:
//
//   forward         [block of K][r, s, c][block_lanes of k]
//   backward_data   [block of C][r, s][k][block_lanes of c]
//
// So the kernels read their weights sequentially. The last block of a group is filled with zeros up to a whole vector.
//
// Input: a weight (K, C / groups, R, S) in memory as [k][r, s][c] (channels_last, `krsc`) or [k][c][r, s] (contiguous).
#pragma once

#include "blocks.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL::direct {

template <class T>
int64_t packed_forward_size(const Conv2dShape& s) {
  return s.groups * round_up_to_lanes<T>(s.group_K()) * s.taps();
}

// Packs block `index` of the output channels.
template <class T>
void pack_weight_forward(const Conv2dShape& s, const T* weight, bool krsc, int64_t index, T* packed) {
  FASTCONV_ASSERT(readable(weight) && readable(packed));
  FASTCONV_ASSERT(is_block<T>(index, s.groups, s.group_K()));
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

// Packs block `index` of the input channels. `packed` starts with block `first`, which is 0 if there are groups.
template <class T>
void pack_weight_backward(const Conv2dShape& s, const T* weight, bool krsc, int64_t index, int64_t first, T* packed) {
  FASTCONV_ASSERT(readable(weight) && readable(packed));
  FASTCONV_ASSERT(is_block<T>(index, s.groups, s.group_C()));
  const ChannelBlock<T> block(index, s.group_C());
  const int64_t taps = s.taps(), RS = s.R * s.S, C = s.group_C(), K = s.group_K();
  const int64_t width = block.vectors * lanes<T>;
  T* to = packed + (block.group * round_up_to_lanes<T>(C) + block.first - first * block_lanes<T>)*RS * K;
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

}  // namespace fastconv::FC_LEVEL::direct
