// backward_weight and backward_data of the dense-in-groups convolution for a gradient that is mostly zeros: behind a
// max-pool of 2 x 2 at most one value in four is not, and behind ReLU only those where the output is above zero (in
// training 50 to 60 % of the windows of MnistCNN's pools, 30 % of conv3's outputs). Products with zeros are not
// computed; what is computed is what the dense kernels compute, less terms that are exactly zero. The caller makes sure
// that those are: no infinity or NaN in x or w.
//
// The gradient comes as g, one value a window, and argmax, a byte that says which pixel of the window it belongs to, or
// that it is dead (window.h). A gradient without pooling is one of windows of one pixel (mark_zeros). Both are NHWC.
// Bytes that are neither a position nor `dead` come from nobody but a direct caller of the operators; they read no
// memory that they should not, and mean nothing.
//
// Both passes first write down the live values, then spend one FMA a vector of taps on each:
//   backward_weight  a list of pixels for each k; dw[k][run] stays in registers:  dw[k][run] += g * x[pixel][run]
//   backward_data    a list of k for each pixel; dx[run] stays in registers:      dx[run] += g * w[k][run]
// A run is a row of taps whose x is adjacent in NHWC memory: (s, c) for one r where pixels touch, else c for one
// (r, s). Scattering g the other way round loses in both passes, since stores cost more than loads (42 against 26
// cycles a live value for dx of 3x3x32, Zen 4).
//
// groups == 1. Weights and dw are KRSC. Offsets are counted in Offset<T>, as wide as T, so lists fill whole vectors.
#pragma once

#include "conv2d.h"
#include "transpose.h"

namespace fastconv::FC_LEVEL {

// 0 * x is 0 for finite x only. Four sums, since an FMA waits for the one before it.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vec<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<T> <= count; i += 4 * lanes<T>) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] += load(values + i + j * lanes<T>) * T(0);
  }
  for (; i < count; i += lanes<T>) sum[0] += load_upto(values + i, count - i) * T(0);
  return nonzero_lanes<T>(sum[0] + sum[1] + sum[2] + sum[3]) == 0;
}

// The argmax of a gradient without windows. Returns how many are live.
template <class T>
int64_t mark_zeros(const T* values, uint8_t* argmax, int64_t count) {
  int64_t live = 0;
  for (int64_t i = 0; i < count; ++i) {
    argmax[i] = values[i] == T(0) ? dead : 0;
    live += values[i] != T(0);
  }
  return live;
}

inline int64_t count_live(const uint8_t* argmax, int64_t count) {
  typedef uint8_t Bytes __attribute__((vector_size(FC_VECTOR_BYTES)));
  typedef uint8_t Unaligned __attribute__((vector_size(FC_VECTOR_BYTES), aligned(1), may_alias));
  int64_t live = 0, i = 0;
  while (i + FC_VECTOR_BYTES <= count) {
    Bytes found = {};
    for (int turn = 0; turn < 255 && i + FC_VECTOR_BYTES <= count; ++turn, i += FC_VECTOR_BYTES) {
      found -= (Bytes)(*reinterpret_cast<const Unaligned*>(argmax + i) != dead);  // true is -1
    }
    for (int lane = 0; lane < FC_VECTOR_BYTES; ++lane) live += found[lane];
  }
  for (; i < count; ++i) live += argmax[i] != dead;
  return live;
}

// How the taps of one pixel fall into runs, and runs into lines: runs at one distance from each other in x. A line is
// the kernel's rows where a row is one run, else the pixels of a row.
struct Runs {
  int64_t length;        // of a run, in elements
  int64_t lines, count;  // runs in a line
  bool whole_rows;

  explicit Runs(const Conv2dShape& s) {
    whole_rows = s.dilation_w == 1;
    length = whole_rows ? s.S * s.C : s.C;
    lines = whole_rows ? 1 : s.R;
    count = whole_rows ? s.R : s.S;
  }
};

// Runs in memory, from the first: `step` elements from one to the next.
template <class T>
struct RunsAt {
  T* data;
  int64_t step;
};

// sum[run][0 ... vectors) += value[i] * from[offset[i] + run * step ...] over i, for `runs` runs, the sums in
// registers.
template <class T, int runs, int vectors, bool partial>
FC_INLINE void add_live(RunsAt<T> sum, RunsAt<const T> from, const Offset<T>* offset, const T* value, int64_t live,
                        int64_t last_lanes) {
  // From zero, and then added: a sum that goes on from dx errs more than twice as much as PyTorch's.
  Vec<T> acc[runs][vectors] = {};
  for (int64_t i = 0; i < live; ++i) {
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

// Lists of live values: `count` of them, list i at offset + i * capacity and value + i * capacity, for sums that are
// `sum_step` apart.
template <class T>
struct LiveLists {
  const Offset<T>* offset;
  const T* value;
  const int64_t* length;
  int64_t count, capacity, sum_step;
};

// The same for runs of any length, as many vectors at a time as registers hold. What a list costs beside its FMAs (sums
// loaded and stored, a misprediction at its end, 60 cycles) is shared by the runs: dw of 3x3x32 with lists of 12 takes
// 27 cycles a live value for three runs at once, 34 for one after the other. Lists go round inside, so that the columns
// of `from` that they read stay in the first-level cache.
template <class T, int runs>
FC_INLINE void add_live_runs(RunsAt<T> sum, RunsAt<const T> from, const LiveLists<T>& lists, int64_t length) {
  constexpr int64_t n = lanes<T>;
  constexpr int registers = block_rows * block_vectors;
  int64_t done = 0;
  const auto add_lists = [&](auto vectors, auto partial, int64_t last_lanes) {
    for (int64_t i = 0; i < lists.count; ++i) {
      add_live<T, runs, decltype(vectors)::value, decltype(partial)::value != 0>(
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

// Elements of scratch that the lists of so many windows need, for offsets and values each.
template <class T>
int64_t live_list_size(const FusedShape& f, int64_t windows) {
  const int64_t by_channel = 3 * lanes<T> * (ceil_div(windows, lanes<T>) + 1) * lanes<T>;
  const int64_t by_pixel = windows * (f.conv.K + f.window()) + 1 + lanes<T>;
  return by_channel > by_pixel ? by_channel : by_pixel;
}

// Where in x the pixel of each live window and channel lies, for `channels` channels, and its gradient; -1 where it is
// dead. [window][lanes], and behind them, transposed, [lanes][windows rounded up]. Adds the gradients up, too.
template <class T>
struct LivePixels {
  int64_t windows, row;  // row: windows rounded up
  Offset<T>* at;
  T* value;

  FC_INLINE void find(const FusedShape& f, const Strides& x, const SparseGradientTile<T>& tile, int64_t channels,
                      T* sum) {
    using I = Offset<T>;
    const T* g = tile.data;
    const uint8_t* argmax = tile.argmax;
    const int64_t images = tile.images, rows = tile.rows;
    const Pool2dShape& pool = f.pool;
    const int64_t K = f.conv.K, x_row = f.conv.stride_h * x.row, x_pixel = f.conv.stride_w * x.pixel;
    const bool by_permutation = f.window() <= lanes<T>;
    I in_window[256];
    for (int64_t i = 0; i < (by_permutation ? lanes<T> : 256); ++i) in_window[i] = 0;
    for (int64_t i = 0; i < f.window(); ++i) {
      in_window[i] = static_cast<I>(i / pool.S * pool.dilation_h * x_row + i % pool.S * pool.dilation_w * x_pixel);
    }
    const Vec<I> first_places = load(in_window), none = static_cast<I>(-1) - Vec<I>{};
    Vec<T> total = {};
    int64_t i = 0;
    for (int64_t n = 0; n < images; ++n) {
      const int64_t image = n * pool.P * pool.Q * K;
      for (int64_t p = 0; p < rows; ++p) {
        I first = static_cast<I>(n * x.image + p * pool.stride_h * x_row);
        int64_t from = image + p * pool.Q * K;
        for (int64_t q = 0; q < pool.Q; ++q, ++i) {
          const Vec<I> position = load_bytes<T>(argmax + from, channels, dead);
          const LaneMask<I> is_dead = equal<I>(position, static_cast<I>(dead) - Vec<I>{});
          Vec<I> place = permute<I>(first_places, position);
          if (!by_permutation) {
            for (int64_t k = 0; k < lanes<T>; ++k) place[k] = in_window[position[k]];
          }
          const Vec<T> live = select<T>(is_dead, Vec<T>{}, load_upto(g + from, channels));
          total += live;
          store(at + i * lanes<T>, select<I>(is_dead, none, place + first));
          store(value + i * lanes<T>, live);
          first += static_cast<I>(pool.stride_w * x_pixel);
          from += K;
        }
      }
    }
    store_upto(sum, load_upto(sum, channels) + total, channels);
    transpose(at, lanes<T>, windows, lanes<T>, at + row * lanes<T>, row);
    transpose(value, lanes<T>, windows, lanes<T>, value + row * lanes<T>, row);
  }

  // One channel's live windows as a list, in order. Returns its length; vectors are written whole.
  FC_INLINE int64_t list(int64_t k, const NonZeroList<T>& to) const {
    int64_t live = 0;
    for (int64_t i = 0; i < windows; i += lanes<T>) {
      const int64_t from = (lanes<T> + k) * row + i;
      const Vec<Offset<T>> here = load(at + from);
      const uint32_t bits = lane_bits<Offset<T>>(at_least_zero<Offset<T>>(here)) & first_bits(windows - i);
      compress_store(to.offset + live, here, bits);
      compress_store(to.value + live, load(value + from), bits);
      live += __builtin_popcount(bits);
    }
    return live;
  }

  static uint32_t first_bits(int64_t count) { return count >= lanes<T> ? ~0u : (1u << count) - 1; }
};

// Adds a tile's part of the gradient to the sums of the weight, [K][r, s, c], and of the bias, [K], for output channels
// [k0, k0 + lanes). x: the first pixel that the tile's first window reads. No window hangs over an edge.
template <class T>
void live_backward_weight(const FusedShape& f, const InputTile<T>& x, const SparseGradientTile<T>& g,
                          const WeightSums<T>& sums, int64_t k0, const NonZeroList<T>& list) {
  const Conv2dShape& s = f.conv;
  const Strides& strides = x.strides;
  Offset<T>* at = list.offset;
  T* value = list.value;
  const int64_t channels = s.K - k0 < lanes<T> ? s.K - k0 : lanes<T>;
  const int64_t windows = g.images * g.rows * f.pool.Q, row = ceil_div(windows, lanes<T>) * lanes<T>;
  const int64_t capacity = row + lanes<T>;
  LivePixels<T> pixels{windows, row, at + capacity * lanes<T>, value + capacity * lanes<T>};
  pixels.find(f, strides, {g.data + k0, g.argmax + k0, g.images, g.row, g.rows}, channels, sums.bias + k0);
  int64_t live[lanes<T>];
  for (int64_t k = 0; k < channels; ++k) live[k] = pixels.list(k, {at + k * capacity, value + k * capacity});

  const LiveLists<T> lists{at, value, live, channels, capacity, s.taps()};
  const Runs runs(s);
  const int64_t step = runs.whole_rows ? s.dilation_h * strides.row : s.dilation_w * strides.pixel;
  T* to = sums.weight + k0 * s.taps();
  for (int64_t line = 0; line < runs.lines; ++line) {
    const T* from = x.data + line * s.dilation_h * strides.row;
    int64_t run = 0;
    for (; run + 3 <= runs.count; run += 3, to += 3 * runs.length) {
      add_live_runs<T, 3>({to, runs.length}, {from + run * step, step}, lists, runs.length);
    }
    for (; run < runs.count; ++run, to += runs.length) {
      add_live_runs<T, 1>({to, 0}, {from + run * step, 0}, lists, runs.length);
    }
  }
}

// The gradient at one pixel of a window.
template <class T>
struct WindowPixel {
  const T* g;
  const uint8_t* argmax;
  int64_t position;
};

// Appends the channels that are live at a pixel to a list of `found`: their places in the weight, `step` from one to
// the next, and their gradients. Returns the list's new length; vectors are written whole.
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
    const Vec<I> position = load_bytes<T>(argmax + k, k1 - k, dead);
    const uint32_t bits = lane_bits<I>(equal<I>(position, wanted));
    compress_store(at + found, (numbers + static_cast<I>(k)) * static_cast<I>(step), bits);
    compress_store(value + found, load_upto(g + k, k1 - k), bits);
    found += __builtin_popcount(bits);
  }
  return found;
}

// One pixel's list, to all pixels of one image of the tile that its taps reach, of which the first is (h, w).
template <class T>
FC_INLINE void scatter_pixel(const Conv2dShape& s, const T* weight, const LiveLists<T>& list, const OutputTile<T>& tile,
                             int64_t h, int64_t w) {
  T* dx = tile.data;
  const int64_t rows = tile.rows;
  const Runs runs(s);
  const int64_t step_h = s.dilation_h, step_w = runs.whole_rows ? 0 : s.dilation_w, width = runs.length / s.C;
  if (runs.whole_rows && runs.count == 3 && h >= 0 && h + 2 * step_h < rows && w >= 0 && w + width <= s.W) {
    return add_live_runs<T, 3>({dx + (h * s.W + w) * s.C, step_h * s.W * s.C}, {weight, runs.length}, list,
                               runs.length);
  }
  const int64_t taps_w = runs.whole_rows ? 1 : s.S;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t row = h + r * step_h;
    if (row < 0 || row >= rows) continue;
    for (int64_t tap = 0; tap < taps_w; ++tap) {
      // The run, less what hangs over the left and right edge.
      const int64_t column = w + tap * step_w;
      const int64_t first = column < 0 ? -column : 0, last = column + width > s.W ? s.W - column : width;
      if (first >= last) continue;
      add_live_runs<T, 1>({dx + (row * s.W + column + first) * s.C, 0},
                          {weight + (r * taps_w + tap) * runs.length + first * s.C, 0}, list, (last - first) * s.C);
    }
  }
}

// Adds to dx, which the caller has zeroed. g: the window rows of the same images that reach the tile.
template <class T>
void live_backward_data(const FusedShape& f, const SparseGradientTile<T>& gradient, const T* weight,
                        const OutputTile<T>& dx, const NonZeroList<T>& workspace) {
  const T* g = gradient.data;
  const uint8_t* argmax = gradient.argmax;
  const int64_t p0 = gradient.row, p_rows = gradient.rows, images = dx.images, h0 = dx.row, rows = dx.rows;
  Offset<T>* at = workspace.offset;
  T* value = workspace.value;
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const int64_t row_windows = p_rows * pool.Q, window = f.window();
  Offset<T>* end = at;  // of each pixel's list; before it, that of the pixel before
  *end++ = 0;
  at += images * row_windows * window + 1;
  int64_t found = 0;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t i = 0; i < row_windows; ++i) {
      const int64_t from = (n * pool.P * pool.Q + i) * s.K;
      for (int64_t pixel = 0; pixel < window; ++pixel) {
        found = list_channels<T>({g + from, argmax + from, pixel}, {0, s.K}, s.taps(), {at, value}, found);
        end[(n * row_windows + i) * window + pixel] = static_cast<Offset<T>>(found);
      }
    }
  }

  const Offset<T>* list = end - 1;
  for (int64_t n = 0; n < images; ++n) {
    const OutputTile<T> image = {dx.data + n * rows * s.W * s.C, 1, h0, rows};
    for (int64_t p = p0; p < p0 + p_rows; ++p) {
      for (int64_t q = 0; q < pool.Q; ++q) {
        for (int64_t i = 0; i < window; ++i, ++list) {
          if (list[0] == list[1]) continue;
          const int64_t pixel_h = p * pool.stride_h - pool.pad_h + i / pool.S * pool.dilation_h;
          const int64_t pixel_w = q * pool.stride_w - pool.pad_w + i % pool.S * pool.dilation_w;
          const int64_t live = list[1] - list[0];
          scatter_pixel(s, weight, {at + list[0], value + list[0], &live, 1, 0, 0}, image,
                        pixel_h * s.stride_h - s.pad_h - h0, pixel_w * s.stride_w - s.pad_w);
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL
