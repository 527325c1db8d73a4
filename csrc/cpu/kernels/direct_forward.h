// The forward pass of the direct convolution, alone or with ReLU and max-pooling in its epilogue:
//
//   y[n, p, q, k] = max over the window of max(0, b[k] + sum over r, s, c of x[...] * w[k, r, s, c])
//
// Layout: x and y are NHWC. direct_pack.h packs the weight. One call computes one tile and one block of output
// channels. Calls may run in parallel. Terms are added in a fixed order.
//
// Blocking: a register block holds the sums of all pixels of its pooling windows, so bias, ReLU, maximum and argmax
// stay in registers. 12 rows of two vectors (AVX-512, NEON) are 12 windows of 1 pixel, 3 of 2x2 or 1 of 3x3. 6 rows of
// two vectors (AVX2, SSE2) are 6 windows of 1 pixel or 1 of 2x2. For a 3x3 window, these levels use 9 rows of one
// vector. With 2x2 windows, only a quarter of the values is written, each with one byte of argmax. Pixels that no
// window reads are not computed. If at most two thirds of the last 12 (or 6) pixels of a tile exist, that block has two
// thirds or one third of the rows. So 16 pixels are 12 + 4, and 64 are 5 * 12 + 4. One image, 2 threads of Zen 4, ms
// without / with: 512->2048 1x1, 4x4 0.32 / 0.25, 960->320 1x1, 4x4 0.112 / 0.081, 1024->512 1x1, 8x8 0.45 / 0.39.
//
// Measured: conv1 of MnistCNN, batch 64, one thread of Zen 4, takes 0.37 ms. The FMAs alone take 0.22 ms.
#pragma once

#include "pixel_walk.h"
#include "pooling_epilogue.h"

namespace fastconv::FC_LEVEL::direct {

// Sets each row to the bias, or to zero if that is null.
template <class T, int vectors, int rows>
FC_INLINE void set_to_bias(Block<T, vectors, rows>& acc, const T* bias, int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    Vec<T> value = {};
    if (bias) value = v < vectors - 1 ? load(bias + v * lanes<T>) : load_upto(bias + v * lanes<T>, last_lanes);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) acc.value[row][v] = value;
  }
}

template <class T, int vectors, int rows>
FC_INLINE void add(Block<T, vectors, rows>& sum, const Block<T, vectors, rows>& term) {
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum.value[row][v] += term.value[row][v];
  }
}

// The walk over the taps of `rows` kernel rows and one group, in the order of NHWC memory. If the taps of a kernel row
// are contiguous in x, they are one inner loop.
inline Walk taps_walk(const Conv2dShape& s, const Strides& x, int64_t rows) {
  const bool runs = s.groups == 1 && s.dilation_w == 1 && x.pixel == s.C;
  const int64_t row = s.dilation_h * x.row, pixel = s.dilation_w * x.pixel;
  if (runs) return {1, 0, rows, row, s.S * s.C, 1};
  return {rows, row, s.S, pixel, s.group_C(), 1};
}

// A sum over more taps than this is split into partial sums: one for each kernel row, or several of at most this length
// if the taps of a kernel row are contiguous in x. With 576 taps, that halves the rounding error and costs 1 % of the
// time. A linear layer of 4096 inputs has a quarter of the error, and takes up to 3 % longer (Zen 5).
constexpr int64_t longest_sum = 256;

// A block of the packed weight: the distance in elements between two taps, and the lanes in use in the last vector.
struct PackedColumns {
  int64_t step, last_lanes;
};

// The form (operands.h) of the channels from c on.
template <class Form>
FC_INLINE Form form_from(Form form, int64_t c) {
  form.center += c, form.scale += c, form.shift += c;
  if (form.residual) form.residual += c;
  return form;
}

// The form in which one vector of sums is stored.
template <class T>
struct FormOfVector {
  Vec<T> center, scale, shift;

  template <class Form>
  FormOfVector(const Form& form, int64_t lane, int64_t count)
      : center(load_upto(form.center + lane, count)),
        scale(load_upto(form.scale + lane, count)),
        shift(load_upto(form.shift + lane, count)) {}

  FC_INLINE Vec<T> of(Vec<T> sum) const { return (sum - center) * scale + shift; }
};

// Computes the form of the rows [0, count) of a block. `first`: the pixel of the first row. residual(at, used) loads
// elements of the residual.
template <class T, int vectors, int rows, class Form, class Residual>
FC_INLINE void to_form(Block<T, vectors, rows>& acc, int count, const Form& form, int64_t first, int64_t K,
                       int64_t last_lanes, const Residual& residual) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const int64_t lane = v * lanes<T>, used = v < vectors - 1 ? lanes<T> : last_lanes;
    const FormOfVector<T> of_vector(form, lane, used);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) {
      if (row >= count) continue;
      Vec<T> value = of_vector.of(acc.value[row][v]);
      if (form.residual) value += residual((first + row) * K + lane, used);
      value = form.least > value ? Vec<T>{} + form.least : value;  // a NaN is kept
      acc.value[row][v] = value > form.most ? Vec<T>{} + form.most : value;
    }
  }
}

// Writes the windows [first, first + count) of a tile from a block of sums, after ReLU and max-pooling if they are
// fused.
template <class T, int vectors, int rows, int window, bool fused>
FC_INLINE void store_windows(const Block<T, vectors, rows>& acc, int count, const PooledTile<T>& to, int64_t first,
                             int64_t K, int64_t last_lanes) {
  T* y = to.data + first * K;
  uint8_t* argmax = fused ? to.argmax + first * K : nullptr;
#pragma GCC unroll 12
  for (int i = 0; i < rows / window; ++i) {
    if (i >= count) continue;
    const int64_t at = i * K;
    if constexpr (!fused) {
      if (to.streamed) {
        stream_block(acc, i, y + at);
      } else {
        store_block(acc, i, y + at, last_lanes);
      }
    } else {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        WindowMax<T> max(acc.value[i * window][v]);
#pragma GCC unroll 9
        for (int j = 1; j < window; ++j) max.take(acc.value[i * window + j][v], j);
        const int64_t lane = at + v * lanes<T>;
        max.store(y + lane, argmax + lane, v < vectors - 1 ? lanes<T> : last_lanes);
      }
    }
  }
}

// Computes `count` windows from `first` on, with the first `rows` rows of `a`.
template <class T, int vectors, bool by_rows, int window, bool fused, int rows, int all_rows>
FC_INLINE void forward_rows(const Conv2dShape& s, const Walk& taps, const Strides& x, const T* const (&a)[all_rows],
                            const PackedWeight<T>& weight, const PackedColumns& columns, const PooledTile<T>& to,
                            int64_t first, int count) {
  const T* from[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) from[row] = a[row];
  Block<T, vectors, rows> acc;
  set_to_bias(acc, weight.bias, columns.last_lanes);
  if constexpr (!by_rows) {
    accumulate<T, vectors, false>(acc, from, taps, weight.data, columns.step, 0);
  } else {
    const int64_t parts = taps.middle == 1 ? ceil_div(taps.inner, longest_sum) : 1;
    Walk part = taps;
    part.inner = ceil_div(taps.inner, parts);
    const T* b = weight.data;
    for (int64_t r = 0; r < s.R; ++r) {
      for (int64_t first_tap = 0; first_tap < taps.inner; first_tap += part.inner) {
        Walk walk = part;
        if (const int64_t left = taps.inner - first_tap; left < part.inner) walk.inner = left;
        Block<T, vectors, rows> sum = {};
        accumulate<T, vectors, false>(sum, from, walk, b, columns.step, 0);
        add(acc, sum);
        for (const T*& row : from) row += walk.inner;
        b += walk.middle * walk.inner * columns.step;
      }
      for (const T*& row : from) row += s.dilation_h * x.row - taps.inner;
    }
  }
  if constexpr (!fused) {
    const auto residual = [&](int64_t at, int64_t used) { return load_upto(to.form->residual + at, used); };
    if (to.form) to_form<T, vectors, rows>(acc, count, *to.form, first, s.K, columns.last_lanes, residual);
  }
  store_windows<T, vectors, rows, window, fused>(acc, count, to, first, s.K, columns.last_lanes);
}

// `window`: the number of pixels in a window. `weight` and `to` begin at the block's first channel. `by_rows`: the sum
// is longer than longest_sum. It is a template argument, because a run-time choice makes short sums 1.5 times as slow.
template <class T, int vectors, bool by_rows, int window, bool fused>
void forward_block(const Conv2dShape& s, const WindowRow& w, const InputTile<T>& x, const PackedWeight<T>& weight,
                   const PackedColumns& columns, const PooledTile<T>& to) {
  constexpr int at_once = window <= block_rows ? block_rows / window : 1;
  constexpr int block = at_once * window;
  const Strides& strides = x.strides;
  const Walk taps = taps_walk(s, strides, by_rows ? 1 : s.R);
  int64_t offset[window];
  for (int i = 0; i < window; ++i) {
    offset[i] = i / w.S * s.stride_h * strides.row + i % w.S * s.stride_w * strides.pixel;
  }
  const int64_t windows = to.images * to.rows * w.Q;
  PixelWalk<T> walk(s, w, x, to.images, to.rows);
  const T* a[block];
  const auto take = [&](int count) {
    if constexpr (window == 1) return walk.take(count, a);
    for (int i = 0; i < count; ++i) {
      const T* from = walk.next();
      for (int j = 0; j < window; ++j) a[i * window + j] = from + offset[j];
    }
  };
  int64_t first = 0;
  for (; first + at_once <= windows; first += at_once) {
    if constexpr (window == 1) walk.fetch_ahead(at_once * s.C);
    take(at_once);
    forward_rows<T, vectors, by_rows, window, fused, block>(s, taps, strides, a, weight, columns, to, first, at_once);
  }
  if (const int count = static_cast<int>(windows - first); at_once > 1 && count > 0) {
    take(count);
    for (int row = count * window; row < block; ++row) a[row] = a[0];
    const auto compute = [&](auto rows) {
      forward_rows<T, vectors, by_rows, window, fused, decltype(rows)::value>(s, taps, strides, a, weight, columns, to,
                                                                              first, count);
    };
    if constexpr (window == 1) {
      with_rows_of_block(count, compute);
    } else {
      compute(Constant<block>{});
    }
  }
  if (!fused && to.streamed) finish_streaming();
}

// One block of output channels. y.argmax is null if nothing is fused.
template <class T, int window, bool fused>
void forward_tile(const Conv2dShape& s, const WindowRow& w, const InputTile<T>& x, const PackedWeight<T>& weight,
                  const PooledTile<T>& y, int64_t index) {
  FASTCONV_ASSERT(readable(x.data) && readable(weight.data) && readable(y.data) && (y.argmax != nullptr) == fused);
  FASTCONV_ASSERT(y.images > 0 && y.row >= 0 && y.rows >= 0);
  FASTCONV_ASSERT((y.row + y.rows) * w.R <= s.P && w.Q * w.S <= s.Q && w.R * w.S == window);
  FASTCONV_ASSERT(is_block<T>(index, s.groups, s.group_K()));
  const ChannelBlock<T> block(index, s.group_K());
  const int64_t k = block.group * s.group_K() + block.first;
  const int64_t at_block = (block.group * round_up_to_lanes<T>(s.group_K()) + block.first) * s.taps();
  const T* packed = weight.data + (at_block - weight.first);
  const InputTile<T> group_x = {x.data + block.group * s.group_C(), x.strides};
  const bool by_rows = s.taps() > longest_sum;
  const int64_t step = block.vectors * lanes<T>;
  // If a window has more pixels than block_rows, only one vector of channels fits in registers.
  constexpr int most = window <= block_rows ? block_vectors : 1;
  for (int v = 0; v < block.vectors; v += most) {
    const auto run =
        most == 2 && block.vectors == 2
            ? (by_rows ? forward_block<T, most, true, window, fused> : forward_block<T, most, false, window, fused>)
            : (by_rows ? forward_block<T, 1, true, window, fused> : forward_block<T, 1, false, window, fused>);
    const int64_t at = k + v * lanes<T>;
    const StoredForm<T> form = y.form ? form_from(*y.form, at) : StoredForm<T>{};
    run(s, w, group_x, {packed + v * lanes<T>, weight.bias ? weight.bias + at : nullptr},
        {step, v + most >= block.vectors ? block.last_lanes : lanes<T>},
        {y.data + at, fused ? y.argmax + at : nullptr, y.images, y.row, y.rows, y.streamed, y.form ? &form : nullptr});
  }
}

template <class T>
void forward(const Conv2dShape& s, const InputTile<T>& x, const PackedWeight<T>& weight, const OutputTile<T>& y,
             int64_t index) {
  forward_tile<T, 1, false>(s, {1, 1, s.Q}, x, weight, {y.data, nullptr, y.images, y.row, y.rows, y.streamed, y.form},
                            index);
}

// With ReLU and max-pooling. Windows have 1, 4 or 9 pixels, tile the image, and have no padding or dilation.
template <class T>
void relu_max_pool2d_forward(const FusedShape& f, const InputTile<T>& x, const PackedWeight<T>& weight,
                             const PooledTile<T>& y, int64_t index) {
  FASTCONV_ASSERT(f.windows_touch() && (f.window() == 1 || f.window() == 4 || f.window() == 9));
  const Pool2dShape& pool = f.pool;
  const auto run = f.window() == 1   ? forward_tile<T, 1, true>
                   : f.window() == 4 ? forward_tile<T, 4, true>
                                     : forward_tile<T, 9, true>;
  run(f.conv, {pool.R, pool.S, pool.Q}, x, weight, y, index);
}

}  // namespace fastconv::FC_LEVEL::direct
