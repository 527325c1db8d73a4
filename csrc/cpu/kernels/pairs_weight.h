// backward_weight in bfloat16, with vdpbf16ps (AVX-512 BF16): the product of two matrices of gemm_weight.h. Here the
// pairs are two pixels, one after the other in the order of the tile. dw is float32.
//
// Packing interleaves the pixels: g to [k / block_rows][pair of pixels][block_rows][2], x to one panel
// [pair of pixels][block_lanes][2] after the other. The second pixel of the last pair may be missing, and is zero.
#pragma once

#include "gemm_weight.h"
#include "pairs.h"

namespace fastconv::FC_LEVEL::pairs {

using gemm_weight::TapPanel;
using gemm_weight::WeightTarget;

// Packs one block of g, of at most block_rows channels. Adds its sums over the pixels to db, if that is not null.
inline void pack_gradient_block(const uint16_t* g, const gemm_weight::PackedMatrix& size, int64_t rows, float* to,
                                float* db) {
  const __mmask16 used = first_lanes(size.channels);
  Vec<float> sum[2] = {};
  for (int64_t pixel = 0; pixel < size.pixels; pixel += 2, g += 2 * size.stride, to += rows) {
    const __m512i a = load_bits(g, used);
    const __m512i b = pixel + 1 < size.pixels ? load_bits(g + size.stride, used) : __m512i{};
    gemm_weight::prefetch(g, size.ahead);
    gemm_weight::prefetch(g + size.stride, size.ahead);
    _mm512_storeu_si512(to, _mm512_or_si512(a, to_upper_half(b)));
    sum[0] += widened(a), sum[1] += widened(b);
  }
  if (db) store_upto(db, load_upto(db, size.channels) + (sum[0] + sum[1]), size.channels);
}

template <int vectors>
void pack_taps(PixelWalk<uint16_t> patches, int64_t pixels, const TapPanel<float>& panel, int64_t ahead, float* to) {
  constexpr int64_t width = vectors * lanes<float>;
  const bool whole = panel.count == 1 && panel.runs[0].count == width;
  for (int64_t pixel = 0; pixel < pixels; pixel += 2, to += width) {
    const uint16_t* a = patches.next();
    const uint16_t* b = pixel + 1 < pixels ? patches.next() : nullptr;
    if (whole && b) {
      constexpr __mmask32 used = vectors == 2 ? 0xffffffffu : 0xffffu;
      const uint16_t *first = a + panel.runs[0].from, *second = b + panel.runs[0].from;
      gemm_weight::prefetch(first, ahead);
      gemm_weight::prefetch(second, ahead);
      const __m512i of_a = _mm512_maskz_loadu_epi16(used, first), of_b = _mm512_maskz_loadu_epi16(used, second);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(to + v * lanes<float>, interleave(of_a, of_b, v));
      continue;
    }
    for (int i = 0; i < panel.count; ++i) {
      const gemm_weight::TapRun& run = panel.runs[i];
      for (int64_t done = 0; done < run.count; done += lanes<float>) {
        const __mmask16 used = first_lanes(run.count - done);
        const __m512i of_a = load_bits(a + run.from + done, used);
        const __m512i of_b = b ? load_bits(b + run.from + done, used) : __m512i{};
        _mm512_mask_storeu_epi32(to + run.to + done, used, _mm512_or_si512(of_a, to_upper_half(of_b)));
      }
    }
  }
}

// Computes dw of `count` output channels and one panel.
template <int vectors, int rows>
__attribute__((noinline)) void weight_block(int64_t pairs, const float* g, const float* x, int64_t count,
                                            const WeightTarget<float>& to) {
  const float* a[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) a[row] = g + row;
  Block<float, vectors, rows> acc = {};
  accumulate_pairs<vectors, false>(acc, a, {1, 0, 1, 0, pairs, rows}, x, vectors * lanes<float>);
  gemm_weight::store_sums(acc, count, to);
}

// For gemm_weight::backward_weight. The workspace has elements of float.
struct TwoPixels {
  using Stored = uint16_t;
  using Sum = float;
  static constexpr int64_t pixels = 2;

  static FC_INLINE void pack_gradient(const uint16_t* g, const gemm_weight::PackedMatrix& size, int64_t rows, float* to,
                                      float* db) {
    pack_gradient_block(g, size, rows, to, db);
  }
  template <int vectors>
  static void pack_input(const Conv2dShape& s, const InputTile<uint16_t>& x, const GradientTile<uint16_t>& g,
                         const TapPanel<float>& panel, int64_t ahead, float* to) {
    pack_taps<vectors>({s, {1, 1, s.Q}, x, g.images, g.rows}, g.images * g.rows * s.Q, panel, ahead, to);
  }
  template <int vectors, int rows>
  static constexpr auto block = weight_block<vectors, rows>;
};

}  // namespace fastconv::FC_LEVEL::pairs
