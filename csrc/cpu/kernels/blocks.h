// Code that the convolution kernels share: blocks of channels, blocks of sums, and the gradient of the bias.
#pragma once

#include "accumulate.h"
#include "assert.h"
#include "operands.h"
#include "range.h"

namespace fastconv::FC_LEVEL {

// A block of channels. The channels of each group are cut into blocks of at most block_lanes channels. `index` counts
// the blocks of all groups. `channels` is the number of channels in one group.
template <class T>
struct ChannelBlock {
  int64_t group, first, count;  // `first` counts within the group
  int vectors;                  // 1 or 2
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
bool is_block(int64_t index, int64_t groups, int64_t channels) {
  return index >= 0 && index < groups * ceil_div(channels, block_lanes<T>);
}

template <class T>
int64_t round_up_to_lanes(int64_t channels) {
  return ceil_div(channels, lanes<T>) * lanes<T>;
}

// The rows of a register block that holds `count` rows: block_rows, or two thirds or one third of it.
constexpr int third_of_rows = block_rows / 3;
inline int64_t rows_of_block(int64_t count) {
  return count > 2 * third_of_rows ? block_rows : count > third_of_rows ? 2 * third_of_rows : third_of_rows;
}

// Calls f(Constant<rows_of_block(count)>{}).
template <class F>
FC_INLINE void with_rows_of_block(int64_t count, const F& f) {
  if (count <= third_of_rows) {
    f(Constant<third_of_rows>{});
  } else if (count <= 2 * third_of_rows) {
    f(Constant<2 * third_of_rows>{});
  } else {
    f(Constant<block_rows>{});
  }
}

template <class T, int vectors, int rows>
FC_INLINE void store_block(const Block<T, vectors, rows>& acc, int row, T* to, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors - 1; ++v) store(to + v * lanes<T>, acc.value[row][v]);
  store_upto(to + (vectors - 1) * lanes<T>, acc.value[row][vectors - 1], last_lanes);
}

// `to` is aligned to a vector, and all lanes are in use.
template <class T, int vectors, int rows>
FC_INLINE void stream_block(const Block<T, vectors, rows>& acc, int row, T* to) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) stream(to + v * lanes<T>, acc.value[row][v]);
}

template <class T, int vectors, int rows>
FC_INLINE void add_block(const Block<T, vectors, rows>& acc, int row, T* to, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors - 1; ++v) store(to + v * lanes<T>, load(to + v * lanes<T>) + acc.value[row][v]);
  T* last = to + (vectors - 1) * lanes<T>;
  store_upto(last, load_upto(last, last_lanes) + acc.value[row][vectors - 1], last_lanes);
}

// The gradient of the bias: db[c] += sum over the pixels of g[pixel][c], for `count` channels. Pixels are `step`
// elements apart. Eight partial sums keep the rounding error small.
template <class T>
void backward_bias(int64_t step, const T* g, T* db, int64_t pixels, int64_t count) {
  constexpr int partial_sums = 8;
  for (int64_t c = 0; c < count; c += lanes<T>) {
    const int64_t left = count - c;
    Vec<T> sum[partial_sums] = {};
    int64_t i = 0;
    for (; i + partial_sums <= pixels; i += partial_sums) {
      for (int j = 0; j < partial_sums; ++j) sum[j] += load_upto(g + (i + j) * step + c, left);
    }
    for (; i < pixels; ++i) sum[0] += load_upto(g + i * step + c, left);
    for (int step = partial_sums / 2; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) sum[j] += sum[j + step];
    }
    store_upto(db + c, load_upto(db + c, left) + sum[0], left);
  }
}

}  // namespace fastconv::FC_LEVEL
