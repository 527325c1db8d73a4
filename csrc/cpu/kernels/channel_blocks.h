// Copies adjacent channels between a tensor in NHWC and dense tiles [pixel][block], for thin_groups.h. A tensor of 16
// bits is converted on the way: its tiles are in float32, and each result is rounded once. A line of 64 bytes has the
// channels of one block, or of two blocks if the tensor has 16 bits.
#pragma once

#include "assert.h"
#include "operands.h"
#include "range.h"
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

// Copies one line of channels of some rows of a tensor to a tile. The padding of the columns and the other lanes of the
// last block become zero. `whole`: the line has all its channels.
template <class Elements, bool whole, class T = typename Elements::Computed>
void gather_line(const typename Elements::Stored* from, int64_t row_stride, int64_t pixel_stride, const LineTile& tile,
                 T* to) {
  constexpr int64_t line = 64 / int64_t{sizeof(*from)};
  const int64_t channels = whole ? line : tile.channels, block_stride = tile.block;
  // Stores vector c / lanes of the line to the tile.
  const auto put = [&](int64_t c, Vec<T> value) { store(to + c / block<T> * block_stride + c % block<T>, value); };
  const auto zero = [&](int64_t pixels) {
    for (; pixels > 0; --pixels, to += block<T>) {
      for (int64_t c = 0; c < ceil_div(channels, block<T>) * block<T>; c += lanes<T>) put(c, Vec<T>{});
    }
  };
  for (int64_t row = 0; row < tile.rows; ++row) {
    zero(tile.left);
    const auto* pixel = from + row * row_stride;
    for (int64_t i = 0; i < tile.pixels; ++i, pixel += pixel_stride, to += block<T>) {
#pragma GCC unroll 8
      for (int64_t c = 0; c < line; c += lanes<T>) {
        if (c < channels) {
          put(c, Elements::load(pixel + c, channels - c));
        } else if (c / block<T> * block<T> < channels) {
          put(c, Vec<T>{});
        }
      }
      // The thread's next line. PyTorch's time / fastconv's without and with this, 960 channels, 7x7, 5x5 kernel, batch
      // of 8: forward 0.82 and 1.16, backward_data 0.76 and 1.38 (2 threads of Zen 4).
      __builtin_prefetch(pixel + line, 0, 2);
    }
    zero(tile.columns - tile.left - tile.pixels);
  }
}

template <class Elements, class T = typename Elements::Computed>
void gather(const typename Elements::Stored* from, int64_t row_stride, int64_t pixel_stride, const LineTile& tile,
            T* to) {
  constexpr int64_t line = 64 / int64_t{sizeof(*from)};
  FASTCONV_ASSERT(tile.rows >= 0 && tile.left >= 0 && tile.pixels >= 0 && tile.left + tile.pixels <= tile.columns);
  FASTCONV_ASSERT(tile.channels > 0 && tile.channels <= line);
  const auto run = tile.channels == line ? gather_line<Elements, true> : gather_line<Elements, false>;
  run(from, row_stride, pixel_stride, tile, to);
}

// Copies one line of channels to adjacent pixels of a tensor. Blocks are `block_stride` elements apart.
template <class Elements, bool whole, class T = typename Elements::Computed>
void scatter_line(const T* from, int64_t block_stride, int64_t pixels, int64_t channels, typename Elements::Stored* to,
                  int64_t pixel_stride) {
  constexpr int64_t line = 64 / int64_t{sizeof(*to)};
  if (whole) channels = line;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, from += block<T>, to += pixel_stride) {
#pragma GCC unroll 8
    for (int64_t c = 0; c < line; c += lanes<T>) {
      if (c >= channels) continue;
      Elements::store(to + c, load(from + c / block<T> * block_stride + c % block<T>), channels - c);
    }
  }
}

template <class Elements, class T = typename Elements::Computed>
void scatter(const T* from, int64_t block_stride, int64_t pixels, int64_t channels, typename Elements::Stored* to,
             int64_t pixel_stride) {
  constexpr int64_t line = 64 / int64_t{sizeof(*to)};
  FASTCONV_ASSERT(pixels >= 0 && channels > 0 && channels <= line);
  const auto run = channels == line ? scatter_line<Elements, true> : scatter_line<Elements, false>;
  run(from, block_stride, pixels, channels, to, pixel_stride);
}

}  // namespace fastconv::FC_LEVEL::thin_groups
