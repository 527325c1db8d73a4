// Lists of the non-zero values of a gradient, and sums over these lists, for sparse_gradient.h and its 3x3 variant.
//
// Offsets have the type Offset<T>, which is as wide as T. So an offset and a value fill the same lane of a vector.
#pragma once

#include "blocks.h"
#include "simd_bytes.h"

namespace fastconv::FC_LEVEL {

// A run is a sequence of taps that read contiguous x. A line is a group of runs at equal distances in x. If dilation_w
// is 1 (`whole_rows`), a run has all (s, c) of one r, and all runs form one line. Otherwise, a run has all c of one
// (r, s), and the runs of one r form a line.
struct Runs {
  int64_t length;        // elements of a run
  int64_t lines, count;  // `count` runs in a line
  bool whole_rows;

  explicit Runs(const Conv2dShape& s) {
    whole_rows = s.dilation_w == 1;
    length = whole_rows ? s.S * s.C : s.C;
    lines = whole_rows ? 1 : s.R;
    count = whole_rows ? s.R : s.S;
  }
};

// Runs that begin `step` elements apart.
template <class T>
struct RunsAt {
  T* data;
  int64_t step;
};

// sum[run][v] += sum over i < length of value[i] * (vector v at from[offset[i] + run * step]), for all runs at once.
// The sums stay in registers.
template <class T, int runs, int vectors, bool partial>
FC_INLINE void add_list(RunsAt<T> sum, RunsAt<const T> from, const Offset<T>* offset, const T* value, int64_t length,
                        int64_t last_lanes) {
  // `acc` starts at zero and is then added to `sum`. Starting it with `sum` gives dx more than twice PyTorch's error.
  Vec<T> acc[runs][vectors] = {};
  for (int64_t i = 0; i < length; ++i) {
    const T* row = opaque(from.data + offset[i]);
    const T factor = value[i];
#pragma GCC unroll 3
    for (int run = 0; run < runs; ++run) {
#pragma GCC unroll 12
      for (int v = 0; v < vectors; ++v) {
        acc[run][v] += factor * load_lane_vector<T, vectors, partial>(row, v, last_lanes);
      }
      row = opaque(row + from.step);
    }
  }
#pragma GCC unroll 3
  for (int run = 0; run < runs; ++run) {
    T* to = sum.data + run * sum.step;
#pragma GCC unroll 12
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> total = load_lane_vector<T, vectors, partial>(to, v, last_lanes) + acc[run][v];
      if (partial && v == vectors - 1) {
        store_partial(to + v * lanes<T>, total, last_lanes);
      } else {
        store(to + v * lanes<T>, total);
      }
    }
  }
}

// `count` lists of non-zero values. List i begins at element i * capacity of `offset` and `value`, and its sums at
// element i * sum_step of the sums.
template <class T>
struct NonZeroLists {
  const Offset<T>* offset;
  const T* value;
  const int64_t* length;
  int64_t count, capacity, sum_step;
};

// Calls add_list for all lists and all vectors of a run, with as many vectors at once as the registers hold.
//
// A list costs about 60 cycles besides its FMAs: its sums are loaded and stored, and the branch at its end is
// mispredicted. Several runs at once share that cost. dw of 3x3x32 with lists of 12 values takes 27 cycles for each
// value with three runs at once, and 34 with one. The loop over the vectors is outside of the loop over the lists. So
// all lists read the same few columns of `from`, which stay in the first-level cache.
template <class T, int runs>
FC_INLINE void add_lists_to_runs(RunsAt<T> sum, RunsAt<const T> from, const NonZeroLists<T>& lists, int64_t length) {
  constexpr int64_t n = lanes<T>;
  constexpr int registers = block_rows * block_vectors;
  int64_t done = 0;
  const auto add_lists = [&](auto vectors, auto partial, int64_t last_lanes) {
    for (int64_t i = 0; i < lists.count; ++i) {
      add_list<T, runs, decltype(vectors)::value, decltype(partial)::value != 0>(
          {sum.data + i * lists.sum_step + done, sum.step}, {from.data + done, from.step},
          lists.offset + i * lists.capacity, lists.value + i * lists.capacity, lists.length[i], last_lanes);
    }
  };
  const auto add = [&](auto vectors) {
    constexpr int count = decltype(vectors)::value;
    if constexpr (count * runs <= registers) {
      for (; done + count * n <= length; done += count * n) add_lists(vectors, Constant<0>{}, 0);
    }
  };
  add(Constant<12>{});
  add(Constant<6>{});
  add(Constant<4>{});
  add(Constant<2>{});
  add(Constant<1>{});
  if (done < length) add_lists(Constant<1>{}, Constant<1>{}, length - done);
}

// The gradients of all channels at one pixel of a window.
template <class T>
struct WindowPixel {
  const T* g;
  const uint8_t* argmax;
  int64_t position;
};

// For each channel k that has a gradient at this pixel, appends the offset in the weight (k * step) and the gradient to
// a list of `found` values. Returns the new length. It writes whole vectors, also beyond the end of the list.
template <class T>
FC_INLINE int64_t list_channels(const WindowPixel<T>& pixel, ChannelRange channels, int64_t step,
                                const NonZeroList<T>& list, int64_t found) {
  using I = Offset<T>;
  const T* g = pixel.g;
  const uint8_t* argmax = pixel.argmax;
  const int64_t k0 = channels.first, k1 = channels.last;
  Offset<T>* at = list.offset;
  T* value = list.value;
  const Vec<I> numbers = lane_numbers<I>(), wanted = static_cast<I>(pixel.position) - Vec<I>{};
  for (int64_t k = k0; k < k1; k += lanes<T>) {
    const Vec<I> position = load_bytes<T>(argmax + k, k1 - k, no_gradient);
    const uint32_t bits = lane_bits<I>(equal<I>(position, wanted));
    compress_store(at + found, (numbers + static_cast<I>(k)) * static_cast<I>(step), bits);
    compress_store(value + found, load_upto(g + k, k1 - k), bits);
    found += __builtin_popcount(bits);
  }
  return found;
}

// The lists of a tile: one for each window, pixel of the window and block of channels, in this order. List i begins at
// element end[i - 1] of `offset` and `value`, and ends at element end[i].
template <class T>
struct TileLists {
  const Offset<T>*offset, *end;
  const T* value;
};

// Lists the gradients of a tile in `workspace`, in blocks of `block` channels. Offsets count `step` for each channel.
template <class T>
FC_INLINE TileLists<T> list_tile(const FusedShape& f, const SparseGradientTile<T>& g, int64_t block, int64_t step,
                                 const NonZeroList<T>& workspace) {
  const int64_t K = f.conv.K, row_windows = g.rows * f.pool.Q;
  Offset<T>* end = workspace.offset;
  *end++ = 0;
  const int64_t lists = g.images * row_windows * f.window() * ceil_div(K, block);
  const NonZeroList<T> list = {workspace.offset + lists + 1, workspace.value};
  int64_t found = 0;
  Offset<T>* list_end = end;
  for (int64_t n = 0; n < g.images; ++n) {
    for (int64_t i = 0; i < row_windows; ++i) {
      const int64_t from = (n * f.pool.P * f.pool.Q + i) * K;
      for (int64_t pixel = 0; pixel < f.window(); ++pixel) {
        for (int64_t k = 0; k < K; k += block) {
          const ChannelRange channels = {k, k + block < K ? k + block : K};
          found = list_channels<T>({g.data + from, g.argmax + from, pixel}, channels, step, list, found);
          *list_end++ = static_cast<Offset<T>>(found);
        }
      }
    }
  }
  return {list.offset, end, list.value};
}

}  // namespace fastconv::FC_LEVEL
