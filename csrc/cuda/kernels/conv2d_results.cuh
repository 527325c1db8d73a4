// The results of the three passes, and the addresses that threads write.
#pragma once

#include "../../shapes.h"
#include "divisor.cuh"
#include "layout.cuh"
#include "window.cuh"

namespace fastconv::cuda {

// The pixel and the channel of thread i, with one thread per result. Pixels are numbered across all images.
struct PixelAndChannel {
  int64_t pixel;
  int channel;

  __device__ PixelAndChannel(int64_t i, const Divisor& by_image, const Divisor& by_channels, bool channels_adjacent) {
    if (channels_adjacent) {
      pixel = by_channels.divide(i);
      channel = static_cast<int>(by_channels.remainder(i, pixel));
      return;
    }
    const int64_t plane = by_image.divide(i), n = by_channels.divide(plane);
    pixel = n * by_image.divisor() + by_image.remainder(i, plane);
    channel = static_cast<int>(by_channels.remainder(plane, n));
  }
};

// The results of forward. Without ReLU and pooling, argmax is null and windows are single pixels.
template <class T>
struct ForwardResult {
  const T* bias;  // or null
  T* y;
  uint8_t* argmax;  // as an NHWC tensor
  Layout layout;
  bool channels_adjacent;
  int64_t windows;
  int positions, K;
  Divisor by_image, by_K;

  ForwardResult(const FusedShape& f, const T* b, Dense<T> output, uint8_t* at)
      : bias(b),
        y(output.data),
        argmax(at),
        layout(Layout::of(f.pool.C, f.pool.P * f.pool.Q, output.channels_last)),
        channels_adjacent(output.channels_last),
        windows(f.windows()),
        positions(f.window()),
        K(f.conv.K),
        by_image(f.pool.P * f.pool.Q),
        by_K(f.conv.K) {}

  __device__ T with_bias(Accumulator<T> sum, int k) const {
    return static_cast<T>(bias == nullptr ? sum : sum + static_cast<Accumulator<T>>(bias[k]));
  }

  __device__ T* output(int64_t window, int k) const {
    const int64_t n = by_image.divide(window);
    return y + n * layout.outer + by_image.remainder(window, n) * layout.pixel + k * layout.channel;
  }

  __device__ uint8_t* place(int64_t window, int k) const { return argmax + window * K + k; }

  __device__ void store(int64_t window, int k, const WindowMax<T>& max) const {
    *output(window, k) = max.above_zero();
    *place(window, k) = max.place();
  }
};

template <class T>
struct DataResult {
  T* dx;
  Layout layout;
  bool channels_adjacent;
  int C;
  Divisor by_image, by_C;

  DataResult(const Conv2dShape& s, Dense<T> grad_input)
      : dx(grad_input.data),
        layout(Layout::of(s.C, s.H * s.W, grad_input.channels_last)),
        channels_adjacent(grad_input.channels_last),
        C(s.C),
        by_image(s.H * s.W),
        by_C(s.C) {}

  __device__ T* at(int64_t pixel, int c) const {
    const int64_t n = by_image.divide(pixel);
    return dx + n * layout.outer + by_image.remainder(pixel, n) * layout.pixel + c * layout.channel;
  }
};

// The sums of backward_weight. Each piece of the pixels has the weight's sums, [k][tap], then the bias's, [k].
template <class T>
struct PieceSums {
  Accumulator<T>* data;
  int K, taps;

  FC_HOST_DEVICE int64_t piece_size() const { return static_cast<int64_t>(K) * (taps + 1); }

  __device__ Accumulator<T>* weight(int64_t piece, int64_t k, int tap) const {
    return data + piece * piece_size() + k * taps + tap;
  }
  __device__ Accumulator<T>* bias(int64_t piece, int64_t k) const {
    return data + piece * piece_size() + static_cast<int64_t>(K) * taps + k;
  }
};

}  // namespace fastconv::cuda
