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

#include "activation.h"

namespace fastconv::FC_LEVEL::batch_norm {

template <Activation activation, bool residual, class T>
FC_INLINE Vec<T> normalized(const Normalization<T>& n, Vec<T> x, Vec<T> r, int64_t c, int64_t count) {
  x = (x - load_upto(n.center + c, count)) * load_upto(n.scale + c, count) + load_upto(n.shift + c, count);
  if constexpr (residual) x += r;
  return activate<activation, T>(x, n.slope);
}

template <Activation activation, bool residual, class T>
void normalize_rows(const Normalization<T>& n, const PixelRows<const T>& x, const PixelRows<const T>& r,
                    const PixelRows<T>& y, const MatrixSize& size) {
  const int64_t whole = size.channels / lanes<T> * lanes<T>, rest = size.channels - whole;
  for (int64_t p = 0; p < size.pixels; ++p) {
    const T* from = x.data + p * x.stride;
    const T* add = residual ? r.data + p * r.stride : from;
    T* to = y.data + p * y.stride;
    for (int64_t c = 0; c < whole; c += lanes<T>) {
      store(to + c, normalized<activation, residual, T>(n, load(from + c), load(add + c), c, lanes<T>));
    }
    if (rest > 0) {
      const Vec<T> last = load_partial(from + whole, rest), added = load_partial(add + whole, rest);
      store_partial(to + whole, normalized<activation, residual, T>(n, last, added, whole, rest), rest);
    }
  }
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

// The gradient where the activation lets it pass. Forward computed y by the same expression, so the mask is the same.
template <Activation activation, class T>
FC_INLINE Vec<T> gradient_at(const Normalization<T>& n, const NormalizedGradient<T>& from, int64_t at, int64_t c,
                             int64_t count) {
  const Vec<T> g = load_upto(from.g + at, count);
  if constexpr (activation == Activation::none) return g;
  const Vec<T> y = from.y
                       ? load_upto(from.y + at, count)
                       : normalized<Activation::none, false, T>(n, load_upto(from.x + at, count), Vec<T>{}, c, count);
  return masked_gradient<activation, T>(g, y);
}

// Calls run(tag) for the activations that have a gradient here.
template <class Run>
FC_INLINE void dispatch_masked(Activation activation, const Run& run) {
  if (activation == Activation::relu) return run(ActivationTag<Activation::relu>{});
  if (activation == Activation::relu6) return run(ActivationTag<Activation::relu6>{});
  run(ActivationTag<Activation::none>{});
}

// Adds the sums of up to `vectors` vectors of channels, from channel c on. The last vector has `last_lanes` channels.
template <Activation activation, class T, int vectors>
void add_sums_of_block(const Normalization<T>& n, const NormalizedGradient<T>& from, int64_t pixels, int64_t c,
                       int64_t last_lanes, const GradientSums& total) {
  const auto used = [&](int v) { return v < vectors - 1 ? lanes<T> : last_lanes; };
  Vec<T> center[vectors], sum_g[vectors] = {}, sum_gx[vectors] = {};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) center[v] = load_upto(n.center + c + v * lanes<T>, used(v));
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const int64_t lane = c + v * lanes<T>, at = p * from.stride + lane;
      const Vec<T> g = gradient_at<activation, T>(n, from, at, lane, used(v));
      if (from.masked) store_upto(from.masked + at, g, used(v));
      sum_g[v] += g, sum_gx[v] += g * (load_upto(from.x + at, used(v)) - center[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const int64_t lane = c + v * lanes<T>;
    for (int64_t i = 0; i < used(v); ++i) {
      total.g[lane + i] += static_cast<double>(sum_g[v][i]), total.gx[lane + i] += static_cast<double>(sum_gx[v][i]);
    }
  }
}

// Adds the sums of at most moment_pixels pixels.
template <class T>
void add_gradient_sums(const Normalization<T>& n, const NormalizedGradient<T>& from, const MatrixSize& size,
                       const GradientSums& total) {
  FASTCONV_ASSERT(readable(from.g) && readable(from.x) && size.pixels > 0 && size.pixels <= moment_pixels);
  dispatch_masked(n.activation, [&](auto tag) {
    constexpr Activation activation = decltype(tag)::value;
    constexpr int64_t wide = 4 * lanes<T>;
    int64_t c = 0;
    for (; c + wide <= size.channels; c += wide) {
      add_sums_of_block<activation, T, 4>(n, from, size.pixels, c, lanes<T>, total);
    }
    for (; c < size.channels; c += lanes<T>) {
      const int64_t last = size.channels - c < lanes<T> ? size.channels - c : lanes<T>;
      add_sums_of_block<activation, T, 1>(n, from, size.pixels, c, last, total);
    }
  });
}

// One vector of dx, whose first `count` lanes are used.
template <Activation activation, class T>
FC_INLINE void store_gradient(const Normalization<T>& n, const NormalizedGradient<T>& from,
                              const GradientFactors<T>& factors, T* dx, int64_t at, int64_t c, int64_t count) {
  Vec<T> g = gradient_at<activation, T>(n, from, at, c, count);
  if (factors.of_x) {
    const Vec<T> x = load_upto(from.x + at, count) - load_upto(n.center + c, count);
    g = g - load_upto(factors.constant + c, count) - x * load_upto(factors.of_x + c, count);
  }
  store_upto(dx + at, g * load_upto(factors.scale + c, count), count);
}

// Writes dx. It may be the same memory as g.
template <class T>
void gradient(const Normalization<T>& n, const NormalizedGradient<T>& from, const GradientFactors<T>& factors, T* dx,
              const MatrixSize& size) {
  FASTCONV_ASSERT(readable(from.g) && readable(from.x) && readable(dx) && size.channels > 0);
  const int64_t whole = size.channels / lanes<T> * lanes<T>, rest = size.channels - whole;
  dispatch_masked(n.activation, [&](auto tag) {
    constexpr Activation activation = decltype(tag)::value;
    for (int64_t p = 0; p < size.pixels; ++p) {
      const int64_t at = p * from.stride;
      for (int64_t c = 0; c < whole; c += lanes<T>) {
        store_gradient<activation, T>(n, from, factors, dx, at + c, c, lanes<T>);
      }
      if (rest > 0) store_gradient<activation, T>(n, from, factors, dx, at + whole, whole, rest);
    }
  });
}

}  // namespace fastconv::FC_LEVEL::batch_norm
