// The direct convolution in bfloat16, with vdpbf16ps (AVX-512 BF16). The instruction multiplies pairs: to each float32
// sum it adds the products of two adjacent channels.
//
//   y[n, p, q, k] = b[k] + sum over r, s and even c of x[..., c] * w[..., c] + x[..., c + 1] * w[..., c + 1]
//
// Layout: a pair takes the place of a float32. So x is an NHWC image of C / 2 float32 channels, direct_pack.h packs the
// weight as a float32 weight of C / 2 channels, and tiles, padding and taps are those of direct_forward.h. In this
// file, the C of a shape counts pairs. Sums are float32 and are rounded once. The instruction takes subnormal numbers
// as zero, as in PyTorch.
//
// backward_data with a stride of 1 is the same convolution of grad_output, with the rotated weight.
//
// Blocking: 12 pixels x 2 vectors of output channels, as in accumulate.h.
#pragma once

#include <immintrin.h>

#include "assert.h"
#include "operands.h"

namespace fastconv::pairs {

constexpr int lanes = 16, block_rows = 12;
// g++ 12 has false warnings about the intrinsics without a mask.
constexpr __mmask16 every_lane = 0xffff;

#define FC_PAIRS_INLINE inline __attribute__((always_inline))

template <int vectors, int rows>
struct Sums {
  __m512 value[rows][vectors];
};

FC_PAIRS_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= lanes ? every_lane : static_cast<__mmask16>((1u << count) - 1);
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

// The form of the results (operands.h), from the first pixel of a block of channels on.
using Form = StoredForm<float, uint16_t>;

FC_PAIRS_INLINE __m512 widened(const uint16_t* from, __mmask16 used) {
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(every_lane, _mm256_maskz_loadu_epi16(used, from));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(every_lane, bits, 16));
}

// Computes the form of the rows [0, count). `first`: the pixel of the first row.
template <int vectors, int rows>
FC_PAIRS_INLINE void to_form(Sums<vectors, rows>& sums, int count, const Form& form, int64_t first, int64_t K,
                             int64_t last_lanes) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const __mmask16 used = first_lanes(v < vectors - 1 ? lanes : last_lanes);
    const auto load = [&](const float* from) { return _mm512_maskz_loadu_ps(used, from + v * lanes); };
    const __m512 center = load(form.center), scale = load(form.scale), shift = load(form.shift);
    const __m512 least = _mm512_set1_ps(form.least), most = _mm512_set1_ps(form.most);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) {
      if (row >= count) continue;
      __m512 value = _mm512_fmadd_ps(_mm512_sub_ps(sums.value[row][v], center), scale, shift);
      if (form.residual) {
        value = _mm512_add_ps(value, widened(form.residual + (first + row) * K + v * lanes, used));
      }
      // These return the second operand if one is NaN, so a NaN is kept.
      sums.value[row][v] = _mm512_maskz_min_ps(every_lane, most, _mm512_maskz_max_ps(every_lane, least, value));
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
FC_PAIRS_INLINE void forward_rows(const float* const (&x)[all_rows], const Runs& runs,
                                  const PackedWeight<float>& weight, const Columns& columns,
                                  const OutputTile<uint16_t>& y, const Form* form, int64_t K, int64_t first,
                                  int count) {
  const float* from[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) from[row] = x[row];
  Sums<vectors, rows> sums;
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const __mmask16 used = first_lanes(v < vectors - 1 ? lanes : columns.last_lanes);
    const __m512 bias = weight.bias ? _mm512_maskz_loadu_ps(used, weight.bias + v * lanes) : _mm512_setzero_ps();
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) sums.value[row][v] = bias;
  }
  accumulate<vectors, rows>(sums, from, runs, weight.data, columns.step);
  if (form) to_form<vectors, rows>(sums, count, *form, first, K, columns.last_lanes);
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
    if (row < count) store_row<vectors>(sums.value[row], y.data + (first + row) * K, columns.last_lanes, y.streamed);
  }
}

template <int vectors>
void forward_block(const Conv2dShape& s, const InputTile<float>& x, const PackedWeight<float>& weight,
                   const Columns& columns, const OutputTile<uint16_t>& y, const Form* form) {
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
    forward_rows<vectors, block_rows>(rows, runs, weight, columns, y, form, s.K, first, block_rows);
  }
  if (const int count = static_cast<int>(pixels - first); count > 0) {
    take(count);
    for (int row = count; row < block_rows; ++row) rows[row] = rows[0];
    constexpr int third = block_rows / 3;
    const auto run = count <= third       ? forward_rows<vectors, third, block_rows>
                     : count <= 2 * third ? forward_rows<vectors, 2 * third, block_rows>
                                          : forward_rows<vectors, block_rows, block_rows>;
    run(rows, runs, weight, columns, y, form, s.K, first, count);
  }
  if (y.streamed) _mm_sfence();
}

// One block of output channels. s.groups is 1. `form` is null if the sums are stored as they are.
inline void forward(const Conv2dShape& s, const InputTile<float>& x, const PackedWeight<float>& weight,
                    const OutputTile<uint16_t>& y, const Form* form, int64_t block) {
  FASTCONV_ASSERT(x.data && weight.data && y.data && s.groups == 1 && block >= 0 && block * 2 * lanes < s.K);
  const int64_t k = block * 2 * lanes, left = s.K - k;
  const PackedWeight<float> part{weight.data + (k * s.taps() - weight.first), weight.bias ? weight.bias + k : nullptr};
  const OutputTile<uint16_t> to{y.data + k, y.images, y.row, y.rows, y.streamed};
  Form of_block = {};
  if (form) {
    of_block = *form;
    of_block.center += k, of_block.scale += k, of_block.shift += k;
    if (of_block.residual) of_block.residual += k;
    form = &of_block;
  }
  if (left > lanes) return forward_block<2>(s, x, part, {2 * lanes, left < 2 * lanes ? left - lanes : lanes}, to, form);
  forward_block<1>(s, x, part, {lanes, left}, to, form);
}

// Packs the weight of backward_data: block `index` of the channels that the turned convolution `s` writes. `weight` is
// that of the forward convolution, [channel that s reads][r, s][channel that s writes]. The taps are rotated:
//
//   packed   [block of s.K][R - 1 - r, S - 1 - s][pair of channels that s reads][block of s.K][2]
inline void pack_weight_backward(const Conv2dShape& s, const uint16_t* weight, int64_t index, float* packed) {
  const int64_t k = index * 2 * lanes, count = s.K - k < 2 * lanes ? s.K - k : 2 * lanes, taps = s.R * s.S;
  FASTCONV_ASSERT(weight && packed && index >= 0 && count > 0);
  const __mmask32 used = count == 2 * lanes ? 0xffffffffu : (1u << count) - 1;
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(lanes));
  float* to = packed + k * s.taps();
  for (int64_t tap = taps; tap-- > 0;) {
    for (int64_t pair = 0; pair < s.C; ++pair) {
      const uint16_t* from = weight + (2 * pair * taps + tap) * s.K + k;
      const __m512i first = _mm512_maskz_loadu_epi16(used, from);
      const __m512i second = _mm512_maskz_loadu_epi16(used, from + taps * s.K);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, low, second));
      to += lanes;
      if (count <= lanes) continue;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, high, second));
      to += lanes;
    }
  }
}

}  // namespace fastconv::pairs
