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

// In elements of float, as gemm_weight::workspace_size.
inline int64_t workspace_size(int64_t pixels, int64_t channels) {
  return gemm_weight::workspace_size<float>(ceil_div(pixels, 2), channels);
}

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

// The addresses of the patches of a tile's pixels, one after the other.
class Patches {
 public:
  Patches(const Conv2dShape& s, const uint16_t* x, const Strides& strides, int64_t rows)
      : s_(s), x_(x), strides_(strides), rows_(rows), from_(x) {}

  const uint16_t* next() {
    const uint16_t* from = from_;
    from_ += s_.stride_w * strides_.pixel;
    if (++q_ == s_.Q) {
      q_ = 0;
      if (++p_ == rows_) p_ = 0, ++n_;
      from_ = x_ + n_ * strides_.image + p_ * s_.stride_h * strides_.row;
    }
    return from;
  }

 private:
  const Conv2dShape& s_;
  const uint16_t* x_;
  const Strides strides_;
  const int64_t rows_;
  const uint16_t* from_;
  int64_t n_ = 0, p_ = 0, q_ = 0;
};

template <int vectors>
void pack_taps(Patches patches, int64_t pixels, const TapPanel<float>& panel, int64_t ahead, float* to) {
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

// Computes one tile's contribution to dw[k, taps] and to db[k], as gemm_weight::backward_weight does.
inline void backward_weight(const Conv2dShape& s, const InputTile<uint16_t>& x, const GradientTile<uint16_t>& g,
                            const WeightPart& part, const WeightSums<float>& sums, float* workspace) {
  const int64_t pixels = g.images * g.rows * s.Q, channels = part.k.last - part.k.first;
  FASTCONV_ASSERT(readable(g.data) && readable(workspace) && readable(x.data) && readable(sums.weight));
  FASTCONV_ASSERT(s.groups == 1 && pixels > 0 && channels > 0);
  FASTCONV_ASSERT(g.images == 1 || g.image_stride == g.rows * s.Q * s.K);
  const Patches patches(s, x.data, x.strides, g.rows);
  const uint16_t* gradient = g.data + part.k.first;
  float* db = sums.bias ? sums.bias + part.k.first : nullptr;
  if (db && part.overwrite) {
    for (int64_t k = 0; k < channels; ++k) db[k] = 0;
  }
  float* to = workspace;
  for (int64_t k = 0; k < channels; k += block_rows) {
    const int64_t left = channels - k, rows = gemm_weight::rows_of_block(left), count = left < rows ? left : rows;
    pack_gradient_block(gradient + k, {pixels, count, s.K, part.g_ahead}, rows, to, db ? db + k : nullptr);
    to += ceil_div(pixels, 2) * rows;
  }
  float* packed_x = workspace + gemm_weight::packed_gradient_size<float>(ceil_div(pixels, 2), channels);
  for (int64_t tap = part.taps.first; tap < part.taps.last; tap += block_lanes<float>) {
    const int64_t left = part.taps.last - tap, count = left < block_lanes<float> ? left : block_lanes<float>;
    const TapPanel<float> panel(s, x.strides, tap, count);
    const int64_t vectors = count > lanes<float> ? 2 : 1;
    const WeightTarget<float> target{sums.weight + part.k.first * s.taps() + tap, s.taps(),
                                     count - (vectors - 1) * lanes<float>, part.overwrite};
    const auto compute = [&](auto v) {
      constexpr int of_panel = decltype(v)::value;
      pack_taps<of_panel>(patches, pixels, panel, part.x_ahead, packed_x);
      gemm_weight::weight_panel<float>(ceil_div(pixels, 2), workspace, packed_x, channels, target,
                                       [](auto rows) { return weight_block<of_panel, decltype(rows)::value>; });
    };
    vectors == 2 ? compute(Constant<2>{}) : compute(Constant<1>{});
  }
}

}  // namespace fastconv::FC_LEVEL::pairs
