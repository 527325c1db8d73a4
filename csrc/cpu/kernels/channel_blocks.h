// Copies one block of adjacent channels between a tensor in NHWC and a dense tile [pixel][block], for thin_groups.h. A
// tensor of 16 bits is converted on the way: its tiles are in float32, and each result is rounded once.
#pragma once

#include "assert.h"
#include "reduced.h"

namespace fastconv::FC_LEVEL::thin_groups {

// The channels in a block: one cache line of the tile.
template <class T>
constexpr int64_t block = 64 / sizeof(T);

// How elements are loaded from a tensor and stored to it.
template <class T>
struct Plain {
  using Stored = T;
  using Computed = T;
  static FC_INLINE Vec<T> load(const T* from, int64_t count) { return load_upto(from, count); }
  static FC_INLINE void store(T* to, Vec<T> value, int64_t count) { store_upto(to, value, count); }
};
template <class Format>
struct Reduced {
  using Stored = uint16_t;
  using Computed = float;
  static FC_INLINE Vec<float> load(const uint16_t* from, int64_t count) {
    return reduced::load_upto<Format>(from, count);
  }
  static FC_INLINE void store(uint16_t* to, Vec<float> value, int64_t count) {
    reduced::store_upto<Format>(to, value, count);
  }
};

// Copies `channels` channels of adjacent pixels of a tensor to one block. The other lanes of the block become zero.
template <class Elements, class T = typename Elements::Computed>
void gather(const typename Elements::Stored* from, int64_t pixel_stride, int64_t pixels, int64_t channels, T* to) {
  FASTCONV_ASSERT(pixels >= 0 && channels > 0 && channels <= block<T>);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < block<T>; c += lanes<T>) {
      const Vec<T> value = channels > c ? Elements::load(from + c, channels - c) : Vec<T>{};
      store(to + c, value);
    }
    // The thread's next block. PyTorch's time / fastconv's without and with this, 960 channels, 7x7, 5x5 kernel, batch
    // of 8: forward 0.82 and 1.16, backward_data 0.76 and 1.38 (2 threads of Zen 4).
    __builtin_prefetch(from + block<T>, 0, 2);
    from += pixel_stride;
    to += block<T>;
  }
}

// Copies `channels` channels of one block to adjacent pixels of a tensor.
template <class Elements, class T = typename Elements::Computed>
void scatter(const T* from, int64_t pixels, int64_t channels, typename Elements::Stored* to, int64_t pixel_stride) {
  FASTCONV_ASSERT(pixels >= 0 && channels > 0 && channels <= block<T>);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, from += block<T>, to += pixel_stride) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < block<T> && c < channels; c += lanes<T>) {
      Elements::store(to + c, load(from + c), channels - c);
    }
  }
}

}  // namespace fastconv::FC_LEVEL::thin_groups
