// Convolutions with thin groups: each group has 1, 2, 4, 8 or 16 input channels and as many output channels. Depthwise
// convolutions have groups of 1. backward_data is a forward convolution of grad_output (memory/phases.h).
//
//   y[p, q, k]     = b[k] + sum over r, s, c of x[h, j, c of k's group] * w[k, r, s, c]
//   dw[k, r, s, c] = sum over p, q of g[p, q, k] * x[h, j, c of k's group]
//   db[k]          = sum over p, q of g[p, q, k]
//   with h = p * u + r * d - pad and j = q * v + s * d - pad
//
// Lanes are output channels, so a vector holds one or more complete groups. The direct kernels would use only the lanes
// of one group. For channel c, each lane needs channel c of its own group. The vector of x is permuted for that, or
// broadcast if the vector holds one group.
//
// Layout: the driver copies a block of adjacent channels to a dense tile [row][column][block]. The tile includes the
// padding of the columns. The copy of a 16-bit tensor is in float32. A block is 64 bytes, one cache line. Without the
// copy, the pixels of a tensor of 512 channels are 2 KB apart, and only a few of them fit in the first-level cache
// together. The packed weight is [block][c][r, s][block of k].
//
// Blocking: forward holds up to 8 neighbouring outputs of one vector of channels in registers, and the weights of one
// kernel row. It loads each x once for all of these outputs. backward_weight holds the sums of up to 14 taps and up to
// 7 neighbouring values of g.
#pragma once

#include "blocks.h"
#include "channel_blocks.h"

namespace fastconv::FC_LEVEL::thin_groups {

// A group must fit in one vector. The driver copies tiles with their padding, whose size must not overflow.
template <class T>
bool supports(const Conv2dShape& s) {
  constexpr double most_pixels = 1e9;
  const double rows = static_cast<double>(s.H) + 2 * static_cast<double>(s.pad_h);
  const double columns = static_cast<double>(s.W) + 2 * static_cast<double>(s.pad_w);
  if (rows * columns > most_pixels) return false;
  const int64_t channels = s.groups > 1 ? s.group_C() : 0;
  return channels == s.group_K() &&
         (channels == 1 || channels == 2 || channels == 4 || channels == 8 || channels == 16) && channels <= lanes<T>;
}

// How a lane gets channel c of its group: from itself, by a permutation, or by a broadcast of one channel.
// `own_reloaded` is `own` with a load for each use.
enum class Source { own, own_reloaded, permuted, broadcast };

constexpr bool is_own(Source source) { return source == Source::own || source == Source::own_reloaded; }

template <class T>
Source source_of(int64_t group) {
  return group == 1 ? Source::own : group == lanes<T> ? Source::broadcast : Source::permuted;
}

// Loads channel c of each lane's group.
template <class T, Source source>
struct ChannelLoad {
  int64_t c;
  Vec<IntLike<T>> from;

  ChannelLoad(int64_t group, int64_t channel) : c(channel), from{} {
    const Vec<IntLike<T>> first = lane_numbers<IntLike<T>>() & static_cast<IntLike<T>>(-group);
    if constexpr (source == Source::permuted) from = first + static_cast<IntLike<T>>(channel);
  }

  FC_INLINE Vec<T> operator()(const T* x) const {
    if constexpr (source == Source::broadcast) return x[c] - Vec<T>{};
    if constexpr (source == Source::permuted) return permute<T>(load(x), from);
    return source == Source::own ? load_once(x) : load(x);
  }
};

// ---- forward -----------------------------------------------------------------------------------------------------

// Adds one kernel row of S taps to `pixels` neighbouring outputs of one vector of channels.
template <class T, int S, int stride, int pixels, Source source>
FC_INLINE void add_kernel_row(Vec<T> (&acc)[pixels], const ChannelLoad<T, source>& load_x, const T* x,
                              const T* weight) {
  Vec<T> w[S];
#pragma GCC unroll 7
  for (int tap = 0; tap < S; ++tap) w[tap] = load(weight + tap * block<T>);
#pragma GCC unroll 21
  for (int j = 0; j < (pixels - 1) * stride + S; ++j) {
    const Vec<T> value = load_x(x + j * block<T>);
#pragma GCC unroll 8
    for (int i = 0; i < pixels; ++i) {
      const int tap = j - i * stride;
      if (tap >= 0 && tap < S) acc[i] += value * w[tap];
    }
  }
}

// Does the same as add_kernel_row, for any kernel, stride and dilation.
template <class T, int pixels, Source source>
FC_INLINE void add_any_kernel_row(Vec<T> (&acc)[pixels], const ChannelLoad<T, source>& load_x, const T* x,
                                  const T* weight, const Conv2dShape& s) {
  const int64_t step = s.stride_w * block<T>, next = s.dilation_w * block<T>, S = s.S;
  for (int64_t tap = 0; tap < S; ++tap) {
    const Vec<T> w = load(weight + tap * block<T>);
#pragma GCC unroll 8
    for (int i = 0; i < pixels; ++i) acc[i] += load_x(x + i * step) * w;
    x += next;
  }
}

// Computes all outputs of row `p`, `pixels` at a time. The last `pixels` outputs may overlap those before. S and stride
// are 0 if they are known only at run time.
template <class T, Source source, int S, int stride, int pixels>
void forward_row(const Conv2dShape& s, const GroupTile<T>& x, const PackedWeight<T>& weight, const GroupResult<T>& y,
                 int64_t p) {
  const int64_t Q = y.columns, channels = y.channels;
  const int64_t group = is_own(source) ? 1 : s.group_C();
  const int64_t row_step = s.dilation_h * x.row, taps = s.S * block<T>;
  const int64_t h = p * s.stride_h - s.pad_h;
  const Range r(0, s.H, s.dilation_h, h, s.R);
  const int64_t first = r.begin < r.end ? h + r.begin * s.dilation_h - x.first : 0;
  const T* from = x.data + first * x.row;
  T* to = y.data + (p - y.first) * y.row;
  for (int64_t v = 0; v < block<T> && v < channels; v += lanes<T>) {
    const Vec<T> start = weight.bias ? load_upto(weight.bias + v, channels - v) : Vec<T>{};
    for (int64_t q = 0; q < Q; q += pixels) {
      const int64_t at = q + pixels <= Q ? q : Q - pixels;
      // Prefetch the result lines: each pixel is stored to another line. Microseconds of dx without / with this, batch
      // of 8, 2 threads of Zen 5: 960 5x5, 7x7 121 / 95, 384 3x3, 14x14 87 / 72.
      if constexpr (source != Source::own_reloaded) {
#pragma GCC unroll 8
        for (int i = 0; i < pixels; ++i) __builtin_prefetch(to + (at + i) * y.pixel + v, 1, 3);
      }
      Vec<T> acc[pixels];
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) acc[i] = start;
      for (int64_t c = 0; c < group; ++c) {
        const ChannelLoad<T, source> load_x(group, c);
        const T* pixel = from + at * s.stride_w * block<T> + v;
        const T* w = weight.data + (c * s.R + r.begin) * taps + v;
        for (int64_t tap_row = r.begin; tap_row < r.end; ++tap_row, pixel += row_step, w += taps) {
          if constexpr (S > 0) {
            add_kernel_row<T, S, stride>(acc, load_x, pixel, w);
          } else {
            add_any_kernel_row<T>(acc, load_x, pixel, w, s);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) store_upto(to + (at + i) * y.pixel + v, acc[i], channels - v);
    }
  }
}

template <class T>
using ForwardRow = void (*)(const Conv2dShape&, const GroupTile<T>&, const PackedWeight<T>&, const GroupResult<T>&,
                            int64_t);

template <class T, Source source, int S, int stride>
ForwardRow<T> forward_row_of(int64_t Q) {
  if (Q >= 8 && (Q % 8 == 0 || Q % 7 != 0)) return forward_row<T, source, S, stride, 8>;
  if (Q >= 7) return forward_row<T, source, S, stride, 7>;
  return Q >= 4 ? forward_row<T, source, S, stride, 4> : forward_row<T, source, S, stride, 1>;
}

template <class T, Source source>
ForwardRow<T> forward_row_of(const Conv2dShape& s, int64_t Q) {
  const bool adjacent = s.dilation_w == 1 || s.S == 1;
  if (adjacent && s.stride_w == 1) {
    switch (s.S) {
      case 1:
        return forward_row_of<T, source, 1, 1>(Q);
      case 2:
        return forward_row_of<T, source, 2, 1>(Q);
      case 3:
        return forward_row_of<T, source, 3, 1>(Q);
      case 5:
        return forward_row_of<T, source, 5, 1>(Q);
      case 7:
        return forward_row_of<T, source, 7, 1>(Q);
    }
  }
  if (adjacent && s.stride_w == 2 && s.S == 3) return forward_row_of<T, source, 3, 2>(Q);
  if (adjacent && s.stride_w == 2 && s.S == 5) return forward_row_of<T, source, 5, 2>(Q);
  return forward_row_of<T, source, 0, 0>(Q);
}

// If results are a multiple of 1 KB apart, they share few sets of the first-level cache. Loads and prefetches of the
// lines then wait for the stores. Microseconds of depthwise 3x3, batch of 8, 2 threads of Zen 5, own / own_reloaded:
//   512 channels, 14x14    160 / 138        384 channels, 14x14    71 / 84
//   1024 channels, 7x7      87 / 83         960 channels, 7x7      57 / 68
template <class T>
Source forward_source(int64_t group, const GroupResult<T>& y) {
  const Source source = source_of<T>(group);
  const bool share_sets = y.pixel * int64_t{sizeof(T)} % 1024 == 0;
  return source == Source::own && share_sets ? Source::own_reloaded : source;
}

// Computes some rows of one image, for one block of channels.
template <class T>
void forward(const Conv2dShape& s, const GroupTile<T>& x, const PackedWeight<T>& weight, const GroupResult<T>& y) {
  FASTCONV_ASSERT(readable(x.data) && readable(weight.data) && readable(y.data));
  FASTCONV_ASSERT(y.first >= 0 && y.rows >= 0 && y.first + y.rows <= s.P);
  FASTCONV_ASSERT(y.columns > 0 && y.channels > 0 && y.channels <= block<T>);
  const Source source = forward_source(s.group_C(), y);
  const ForwardRow<T> run = source == Source::own            ? forward_row_of<T, Source::own>(s, y.columns)
                            : source == Source::own_reloaded ? forward_row_of<T, Source::own_reloaded>(s, y.columns)
                            : source == Source::permuted     ? forward_row_of<T, Source::permuted>(s, y.columns)
                                                             : forward_row_of<T, Source::broadcast>(s, y.columns);
  for (int64_t p = y.first; p < y.first + y.rows; ++p) run(s, x, weight, y, p);
}

// ---- backward_weight ---------------------------------------------------------------------------------------------

// Sums are kept in registers for about this many pixels and then added to memory. Longer sums have a larger error.
constexpr int64_t longest_sum = 96;

// Adds the products of `pixels` neighbouring values of g to the sums of `rows` x `columns` taps. The taps of a row are
// adjacent: dilation is 1, or `columns` is 1. `stride` is 0 if it is known only at run time.
template <class T, int rows, int columns, int stride, int pixels, Source source>
FC_INLINE void add_pixels(Vec<T> (&acc)[rows][columns], const ChannelLoad<T, source>& load_x, const T* x,
                          int64_t row_step, const T* g, int64_t step) {
  Vec<T> value[pixels];
#pragma GCC unroll 8
  for (int i = 0; i < pixels; ++i) value[i] = load(g + i * block<T>);
#pragma GCC unroll 3
  for (int r = 0; r < rows; ++r, x += row_step) {
    if constexpr (stride > 0) {
#pragma GCC unroll 21
      for (int j = 0; j < (pixels - 1) * stride + columns; ++j) {
        const Vec<T> from = load_x(x + j * block<T>);
#pragma GCC unroll 8
        for (int i = 0; i < pixels; ++i) {
          const int tap = j - i * stride;
          if (tap >= 0 && tap < columns) acc[r][tap] += from * value[i];
        }
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < pixels; ++i) {
#pragma GCC unroll 7
        for (int tap = 0; tap < columns; ++tap) acc[r][tap] += load_x(x + i * step + tap * block<T>) * value[i];
      }
    }
  }
}

// A kernel row and column.
struct Tap {
  int64_t r, s;
};

// Adds to the sums of `rows` x `columns` taps from `tap` on, for one vector of channels.
template <class T, int rows, int columns, int stride, Source source>
void add_taps(const Conv2dShape& s, const ChannelLoad<T, source>& load_x, const GroupTile<T>& x, const GroupTile<T>& g,
              const Tap& tap, T* sums, int64_t channels) {
  constexpr int pixels = stride == 0 ? 1 : 7;
  const int64_t step = s.stride_w * block<T>, row_step = s.dilation_h * x.row, Q = s.Q;
  const int64_t end = g.first + g.rows;
  for (int64_t p = g.first; p < end;) {
    Vec<T> acc[rows][columns] = {};
    for (int64_t count = 0; p < end && count < longest_sum; ++p, count += Q) {
      const int64_t h = p * s.stride_h - s.pad_h + tap.r * s.dilation_h;
      const T* from = x.data + (h - x.first) * x.row + tap.s * s.dilation_w * block<T>;
      const T* at = g.data + (p - g.first) * g.row;
      int64_t q = 0;
      for (; q + pixels <= Q; q += pixels, from += pixels * step, at += pixels * block<T>) {
        add_pixels<T, rows, columns, stride, pixels>(acc, load_x, from, row_step, at, step);
      }
      for (; q < Q; ++q, from += step, at += block<T>) {
        add_pixels<T, rows, columns, 0, 1>(acc, load_x, from, row_step, at, step);
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 7
      for (int j = 0; j < columns; ++j) {
        T* to = sums + ((tap.r + i) * s.S + tap.s + j) * s.group_C() * s.K;
        store_upto(to, load_upto(to, channels) + acc[i][j], channels);
      }
    }
  }
}

// Adds to the sums of all taps of channel c of the groups, `rows` x `columns` taps at a time.
template <class T, Source source, int rows, int columns, int stride>
void add_all_taps(const Conv2dShape& s, int64_t c, const GroupTile<T>& x, const GroupTile<T>& g, T* sums,
                  int64_t channels) {
  const ChannelLoad<T, source> load_x(s.group_C(), c);
  for (int64_t tap = 0; tap < s.S; tap += columns) {
    int64_t r = 0;
    for (; r + rows <= s.R; r += rows) add_taps<T, rows, columns, stride>(s, load_x, x, g, {r, tap}, sums, channels);
    for (; r < s.R; ++r) add_taps<T, 1, columns, stride>(s, load_x, x, g, {r, tap}, sums, channels);
  }
}

template <class T, Source source, int rows, int columns>
auto add_all_taps_of(int64_t stride) {
  return stride == 1   ? add_all_taps<T, source, rows, columns, 1>
         : stride == 2 ? add_all_taps<T, source, rows, columns, 2>
                       : add_all_taps<T, source, rows, columns, 0>;
}

template <class T, Source source>
auto add_all_taps_of(const Conv2dShape& s) {
  const bool adjacent = s.dilation_w == 1;
  return adjacent && s.S == 3   ? add_all_taps_of<T, source, 3, 3>(s.stride_w)
         : adjacent && s.S == 5 ? add_all_taps_of<T, source, 2, 5>(s.stride_w)
         : adjacent && s.S == 7 ? add_all_taps_of<T, source, 2, 7>(s.stride_w)
                                : add_all_taps_of<T, source, 1, 1>(s.stride_w);
}

// Adds the gradients from some rows of one image to `sums`, for one block of channels. Here x includes the rows of the
// padding, too. The sums are [r, s, c][K] and point to the block's first channel.
template <class T>
void backward_weight(const Conv2dShape& s, const GroupTile<T>& x, const GroupTile<T>& g, const WeightSums<T>& sums,
                     int64_t channels) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(sums.weight));
  FASTCONV_ASSERT(g.first >= 0 && g.rows >= 0 && g.first + g.rows <= s.P && channels > 0 && channels <= block<T>);
  const Source source = source_of<T>(s.group_C());
  const auto run = source == Source::own        ? add_all_taps_of<T, Source::own>(s)
                   : source == Source::permuted ? add_all_taps_of<T, Source::permuted>(s)
                                                : add_all_taps_of<T, Source::broadcast>(s);
  for (int64_t c = 0; c < s.group_C(); ++c) {
    for (int64_t v = 0; v < block<T> && v < channels; v += lanes<T>) {
      GroupTile<T> from = x, gradient = g;
      from.data += v, gradient.data += v;
      run(s, c, from, gradient, sums.weight + c * s.K + v, channels - v);
    }
  }
  if (sums.bias) backward_bias(block<T>, g.data, sums.bias, g.rows * s.Q, channels);
}

}  // namespace fastconv::FC_LEVEL::thin_groups
