// The direct convolution in bfloat16, with vdpbf16ps (AVX-512 BF16). The instruction multiplies pairs: to each float32
// sum it adds the products of two adjacent channels.
//
//   y[n, p, q, k] = b[k] + sum over r, s and even c of x[..., c] * w[..., c] + x[..., c + 1] * w[..., c + 1]
//
// Layout: x is NHWC. If the dilation is 1, the S * C taps of a kernel row are adjacent in x, and so form pairs even if
// C is odd: a run. Otherwise a run has the C taps of one kernel column. If a run has an odd number of taps, its last
// one is multiplied alone, because the value after it in x might be infinite. The packed weight is that of a 1x1 kernel
// with one float32 channel for each pair (pair_steps). The second value of the last pair of an odd run is zero. Sums
// are float32 and are rounded once. The instruction takes subnormal numbers as zero, as in PyTorch.
//
// backward_data with a stride of 1 is the same convolution of grad_output, with the rotated weight.
//
// Blocking: 12 pixels x 2 vectors of output channels, as in accumulate.h.
#pragma once

#include "direct_forward.h"

namespace fastconv::FC_LEVEL::pairs {

// Adds the products of the pairs in `a` and `b`.
FC_INLINE Vec<float> add_products(Vec<float> sum, Vec<float> a, Vec<float> b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

// A pair in all lanes. With `half`, its upper value becomes zero. The address need not be a multiple of 4.
template <bool half>
FC_INLINE Vec<float> broadcast(const uint16_t* from) {
  int32_t pair = *from;
  if constexpr (!half) __builtin_memcpy(&pair, from, sizeof(pair));
  return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
}
template <bool half>
FC_INLINE Vec<float> broadcast(const float* from) {
  return _mm512_set1_ps(*from);
}

// accumulate() of accumulate.h for pairs: acc[row][v] += sum over t of the products of a[row][offset(t)] and b[t][v].
// The inner loop of the walk is a run. `odd`: one value more follows each run.
template <int vectors, bool odd, int rows, class T>
FC_INLINE void accumulate_pairs(Block<float, vectors, rows>& acc, const T* const (&a)[rows], const Walk& walk,
                                const float* b, int64_t b_step) {
  const auto add = [&](int64_t offset, auto half) __attribute__((always_inline)) {
    Vec<float> lane_vector[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) lane_vector[v] = load(b + v * lanes<float>);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) {
      const Vec<float> both = broadcast<decltype(half)::value>(a[row] + offset);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) acc.value[row][v] = add_products(acc.value[row][v], lane_vector[v], both);
    }
    b += b_step;
  };
  for (int64_t o = 0; o < walk.outer; ++o) {
    for (int64_t m = 0; m < walk.middle; ++m) {
      int64_t offset = o * walk.outer_stride + m * walk.middle_stride;
      for (int64_t i = 0; i < walk.inner; ++i, offset += walk.inner_stride) {
        add(offset, Constant<false>{});
      }
      if (odd) add(offset, Constant<true>{});
    }
  }
}

// g++ 12 has false warnings about the intrinsics without a mask.
constexpr __mmask16 every_lane = 0xffff;

FC_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= lanes<float> ? every_lane : static_cast<__mmask16>((1u << count) - 1);
}

// Loads sixteen values of bfloat16 into the lower halves of the lanes, where each is half of a pair. In the upper half
// of its lane, a value is a float32.
FC_INLINE __m512i load_bits(const uint16_t* from, __mmask16 used) {
  return _mm512_maskz_cvtepu16_epi32(every_lane, _mm256_maskz_loadu_epi16(used, from));
}
FC_INLINE __m512i to_upper_half(__m512i bits) { return _mm512_maskz_slli_epi32(every_lane, bits, 16); }
FC_INLINE Vec<float> widened(__m512i bits) { return _mm512_castsi512_ps(to_upper_half(bits)); }

// The taps of a convolution in runs: `count` of them for each kernel row.
struct Runs {
  int64_t count, taps;

  explicit Runs(const Conv2dShape& s) : count(s.dilation_w == 1 ? 1 : s.S), taps(s.C * s.S / count) {}

  bool odd() const { return taps % 2 != 0; }
};

// The float32 channels of the packed weight, for one output channel.
inline int64_t pair_steps(const Conv2dShape& s) {
  const Runs runs(s);
  return s.R * runs.count * ceil_div(runs.taps, 2);
}

// The operands of one call that are the same for all pixels.
struct BlockCall {
  PackedWeight<float> weight;  // of the block
  direct::PackedColumns columns;
  OutputTile<uint16_t> y;                   // from the block's first channel on
  const StoredForm<float, uint16_t>* form;  // from the block's first channel on, or null
  int64_t K;
};

// Rounds one row of sums to bfloat16.
template <int vectors, int rows>
FC_INLINE void store_rounded(const Block<float, vectors, rows>& acc, int row, uint16_t* y, int64_t last_lanes,
                             bool streamed) {
  if constexpr (vectors == 2) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(acc.value[row][1], acc.value[row][0]);
    if (streamed) return _mm512_stream_si512(reinterpret_cast<__m512i*>(y), both);
    if (last_lanes >= lanes<float>) return _mm512_storeu_si512(y, both);
    _mm512_mask_storeu_epi16(y, static_cast<__mmask32>(first_lanes(last_lanes)) << lanes<float> | every_lane, both);
  } else {
    _mm256_mask_storeu_epi16(y, first_lanes(last_lanes), (__m256i)_mm512_cvtneps_pbh(acc.value[row][0]));
  }
}

// Computes `count` pixels from `first` on, with the first `rows` addresses of `x`.
template <int vectors, bool odd, int rows>
FC_INLINE void forward_pixels(const uint16_t* const (&x)[block_rows], const Walk& taps, const BlockCall& call,
                              int64_t first, int count) {
  const uint16_t* from[rows];
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) from[row] = x[row];
  const int64_t last_lanes = call.columns.last_lanes;
  Block<float, vectors, rows> acc;
  direct::set_to_bias(acc, call.weight.bias, last_lanes);
  accumulate_pairs<vectors, odd>(acc, from, taps, call.weight.data, call.columns.step);
  if (call.form) {
    const auto residual = [&](int64_t at, int64_t used) -> Vec<float> {
      return widened(load_bits(call.form->residual + at, first_lanes(used)));
    };
    direct::to_form<float, vectors, rows>(acc, count, *call.form, first, call.K, last_lanes, residual);
  }
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
    if (row < count) store_rounded(acc, row, call.y.data + (first + row) * call.K, last_lanes, call.y.streamed);
  }
}

template <int vectors, bool odd>
void forward_block(const Conv2dShape& s, const InputTile<uint16_t>& x, const BlockCall& call) {
  const Runs runs(s);
  const Walk taps{s.R, s.dilation_h * x.strides.row, runs.count, s.dilation_w * x.strides.pixel, runs.taps / 2, 2};
  const int64_t pixels = call.y.images * call.y.rows * s.Q;
  PixelWalk<uint16_t> walk(s, {1, 1, s.Q}, x, call.y.images, call.y.rows);
  const uint16_t* a[block_rows];
  int64_t first = 0;
  for (; first + block_rows <= pixels; first += block_rows) {
    walk.fetch_ahead(block_rows * s.C);
    walk.take(block_rows, a);
    forward_pixels<vectors, odd, block_rows>(a, taps, call, first, block_rows);
  }
  if (const int count = static_cast<int>(pixels - first); count > 0) {
    walk.take(count, a);
    for (int row = count; row < block_rows; ++row) a[row] = a[0];
    // If this is inlined, the compiler keeps fewer pointers of the loop above in registers.
    const auto compute = [&](auto rows) __attribute__((noinline)) {
      forward_pixels<vectors, odd, decltype(rows)::value>(a, taps, call, first, count);
    };
    with_rows_of_block(count, compute);
  }
  if (call.y.streamed) finish_streaming();
}

// One block of output channels. s.groups is 1. `form` is null if the sums are stored as they are.
inline void forward(const Conv2dShape& s, const InputTile<uint16_t>& x, const PackedWeight<float>& weight,
                    const OutputTile<uint16_t>& y, const StoredForm<float, uint16_t>* form, int64_t index) {
  FASTCONV_ASSERT(readable(x.data) && readable(weight.data) && readable(y.data) && s.groups == 1);
  FASTCONV_ASSERT(y.images > 0 && y.row >= 0 && y.rows >= 0 && y.row + y.rows <= s.P);
  FASTCONV_ASSERT(is_block<float>(index, 1, s.K) && x.strides.pixel == s.C);
  const ChannelBlock<float> block(index, s.K);
  const int64_t k = block.first;
  const StoredForm<float, uint16_t> of_block = form ? direct::form_from(*form, k) : StoredForm<float, uint16_t>{};
  const BlockCall call = {{weight.data + (k * pair_steps(s) - weight.first), weight.bias ? weight.bias + k : nullptr},
                          {block.vectors * lanes<float>, block.last_lanes},
                          {y.data + k, y.images, y.row, y.rows, y.streamed},
                          form ? &of_block : nullptr,
                          s.K};
  const bool odd = Runs(s).odd();
  const auto run = block.vectors == 2 ? (odd ? forward_block<2, true> : forward_block<2, false>)
                                      : (odd ? forward_block<1, true> : forward_block<1, false>);
  run(s, x, call);
}

// The pairs (a[i], b[i]) of sixteen or thirty-two values each: vector `v` of the result.
FC_INLINE __m512i interleave(__m512i a, __m512i b, int v) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(a, _mm512_add_epi16(first, _mm512_set1_epi16(static_cast<short>(16 * v))), b);
}

// Packs the weight of backward_data: block `index` of the channels that the turned convolution `s` writes. `weight` is
// that of the forward convolution, [channel that s reads][r, s][channel that s writes]. The taps are rotated:
//
//   packed   [block of s.K][R - 1 - r][run][pair of taps][block of s.K]
inline void pack_weight_backward(const Conv2dShape& s, const uint16_t* weight, int64_t index, float* packed) {
  FASTCONV_ASSERT(readable(weight) && readable(packed) && is_block<float>(index, 1, s.K));
  const ChannelBlock<float> block(index, s.K);
  const Runs runs(s);
  const int64_t RS = s.R * s.S;
  const __mmask32 used = block.count == block_lanes<float> ? 0xffffffffu : (1u << block.count) - 1;
  float* to = packed + block.first * pair_steps(s);
  for (int64_t first = 0; first < s.taps(); first += runs.taps) {
    const auto values = [&](int64_t i) {  // of tap i of the run
      if (i == runs.taps) return __m512i{};
      const int64_t tap = RS - 1 - (first + i) / s.C, channel = (first + i) % s.C;
      return _mm512_maskz_loadu_epi16(used, weight + (channel * RS + tap) * s.K + block.first);
    };
    for (int64_t i = 0; i < runs.taps; i += 2) {
      const __m512i a = values(i), b = values(i + 1);
      for (int v = 0; v < block.vectors; ++v, to += lanes<float>) _mm512_storeu_si512(to, interleave(a, b, v));
    }
  }
}

}  // namespace fastconv::FC_LEVEL::pairs
