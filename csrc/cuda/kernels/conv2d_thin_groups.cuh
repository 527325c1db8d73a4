// Convolutions with groups of few channels, such as depthwise ones. They are too thin for tiles of a matrix product. In
// forward and backward_data, a thread computes one result. In backward_weight it computes a part of a sum. Neighbouring
// threads compute neighbours in memory, and the first-level cache holds the values that they share.
#pragma once

#include "conv2d_operands.cuh"
#include "conv2d_results.cuh"

namespace fastconv::cuda {

inline bool has_thin_groups(const Conv2dShape& s) {
  return s.groups > 1 && s.taps() > 0 && s.group_C() < 8 && s.group_K() < 8;
}

constexpr int thin_threads = 256;

inline dim3 thin_grid(int64_t results) { return dim3(static_cast<unsigned>(ceil_div(results, thin_threads))); }

// One result: the sum over r, s and c < channels of f(r, s, c) times the weight.
template <class T, class Weight, class F>
__device__ Accumulator<T> sum_of_taps(const Weight& w, int64_t row, int R, int S, int channels, const F& f) {
  Accumulator<T> sum = 0;
  for (int r = 0; r < R; ++r) {
    for (int s = 0; s < S; ++s) {
      for (int c = 0; c < channels; ++c) {
        const T weight = w.template load<1>(row, w.column(r * S + s, c)).values[0];
        sum = fma(static_cast<Accumulator<T>>(f(r, s, c)), static_cast<Accumulator<T>>(weight), sum);
      }
    }
  }
  return sum;
}

// ---- forward -------------------------------------------------------------------------------------------------------

// Each thread computes one window of one output channel.
template <class T>
__global__ void __launch_bounds__(thin_threads, 2)
    thin_forward(Patches<T> x, ForwardWeight<T> w, Windows windows, ForwardResult<T> to, Divisor by_group_K, int R) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= to.windows * to.K) return;
  const PixelAndChannel at(i, to.by_image, to.by_K, to.channels_adjacent);
  const int group = by_group_K.divide(at.channel);
  x.enter_group(group);
  w.enter_group(group);
  const int64_t row = w.row(by_group_K.remainder(at.channel, group));
  WindowMax<T> max;
  for (int position = 0; position < to.positions; ++position) {
    const Windows::Pixel place = windows.pixel(at.pixel, position);
    if (place.p < 0) continue;
    const auto pixel = x.pixel(place.n, place.p, place.q);
    const auto sum = sum_of_taps<T>(w, row, R, x.S, x.group_C, [&](int r, int s, int c) {
      return x.template load<1>(pixel, x.tap(r, s, c)).values[0];
    });
    const T result = to.with_bias(sum, at.channel);
    if (to.argmax == nullptr) {
      *to.output(at.pixel, at.channel) = result;
      return;
    }
    max.take(result, position);
  }
  to.store(at.pixel, at.channel, max);
}

template <class T>
void launch_thin_forward(const FusedShape& f, Dense<const T> x, Dense<const T> w, const ForwardResult<T>& result,
                         Stream stream) {
  const Conv2dShape& s = f.conv;
  FC_LAUNCH(thin_forward<T>, thin_grid(f.windows() * s.K), dim3(thin_threads), stream, Patches<T>(s, x),
            ForwardWeight<T>(s, w), Windows(f.pool), result, Divisor(s.group_K()), static_cast<int>(s.R));
}

// ---- backward_data -------------------------------------------------------------------------------------------------

// Each thread computes one channel of one input pixel.
template <class T, class Gradient>
__global__ void __launch_bounds__(thin_threads, 2)
    thin_backward_data(GradientPatches<T, Gradient> g, BackwardWeight<T> w, DataResult<T> to, Divisor by_group_C,
                       int R) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= g.pixels * to.C) return;
  const PixelAndChannel at(i, to.by_image, to.by_C, to.channels_adjacent);
  const int group = by_group_C.divide(at.channel);
  g.enter_group(group);
  w.enter_group(group);
  const int64_t weight_row = w.row(by_group_C.remainder(at.channel, group));
  const auto pixel = g.row(at.pixel);
  const auto sum = sum_of_taps<T>(w, weight_row, R, g.S, g.group_K, [&](int r, int s, int k) {
    return g.template load<1>(pixel, g.column(r, s, k)).values[0];
  });
  *to.at(at.pixel, at.channel) = static_cast<T>(sum);
}

// ---- backward_weight -----------------------------------------------------------------------------------------------

// Each block computes one tap of `channels` output channels over the pixels of one piece. Its threads share the pixels,
// and then add up their sums in pairs.
template <class T, class Gradient>
__global__ void __launch_bounds__(thin_threads, 2)
    thin_backward_weight(GradientChannels<T, Gradient> g, Patches<T> x, PieceSums<T> to, Divisor by_group_K,
                         int64_t pixels, int64_t piece_pixels, int channel_blocks, int channels) {
  using Acc = Accumulator<T>;
  FC_SHARED(Acc, sums, [2][thin_threads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t piece = blockIdx.x / (static_cast<unsigned>(to.taps) * channel_blocks);
  const int tap = static_cast<int>(blockIdx.x / channel_blocks % to.taps);
  const int k = static_cast<int>(blockIdx.x % channel_blocks) * channels + thread % channels;
  const bool exists = k < to.K;

  Acc weight_sum = 0, bias_sum = 0;
  if (exists) {
    x.enter_group(by_group_K.divide(k));
    const auto at = x.tap(tap);
    const int64_t first = piece * piece_pixels;
    const int64_t last = first + piece_pixels < pixels ? first + piece_pixels : pixels;
    for (int64_t i = first + thread / channels; i < last; i += thin_threads / channels) {
      const Acc value = static_cast<Acc>(g.template load<1>(k, g.column(i)).values[0]);
      const auto pixel = g.pixels.at(i, [&](int n, int p, int q) { return x.pixel(n, p, q); });
      weight_sum = fma(value, static_cast<Acc>(x.template load<1>(pixel, at).values[0]), weight_sum);
      bias_sum += value;
    }
  }
  sums[0][thread] = weight_sum;
  sums[1][thread] = bias_sum;
  __syncthreads();
  for (int distance = thin_threads / 2; distance >= channels; distance /= 2) {
    if (thread < distance) {
      sums[0][thread] += sums[0][thread + distance];
      sums[1][thread] += sums[1][thread + distance];
    }
    __syncthreads();
  }
  if (thread >= channels || !exists) return;
  *to.weight(piece, k, tap) = sums[0][thread];
  if (tap == 0) *to.bias(piece, k) = sums[1][thread];
}

}  // namespace fastconv::cuda
