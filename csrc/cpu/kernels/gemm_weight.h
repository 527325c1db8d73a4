// The gradient of the weight as a product of two matrices (formula of the convolution: shapes.h):
//
//   dw[k, r, s, c] = sum over n, p, q of g[n, p, q, k] * x[n, p * u + r * d - pad, q * v + s * d - pad, c]
//   db[k]          = sum over n, p, q of g[n, p, q, k]
//
// The matrices are g, transposed to [K][pixels], and the patches of x, [pixels][r, s, c].
//
// Layout: x and g are NHWC. dw is [K][r, s, c], which is KRSC. One call adds one tile of pixels to a range of k and a
// range of taps. Calls for different ranges may run in parallel. Terms are added in a fixed order.
//
// Blocking: a register block holds block_rows output channels x block_lanes taps and sums over the pixels of the tile.
// Both operands are packed, so that the inner loop reads them sequentially: g to [k / block_rows][pixel][block_rows],
// x to one panel [pixel][block_lanes] after the other. The panel of x stays in the first-level cache while all k pass
// over it. Without packing, all pixels of an image with 1,024 channels share one set of that cache. The table in
// plan.cpp compares this kernel with the direct one.
#pragma once

#include "blocks.h"

namespace fastconv::FC_LEVEL::gemm_weight {

// The elements of the packed g of `channels` channels, with a vector at the end, because whole vectors are stored. In
// workspace, one panel of x follows, with a vector at its end.
template <class T>
int64_t packed_gradient_size(int64_t pixels, int64_t channels) {
  return pixels * ceil_div(channels, block_rows) * block_rows + lanes<T>;
}
// Asks for the line of memory that is `ahead` elements away. The next tile is read from there.
template <class T>
FC_INLINE void prefetch(const T* from, int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(from) + ahead * int64_t{sizeof(T)}), 0,
                     2);
}

// Copies `count` adjacent elements in whole vectors. What follows them in `to` is overwritten.
template <class T>
FC_INLINE void copy_run(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += lanes<T>) store(to + i, load_upto(from + i, count - i));
}

// A matrix [pixels][channels] to pack. Rows are `stride` elements apart.
struct PackedMatrix {
  int64_t pixels, channels, stride, ahead;
};

// Packs one block of g. Adds its sums over the pixels to db, if that is not null: backward_bias (blocks.h) would read g
// again.
template <class T>
FC_INLINE void pack_gradient_block(const T* g, const PackedMatrix& size, int64_t rows, T* to, T* db) {
  constexpr int vectors = (block_rows + lanes<T> - 1) / lanes<T>, partial_sums = 4;  // they keep the error small
  Vec<T> sum[partial_sums][vectors] = {};
  const int64_t pixels = size.pixels, count = size.channels;
  int64_t pixel = 0;
  const auto pack = [&](Vec<T>(&of)[vectors]) {
#pragma GCC unroll 6
    for (int v = 0; v < vectors; ++v) {
      if (v * lanes<T> >= count) break;
      const Vec<T> value = load_upto(g + v * lanes<T>, count - v * lanes<T>);
      store(to + v * lanes<T>, value);
      of[v] += value;
    }
    prefetch(g, size.ahead);
    g += size.stride, to += rows;
  };
  for (; pixel + partial_sums <= pixels; pixel += partial_sums) {
#pragma GCC unroll 4
    for (auto& of : sum) pack(of);
  }
  for (; pixel < pixels; ++pixel) pack(sum[0]);
  if (!db) return;
  for (int v = 0; v * lanes<T> < count; ++v) {
    T* at = db + v * lanes<T>;
    const int64_t left = count - v * lanes<T>;
    store_upto(at, load_upto(at, left) + ((sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v])), left);
  }
}

// A panel of adjacent taps, as runs that are adjacent in x.
struct TapRun {
  int64_t from, to, count;
};
template <class T>
struct TapPanel {
  TapRun runs[block_lanes<T>];
  int count = 0;

  TapPanel(const Conv2dShape& s, const Strides& x, int64_t first, int64_t taps) {
    const int64_t C = s.group_C();
    // The taps of a kernel row are adjacent in x if no other group's channels and no dilation are between them.
    const bool whole_rows = s.groups == 1 && s.dilation_w == 1 && x.pixel == C;
    for (int64_t done = 0; done < taps;) {
      const int64_t tap = first + done, c = tap % C, tap_s = tap / C % s.S, r = tap / C / s.S;
      const int64_t left = (whole_rows ? (s.S - tap_s) * C : C) - c;
      const int64_t adjacent = left < taps - done ? left : taps - done;
      runs[count++] = {r * s.dilation_h * x.row + tap_s * s.dilation_w * x.pixel + c, done, adjacent};
      done += adjacent;
    }
  }
};

template <class T, int vectors>
void pack_taps(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g, const TapPanel<T>& panel,
               int64_t ahead, T* to) {
  constexpr int64_t width = vectors * lanes<T>;
  const int64_t step = s.stride_w * x.strides.pixel;
  const bool whole = panel.count == 1 && panel.runs[0].count == width;
  for (int64_t n = 0; n < g.images; ++n) {
    for (int64_t p = 0; p < g.rows; ++p) {
      const T* from = x.data + n * x.strides.image + p * s.stride_h * x.strides.row;
      if (whole) from += panel.runs[0].from;
      for (int64_t q = 0; q < s.Q; ++q, from += step, to += width) {
        if (whole) {
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            prefetch(from + v * lanes<T>, ahead);
            store(to + v * lanes<T>, load(from + v * lanes<T>));
          }
        } else {
          for (int i = 0; i < panel.count; ++i) {
            copy_run(from + panel.runs[i].from, panel.runs[i].count, to + panel.runs[i].to);
          }
        }
      }
    }
  }
}

// Where a register block is stored.
template <class T>
struct WeightTarget {
  T* dw;
  int64_t taps;        // the distance between two rows
  int64_t last_lanes;  // lanes in use in the last vector
  bool overwrite;
};

template <class T, int vectors, int rows>
FC_INLINE void store_sums(const Block<T, vectors, rows>& acc, int64_t count, const WeightTarget<T>& to) {
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
    if (row >= count) continue;
    T* dw = to.dw + row * to.taps;
    if (to.overwrite) {
      store_block(acc, row, dw, to.last_lanes);
    } else {
      add_block(acc, row, dw, to.last_lanes);
    }
  }
}

// Computes dw of `count` output channels and one panel. If this is inlined, the compiler keeps a pointer for each row
// in a register, and the inner loop keeps its own pointers on the stack.
template <class T, int vectors, int rows>
__attribute__((noinline)) void weight_block(int64_t pixels, const T* g, const T* x, int64_t count,
                                            const WeightTarget<T>& to) {
  const T* a[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) a[row] = g + row;
  Block<T, vectors, rows> acc = {};
  accumulate<T, vectors, false>(acc, a, {1, 0, 1, 0, pixels, rows}, x, vectors * lanes<T>, 0);
  store_sums(acc, count, to);
}

// Computes dw of all `channels` output channels and one panel. block(Constant<rows>) returns the function that computes
// a block of that many rows.
template <class T, class BlockOf>
void weight_panel(int64_t pixels, const T* g, const T* x, int64_t channels, WeightTarget<T> to, const BlockOf& block) {
  int64_t k = 0;
  const auto compute = [&](auto some, int64_t count) {
    constexpr int rows = decltype(some)::value;
    block(some)(pixels, g, x, count, to);
    g += pixels * rows;
    to.dw += rows * to.taps;
    k += rows;
  };
  while (k + block_rows <= channels) compute(Constant<block_rows>{}, block_rows);
  if (k == channels) return;
  const int64_t left = channels - k;
  with_rows_of_block(left, [&](auto rows) { compute(rows, left); });
}

// The steps of the product add one pixel each. pairs_weight.h has the same for steps of two pixels.
template <class T>
struct OnePixel {
  using Stored = T;
  using Sum = T;
  static constexpr int64_t pixels = 1;

  static FC_INLINE void pack_gradient(const T* g, const PackedMatrix& size, int64_t rows, T* to, T* db) {
    pack_gradient_block(g, size, rows, to, db);
  }
  template <int vectors>
  static void pack_input(const Conv2dShape& s, const InputTile<T>& x, const GradientTile<T>& g,
                         const TapPanel<T>& panel, int64_t ahead, T* to) {
    pack_taps<T, vectors>(s, x, g, panel, ahead, to);
  }
  template <int vectors, int rows>
  static constexpr auto block = weight_block<T, vectors, rows>;
};

template <class Steps>
int64_t workspace_size(int64_t pixels, int64_t channels) {
  using T = typename Steps::Sum;
  const int64_t steps = ceil_div(pixels, Steps::pixels);
  return packed_gradient_size<T>(steps, channels) + steps * block_lanes<T> + lanes<T>;
}

// Computes one tile's contribution to dw[k, taps] and to db[k]. The images of g are contiguous. The taps begin at a
// multiple of block_lanes. `workspace` has workspace_size elements. Rows of packed g that have no channel keep what was
// there.
template <class Steps>
void backward_weight(const Conv2dShape& s, const InputTile<typename Steps::Stored>& x,
                     const GradientTile<typename Steps::Stored>& g, const WeightPart& part,
                     const WeightSums<typename Steps::Sum>& sums, typename Steps::Sum* workspace) {
  using T = typename Steps::Sum;
  const int64_t pixels = g.images * g.rows * s.Q, taps = s.taps(), channels = part.k.last - part.k.first;
  const int64_t steps = ceil_div(pixels, Steps::pixels), group = part.k.first / s.group_K();
  FASTCONV_ASSERT(readable(g.data) && readable(workspace) &&
                  (taps == 0 || (readable(x.data) && readable(sums.weight))));
  FASTCONV_ASSERT(g.images > 0 && g.rows > 0 && g.row >= 0 && g.row + g.rows <= s.P);
  FASTCONV_ASSERT(g.images == 1 || g.image_stride == g.rows * s.Q * s.K);
  FASTCONV_ASSERT(0 <= part.taps.first && part.taps.first <= part.taps.last && part.taps.last <= taps);
  FASTCONV_ASSERT(part.taps.first % block_lanes<T> == 0 && channels > 0 && part.k.last <= (group + 1) * s.group_K());
  const InputTile<typename Steps::Stored> group_x = {x.data + group * s.group_C(), x.strides};
  T* db = sums.bias ? sums.bias + part.k.first : nullptr;
  if (db && part.overwrite) {
    for (int64_t k = 0; k < channels; ++k) db[k] = 0;
  }
  T* packed_g = workspace;
  for (int64_t k = 0; k < channels; k += block_rows) {
    const int64_t left = channels - k, rows = rows_of_block(left), count = left < rows ? left : rows;
    Steps::pack_gradient(g.data + part.k.first + k, {pixels, count, s.K, part.g_ahead}, rows, packed_g,
                         db ? db + k : nullptr);
    packed_g += steps * rows;
  }
  T* packed_x = workspace + packed_gradient_size<T>(steps, channels);
  for (int64_t tap = part.taps.first; tap < part.taps.last; tap += block_lanes<T>) {
    const int64_t left = part.taps.last - tap, count = left < block_lanes<T> ? left : block_lanes<T>;
    const TapPanel<T> panel(s, x.strides, tap, count);
    const int64_t last_lanes = count > lanes<T> ? count - lanes<T> : count;
    const WeightTarget<T> to{sums.weight + part.k.first * taps + tap, taps, last_lanes, part.overwrite};
    const auto compute = [&](auto of_panel) {
      constexpr int vectors = decltype(of_panel)::value;
      Steps::template pack_input<vectors>(s, group_x, g, panel, part.x_ahead, packed_x);
      weight_panel<T>(steps, workspace, packed_x, channels, to,
                      [](auto rows) { return Steps::template block<vectors, decltype(rows)::value>; });
    };
    count > lanes<T> ? compute(Constant<2>{}) : compute(Constant<1>{});
  }
}

}  // namespace fastconv::FC_LEVEL::gemm_weight
