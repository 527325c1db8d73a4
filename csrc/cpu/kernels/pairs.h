// The forward pass of the direct convolution in bfloat16, with vdpbf16ps (AVX-512 BF16). The instruction multiplies
// pairs: to each float32 sum it adds the products of two adjacent channels.
//
//   y[n, p, q, k] = b[k] + sum over r, s and pairs of channels of x[..., c] * w[..., c] + x[..., c + 1] * w[..., c + 1]
//
// Layout: a pair takes the place of a float32. So x is an NHWC image of C / 2 float32 channels, direct_pack.h packs the
// weight as a float32 weight of C / 2 channels, and tiles, padding and taps are those of direct_forward.h. Sums are
// float32 and are rounded once. The instruction takes subnormal numbers as zero, as PyTorch's does.
//
// Blocking: 12 pixels x 2 vectors of output channels, as in accumulate.h.
#pragma once

#include <immintrin.h>

#include "operands.h"

namespace fastconv::pairs {

constexpr int lanes = 16, block_rows = 12;

#define FC_PAIRS_INLINE inline __attribute__((always_inline))

template <int vectors, int rows>
struct Sums {
  __m512 value[rows][vectors];
};

FC_PAIRS_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= lanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

// A block of the packed weight: the distance between two taps, and the lanes in use in the last vector.
struct Columns {
  int64_t step, last_lanes;
};

// The taps of one call: `outer` times `middle` runs of `inner` pairs that are adjacent in x.
struct Runs {
  int64_t outer, outer_step, middle, middle_step, inner;
};

inline Runs runs_of(const Conv2dShape& s, const Strides& x) {
  const int64_t row = s.dilation_h * x.row, pixel = s.dilation_w * x.pixel;
  if (pixel == s.C) return {1, 0, s.R, row, s.S * s.C};
  return {s.R, row, s.S, pixel, s.C};
}

template <int vectors, int rows>
FC_PAIRS_INLINE void accumulate(Sums<vectors, rows>& sums, const float* const (&x)[rows], const Runs& runs,
                                const float* weight, int64_t step) {
  for (int64_t o = 0; o < runs.outer; ++o) {
    for (int64_t m = 0; m < runs.middle; ++m) {
      int64_t at = o * runs.outer_step + m * runs.middle_step;
      for (int64_t i = 0; i < runs.inner; ++i, ++at, weight += step) {
        __m512i w[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) w[v] = _mm512_loadu_si512(weight + v * lanes);
#pragma GCC unroll 12
        for (int row = 0; row < rows; ++row) {
          const __m512i pair = _mm512_castps_si512(_mm512_set1_ps(x[row][at]));
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            sums.value[row][v] = _mm512_dpbf16_ps(sums.value[row][v], (__m512bh)w[v], (__m512bh)pair);
          }
        }
      }
    }
  }
}

// Rounds one row of sums to bfloat16.
template <int vectors>
FC_PAIRS_INLINE void store_row(const __m512 (&sums)[vectors], uint16_t* y, int64_t last_lanes, bool streamed) {
  if constexpr (vectors == 2) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(sums[1], sums[0]);
    if (streamed) return _mm512_stream_si512(reinterpret_cast<__m512i*>(y), both);
    _mm512_mask_storeu_epi16(y, static_cast<__mmask32>(first_lanes(last_lanes)) << lanes | 0xffff, both);
  } else {
    _mm256_mask_storeu_epi16(y, first_lanes(last_lanes), (__m256i)_mm512_cvtneps_pbh(sums[0]));
  }
}

// Computes `count` pixels. `x` has the address of each.
template <int vectors, int rows, int all_rows>
FC_PAIRS_INLINE void forward_rows(const float* const (&x)[all_rows], const Runs& runs, const PackedWeight<float>& weight,
                                  const Columns& columns, uint16_t* y, int64_t K, int count, bool streamed) {
  const float* from[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) from[row] = x[row];
  Sums<vectors, rows> sums;
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const __mmask16 used = v < vectors - 1 ? first_lanes(lanes) : first_lanes(columns.last_lanes);
    const __m512 bias = weight.bias ? _mm512_maskz_loadu_ps(used, weight.bias + v * lanes) : _mm512_setzero_ps();
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) sums.value[row][v] = bias;
  }
  accumulate<vectors, rows>(sums, from, runs, weight.data, columns.step);
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
    if (row < count) store_row<vectors>(sums.value[row], y + row * K, columns.last_lanes, streamed);
  }
}

template <int vectors>
void forward_block(const Conv2dShape& s, const InputTile<float>& x, const PackedWeight<float>& weight,
                   const Columns& columns, const OutputTile<uint16_t>& y) {
  const Runs runs = runs_of(s, x.strides);
  const int64_t pixel_step = s.stride_w * x.strides.pixel, row_step = s.stride_h * x.strides.row;
  const int64_t pixels = y.images * y.rows * s.Q;
  int64_t n = 0, p = 0, q = 0;
  const float* from = x.data;
  const float* rows[block_rows];
  const auto take = [&](int count) {
    for (int i = 0; i < count; ++i) {
      rows[i] = from;
      from += pixel_step;
      if (++q == s.Q) {
        q = 0;
        if (++p == y.rows) p = 0, ++n;
        from = x.data + n * x.strides.image + p * row_step;
      }
    }
  };
  int64_t first = 0;
  for (; first + block_rows <= pixels; first += block_rows) {
    take(block_rows);
    forward_rows<vectors, block_rows>(rows, runs, weight, columns, y.data + first * s.K, s.K, block_rows, y.streamed);
  }
  if (const int count = static_cast<int>(pixels - first); count > 0) {
    take(count);
    for (int row = count; row < block_rows; ++row) rows[row] = rows[0];
    constexpr int third = block_rows / 3;
    const auto run = count <= third       ? forward_rows<vectors, third, block_rows>
                     : count <= 2 * third ? forward_rows<vectors, 2 * third, block_rows>
                                          : forward_rows<vectors, block_rows, block_rows>;
    run(rows, runs, weight, columns, y.data + first * s.K, s.K, count, y.streamed);
  }
  if (y.streamed) _mm_sfence();
}

// One block of output channels. s.C counts pairs. s.groups is 1.
inline void forward(const Conv2dShape& s, const InputTile<float>& x, const PackedWeight<float>& weight,
                    const OutputTile<uint16_t>& y, int64_t block) {
  const int64_t k = block * 2 * lanes, left = s.K - k;
  const PackedWeight<float> part{weight.data + (k * s.taps() - weight.first), weight.bias ? weight.bias + k : nullptr};
  const OutputTile<uint16_t> to{y.data + k, y.images, y.row, y.rows, y.streamed};
  if (left > lanes) return forward_block<2>(s, x, part, {2 * lanes, left < 2 * lanes ? left - lanes : lanes}, to);
  forward_block<1>(s, x, part, {lanes, left}, to);
}

}  // namespace fastconv::pairs
