// Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167), and the epilogue of a convolution in inference:
//
//   y = activation((x - center) * scale + shift + residual)
//
// Layout: matrices of pixels x channels. A plane of an NCHW tensor, which belongs to one channel, is passed as a matrix
// whose columns all have the same constants. Memory bandwidth limits all kernels here.
//
// Statistics: a call reads at most `moment_pixels` pixels, so that they are in the first-level cache when it reads them
// again. The first pass computes their mean, the second one the sums of the differences from it and of their squares.
// So nothing cancels, whatever the mean is. Blocks are combined in double by the formulas of Chan, Golub and LeVeque
// (Updating formulae and a pairwise algorithm for computing sample variances, 1979).
#pragma once

#include "accumulate.h"
#include "activation.h"
#include "assert.h"

namespace fastconv::FC_LEVEL::batch_norm {

// Adjacent vectors of channels whose constants a loop over pixels holds in registers.
constexpr int most_vectors = block_rows > 6 ? 4 : 2;
// The pixels of such a loop. They are few, so that it stays within a few pages of memory.
constexpr int64_t loop_pixels = 16;

// One block of a matrix: the pixels [first, first + pixels), and vectors of channels from c on. If it is partial, its
// last vector has `last_lanes` channels.
struct ColumnBlock {
  int64_t first, pixels, c, last_lanes;
};

// Calls run(vectors, partial, block), with the first two as constants, for blocks that cover the matrix.
template <class T, class Run>
FC_INLINE void for_each_column_block(const MatrixSize& size, int64_t most_pixels, const Run& run) {
  constexpr int64_t wide = most_vectors * lanes<T>;
  for (int64_t p = 0; p < size.pixels; p += most_pixels) {
    const int64_t pixels = size.pixels - p < most_pixels ? size.pixels - p : most_pixels;
    int64_t c = 0;
    for (; c + wide <= size.channels; c += wide) {
      run(Constant<most_vectors>{}, Constant<false>{}, ColumnBlock{p, pixels, c, lanes<T>});
    }
    for (; c + lanes<T> <= size.channels; c += lanes<T>) {
      run(Constant<1>{}, Constant<false>{}, ColumnBlock{p, pixels, c, lanes<T>});
    }
    if (c < size.channels) run(Constant<1>{}, Constant<true>{}, ColumnBlock{p, pixels, c, size.channels - c});
  }
}

// The constants of adjacent vectors of channels.
template <class T, int vectors, bool partial>
struct Columns {
  Vec<T> value[vectors];

  FC_INLINE Columns(const T* from, const ColumnBlock& block) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      value[v] = load_lane_vector<T, vectors, partial>(from + block.c, v, block.last_lanes);
    }
  }
};

template <class T, int vectors, bool partial>
FC_INLINE void store_lane_vector(T* to, int v, int64_t last_lanes, Vec<T> value) {
  if constexpr (partial) {
    if (v == vectors - 1) return store_partial(to + v * lanes<T>, value, last_lanes);
  }
  store(to + v * lanes<T>, value);
}

template <Activation activation, bool residual, class T, int vectors, bool partial>
FC_INLINE void normalize_block(const Normalization<T>& n, const PixelRows<const T>& x, const PixelRows<const T>& r,
                               const PixelRows<T>& y, const ColumnBlock& block) {
  const Columns<T, vectors, partial> center(n.center, block), scale(n.scale, block), shift(n.shift, block);
  const auto at = [&](const auto& rows, int64_t p) { return rows.data + (block.first + p) * rows.stride + block.c; };
  for (int64_t p = 0; p < block.pixels; ++p) {
    const T* from = at(x, p);
    const T* add = residual ? at(r, p) : from;
    T* to = at(y, p);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vec<T> value = load_lane_vector<T, vectors, partial>(from, v, block.last_lanes);
      value = (value - center.value[v]) * scale.value[v] + shift.value[v];
      if constexpr (residual) value += load_lane_vector<T, vectors, partial>(add, v, block.last_lanes);
      store_lane_vector<T, vectors, partial>(to, v, block.last_lanes, activate<activation, T>(value, n.slope));
    }
  }
}

template <Activation activation, bool residual, class T>
void normalize_rows(const Normalization<T>& n, const PixelRows<const T>& x, const PixelRows<const T>& r,
                    const PixelRows<T>& y, const MatrixSize& size) {
  for_each_column_block<T>(size, loop_pixels, [&](auto vectors, auto partial, const ColumnBlock& block) {
    normalize_block<activation, residual, T, decltype(vectors)::value, decltype(partial)::value != 0>(n, x, r, y,
                                                                                                      block);
  });
}

// `residual.data` may be null. y may be x or the residual.
template <class T>
void normalize(const Normalization<T>& n, const PixelRows<const T>& x, const PixelRows<const T>& residual,
               const PixelRows<T>& y, const MatrixSize& size) {
  FASTCONV_ASSERT(readable(x.data) && readable(y.data) && readable(n.scale) && size.channels > 0);
  dispatch_activation(n.activation, [&](auto tag) {
    constexpr Activation activation = decltype(tag)::value;
    const auto run = residual.data ? normalize_rows<activation, true, T> : normalize_rows<activation, false, T>;
    run(n, x, residual, y, size);
  });
}

// ---- statistics --------------------------------------------------------------------------------------------------

constexpr int64_t moment_pixels = 64;

// The sums of one block of pixels and up to `vectors` vectors of channels.
template <class T, int vectors>
struct BlockMoments {
  T mean[vectors * lanes<T>], sum[vectors * lanes<T>], squares[vectors * lanes<T>];
};

template <class T, int vectors>
FC_INLINE void moments_of_block(const PixelRows<const T>& x, int64_t pixels, int64_t last_lanes,
                                BlockMoments<T, vectors>& to) {
  const auto at = [&](int64_t p, int v) {
    const T* from = x.data + p * x.stride + v * lanes<T>;
    return v < vectors - 1 ? load(from) : load_upto(from, last_lanes);
  };
  Vec<T> sum[vectors] = {}, squares[vectors] = {}, mean[vectors];
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] += at(p, v);
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) mean[v] = sum[v] / static_cast<T>(pixels), sum[v] = Vec<T>{};
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> difference = at(p, v) - mean[v];
      sum[v] += difference, squares[v] += difference * difference;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    store(to.mean + v * lanes<T>, mean[v]);
    store(to.sum + v * lanes<T>, sum[v]);
    store(to.squares + v * lanes<T>, squares[v]);
  }
}

template <class T, int vectors>
void add_block(const PixelRows<const T>& x, int64_t pixels, int64_t channels, int64_t c, const Moments& total) {
  BlockMoments<T, vectors> block;
  moments_of_block<T, vectors>({x.data + c, x.stride}, pixels, channels - (vectors - 1) * lanes<T>, block);
  const auto n = static_cast<double>(pixels), before = static_cast<double>(total.pixels), after = before + n;
  double *mean = total.mean + c, *squares = total.squares + c;
  for (int64_t i = 0; i < channels; ++i) {
    const double sum = static_cast<double>(block.sum[i]);
    const double delta = static_cast<double>(block.mean[i]) + sum / n - mean[i];
    squares[i] += static_cast<double>(block.squares[i]) - sum * sum / n + delta * delta * (before * n / after);
    mean[i] += delta * (n / after);
  }
}

// Adds `size.pixels` pixels, at most moment_pixels, to the moments. The caller counts them in `total.pixels`
// afterwards.
template <class T>
void add_moments(const PixelRows<const T>& x, const MatrixSize& size, const Moments& total) {
  FASTCONV_ASSERT(readable(x.data) && size.pixels > 0 && size.pixels <= moment_pixels);
  constexpr int64_t wide = 4 * lanes<T>;
  int64_t c = 0;
  for (; c + wide <= size.channels; c += wide) add_block<T, 4>(x, size.pixels, wide, c, total);
  for (; c < size.channels; c += lanes<T>) {
    add_block<T, 1>(x, size.pixels, size.channels - c < lanes<T> ? size.channels - c : lanes<T>, c, total);
  }
}

// ---- gradients ---------------------------------------------------------------------------------------------------

// The variants of a loop over pixels that reads the gradient g of y.
template <Activation activation_, bool from_y_, bool writes_masked_>
struct GradientMode {
  static constexpr Activation activation = activation_;
  static constexpr bool from_y = from_y_;  // the activation's mask comes from y, else from x
  static constexpr bool writes_masked = writes_masked_;
};

template <bool writes_masked, class T, class Run>
FC_INLINE void dispatch_mask(Activation activation, const NormalizedGradient<T>& from, const Run& run) {
  const auto with = [&](auto tag) {
    constexpr Activation known = decltype(tag)::value;
    if (from.y != nullptr) return run(GradientMode<known, true, writes_masked>{});
    run(GradientMode<known, false, writes_masked>{});
  };
  if (activation == Activation::relu) return with(ActivationTag<Activation::relu>{});
  if (activation == Activation::relu6) return with(ActivationTag<Activation::relu6>{});
  run(GradientMode<Activation::none, false, writes_masked>{});
}

// Calls run(mode), a GradientMode.
template <class T, class Run>
FC_INLINE void dispatch_gradient(Activation activation, const NormalizedGradient<T>& from, const Run& run) {
  if (from.masked != nullptr) return dispatch_mask<true>(activation, from, run);
  dispatch_mask<false>(activation, from, run);
}

// The gradients of one block where the activation lets them pass. Forward computed y by the same expression, so the
// mask is the same.
template <class Mode, class T, int vectors, bool partial>
struct MaskedGradients {
  const NormalizedGradient<T>& from;
  const ColumnBlock& block;
  Columns<T, vectors, partial> center, scale, shift;

  FC_INLINE MaskedGradients(const Normalization<T>& n, const NormalizedGradient<T>& gradient, const ColumnBlock& at)
      : from(gradient), block(at), center(n.center, at), scale(n.scale, at), shift(n.shift, at) {}

  FC_INLINE int64_t row(int64_t p) const { return (block.first + p) * from.stride + block.c; }

  FC_INLINE Vec<T> load_at(const T* values, int64_t row, int v) const {
    return load_lane_vector<T, vectors, partial>(values + row, v, block.last_lanes);
  }

  // `x`: the vector of x, minus center.
  FC_INLINE Vec<T> operator()(int64_t row, int v, Vec<T> x) const {
    Vec<T> g = load_at(from.g, row, v);
    if constexpr (Mode::activation != Activation::none) {
      Vec<T> y;
      if constexpr (Mode::from_y) {
        y = load_at(from.y, row, v);
      } else {
        y = x * scale.value[v] + shift.value[v];
      }
      g = masked_gradient<Mode::activation, T>(g, y);
    }
    if constexpr (Mode::writes_masked) {
      store_lane_vector<T, vectors, partial>(from.masked + row, v, block.last_lanes, g);
    }
    return g;
  }
};

template <class Mode, class T, int vectors, bool partial>
FC_INLINE void add_sums_of_block(const Normalization<T>& n, const NormalizedGradient<T>& from, const ColumnBlock& block,
                                 const GradientSums& total) {
  const MaskedGradients<Mode, T, vectors, partial> masked(n, from, block);
  Vec<T> sum_g[vectors] = {}, sum_gx[vectors] = {};
  for (int64_t p = 0; p < block.pixels; ++p) {
    const int64_t row = masked.row(p);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> x = masked.load_at(from.x, row, v) - masked.center.value[v], g = masked(row, v, x);
      sum_g[v] += g, sum_gx[v] += g * x;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const int64_t lane = block.c + v * lanes<T>, used = partial ? block.last_lanes : lanes<T>;
    for (int64_t i = 0; i < used; ++i) {
      total.g[lane + i] += static_cast<double>(sum_g[v][i]), total.gx[lane + i] += static_cast<double>(sum_gx[v][i]);
    }
  }
}

// Adds the sums of at most moment_pixels pixels.
template <class T>
void add_gradient_sums(const Normalization<T>& n, const NormalizedGradient<T>& from, const MatrixSize& size,
                       const GradientSums& total) {
  FASTCONV_ASSERT(readable(from.g) && readable(from.x) && size.pixels > 0 && size.pixels <= moment_pixels);
  dispatch_gradient(n.activation, from, [&](auto mode) {
    for_each_column_block<T>(size, moment_pixels, [&](auto vectors, auto partial, const ColumnBlock& block) {
      add_sums_of_block<decltype(mode), T, decltype(vectors)::value, decltype(partial)::value != 0>(n, from, block,
                                                                                                    total);
    });
  });
}

template <class Mode, class T, int vectors, bool partial>
FC_INLINE void gradient_of_block(const Normalization<T>& n, const NormalizedGradient<T>& from,
                                 const GradientFactors<T>& factors, T* dx, const ColumnBlock& block) {
  const MaskedGradients<Mode, T, vectors, partial> masked(n, from, block);
  const bool constant_statistics = factors.of_x == nullptr;
  const Columns<T, vectors, partial> scale(factors.scale, block),
      constant(constant_statistics ? n.center : factors.constant, block),
      of_x(constant_statistics ? n.center : factors.of_x, block);
  for (int64_t p = 0; p < block.pixels; ++p) {
    const int64_t row = masked.row(p);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> x = masked.load_at(from.x, row, v) - masked.center.value[v];
      Vec<T> g = masked(row, v, x);
      if (!constant_statistics) g = g - constant.value[v] - x * of_x.value[v];
      store_lane_vector<T, vectors, partial>(dx + row, v, block.last_lanes, g * scale.value[v]);
    }
  }
}

// Writes dx. It may be the same memory as g.
template <class T>
void gradient(const Normalization<T>& n, const NormalizedGradient<T>& from, const GradientFactors<T>& factors, T* dx,
              const MatrixSize& size) {
  FASTCONV_ASSERT(readable(from.g) && readable(from.x) && readable(dx) && size.channels > 0 && !from.masked);
  dispatch_mask<false>(n.activation, from, [&](auto mode) {
    for_each_column_block<T>(size, loop_pixels, [&](auto vectors, auto partial, const ColumnBlock& block) {
      gradient_of_block<decltype(mode), T, decltype(vectors)::value, decltype(partial)::value != 0>(n, from, factors,
                                                                                                    dx, block);
    });
  });
}

}  // namespace fastconv::FC_LEVEL::batch_norm
