// The two-dimensional transforms of Winograd's algorithm (winograd.h), for the tiles of one unit:
//
//   V = B' x B      pixels of x to V[frequency][unit_tiles][C, rounded up to lanes]
//   y = A' M A      M[frequency][unit_tiles][block_lanes] to outputs, with ReLU and max-pooling in the epilogue
//
// x and y are NHWC and contiguous. Lanes are channels. A tile stays in registers while both sides are transformed.
#pragma once

#include "blocks.h"
#include "pooling_epilogue.h"
#include "winograd_transform.h"

namespace fastconv::FC_LEVEL::winograd {

constexpr int max_outputs = 4;  // along one side of a tile
// The largest tile that plans should use at this level. Without FMA (SSE2), each product is rounded before it is added,
// and larger tiles have more than twice the error of PyTorch's AVX-512 kernels.
#if defined(__x86_64__) && FC_VECTOR_BYTES == 16
constexpr int largest_tile = 2;
#else
constexpr int largest_tile = max_outputs;
#endif
constexpr int64_t unit_tiles = 2 * block_rows;

// The sum over c is split into sums of this many terms. The output transform of a larger tile amplifies rounding errors
// more, so its sums are shorter. With sums of 16 terms, conv3 of MnistCNN takes 4 % longer than with one sum.
inline int longest_product_sum(const WinogradTileKind& kind) { return kind.mh > 2 || kind.mw > 2 ? 16 : 64; }

inline int upto(int most, int64_t count) { return count < most ? static_cast<int>(count) : most; }

// Calls run(m) with m as a Constant.
template <class Run>
FC_INLINE void with_outputs(int m, Run run) {
  switch (m) {
    case 4:
      return run(Constant<4>{});
    case 3:
      return run(Constant<3>{});
    case 2:
      return run(Constant<2>{});
    default:
      return run(Constant<1>{});
  }
}

// Calls visit(tile, n, p, q) for each tile of a unit, with its number in the unit, its image n and first output (p, q).
template <class T, class Visit>
FC_INLINE void for_each_tile(const WinogradUnit<T>& unit, Visit visit) {
  const WinogradTileKind& kind = unit.kind;
  const int64_t first = unit.first_tile, tiles = unit.last_tile - first;
  int64_t n = first / kind.per_image(), row = first / kind.columns % kind.rows, column = first % kind.columns;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    visit(tile, n, kind.row0 + kind.mh * row, kind.column0 + kind.mw * column);
    if (++column < kind.columns) continue;
    column = 0;
    if (++row == kind.rows) row = 0, ++n;
  }
}

// Elements from one frequency to the next, in V and in M.
template <class T>
int64_t v_step(const Conv2dShape& s) {
  return unit_tiles * round_up_to_lanes<T>(s.C) + 64 / sizeof(T);
}
template <class T>
constexpr int64_t m_step = unit_tiles * block_lanes<T>;

template <class T>
int64_t workspace_size(const Conv2dShape& s) {
  return pixels<max_outputs> * pixels<max_outputs> * (v_step<T>(s) + m_step<T>);
}

// Elements from one frequency of a transformed tile to the next, and from one vector of channels to the next.
struct TransformedSteps {
  int64_t frequency, vector;
};

// Transforms one tile of x, whose first pixel is (h0, w0). `edge`: pixels may be outside of the image. They are zero.
template <class T, int mh, int mw, bool edge>
void input_tile(const Conv2dShape& s, const T* image, int64_t h0, int64_t w0, T* v, const TransformedSteps& steps) {
  const int64_t C = s.C, W = s.W;
  const T* origin = image + (h0 * W + w0) * C;
  for (int64_t c = 0; c < C; c += lanes<T>, v += steps.vector) {
    Vec<T> half[pixels<mh>][pixels<mw>];
#pragma GCC unroll 6
    for (int j = 0; j < pixels<mw>; ++j) {
      Vec<T> d[pixels<mh>];
#pragma GCC unroll 6
      for (int i = 0; i < pixels<mh>; ++i) {
        const bool inside = !edge || (h0 + i >= 0 && h0 + i < s.H && w0 + j >= 0 && w0 + j < W);
        d[i] = inside ? load_upto(origin + (i * W + j) * C + c, C - c) : Vec<T>{};
      }
      transform_input<T, mh>(d);
#pragma GCC unroll 6
      for (int i = 0; i < pixels<mh>; ++i) half[i][j] = d[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < pixels<mh>; ++i) {
      transform_input<T, mw>(half[i]);
#pragma GCC unroll 6
      for (int j = 0; j < pixels<mw>; ++j) store(v + (i * pixels<mw> + j) * steps.frequency, half[i][j]);
    }
  }
}

enum class Epilogue { none, relu, relu_max_pool };

// A block of channels, the products M of one unit for it, the bias, and the results of all images.
template <class T>
struct BlockOutputs {
  ChannelBlock<T> block;
  const T* product;
  const T* bias;
  T* y;
  uint8_t* argmax;
};

// The outputs of one tile: image n, first output (p, q) before pooling, and how many rows and columns are in the image.
struct TileOutputs {
  int64_t n, p, q;
  int rows, columns;
};

// Writes one vector of channels, from k on, of one tile. Outputs beyond the edge are not written.
template <class T, int mh, int mw, Epilogue epilogue>
FC_INLINE void store_outputs(const FusedShape& f, const Vec<T> (&out)[mh][mw], const BlockOutputs<T>& to,
                             const TileOutputs& tile, int64_t k, int64_t count) {
  const Conv2dShape& s = f.conv;
  if constexpr (epilogue == Epilogue::relu_max_pool) {
    static_assert(mh == 2 && mw == 2);
    WindowMax<T> max(out[0][0]);
    max.take(out[0][1], 1);
    max.take(out[1][0], 2);
    max.take(out[1][1], 3);
    const int64_t at = ((tile.n * f.pool.P + tile.p / 2) * f.pool.Q + tile.q / 2) * s.K + k;
    max.store(to.y + at, to.argmax + at, count);
    return;
  }
#pragma GCC unroll 4
  for (int i = 0; i < mh; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < mw; ++j) {
      if (i >= tile.rows || j >= tile.columns) continue;
      const int64_t at = ((tile.n * s.P + tile.p + i) * s.Q + tile.q + j) * s.K + k;
      if constexpr (epilogue == Epilogue::relu) {
        WindowMax<T>(out[i][j]).store(to.y + at, to.argmax + at, count);
      } else {
        store_upto(to.y + at, out[i][j], count);
      }
    }
  }
}

// Transforms M of one tile and one block of channels, and applies the epilogue. Returns true if all sums are finite.
template <class T, int mh, int mw, Epilogue epilogue>
FC_INLINE bool output_tile(const FusedShape& f, BlockOutputs<T> to, const T* product, const TileOutputs& tile) {
  const ChannelBlock<T>& block = to.block;
  const T* bias = to.bias;
  Vec<T> zero_if_finite = {};
  for (int v = 0; v < block.vectors; ++v) {
    const int64_t k = block.first + v * lanes<T>;
    const int64_t count = v < block.vectors - 1 ? lanes<T> : block.last_lanes;
    Vec<T> half[mh][pixels<mw>], out[mh][mw];
#pragma GCC unroll 6
    for (int j = 0; j < pixels<mw>; ++j) {
      Vec<T> column[mh];
      transform_output<T, mh>(column,
                              [&](int i) { return load(product + (i * pixels<mw> + j) * m_step<T> + v * lanes<T>); });
#pragma GCC unroll 4
      for (int i = 0; i < mh; ++i) half[i][j] = column[i];
    }
    const Vec<T> offset = bias ? load_upto(bias + k, count) : Vec<T>{};
#pragma GCC unroll 4
    for (int i = 0; i < mh; ++i) {
      transform_output<T, mw>(out[i], [&](int j) { return half[i][j]; });
#pragma GCC unroll 4
      for (int j = 0; j < mw; ++j) {
        out[i][j] += offset;
        zero_if_finite += out[i][j] * T(0);
      }
    }
    store_outputs<T, mh, mw, epilogue>(f, out, to, tile, k, count);
  }
  return nonzero_lanes<T>(zero_if_finite) == 0;
}

// `tile_step`: elements from one transformed tile to the next.
template <class T, int mh, int mw>
void input_tiles(const Conv2dShape& s, const WinogradUnit<T>& unit, const T* x, T* v, int64_t tile_step,
                 const TransformedSteps& steps) {
  for_each_tile(unit, [&](int64_t tile, int64_t n, int64_t p, int64_t q) {
    const int64_t h0 = p - s.pad_h, w0 = q - s.pad_w;
    const bool inside = h0 >= 0 && h0 + pixels<mh> <= s.H && w0 >= 0 && w0 + pixels<mw> <= s.W;
    const auto run = inside ? input_tile<T, mh, mw, false> : input_tile<T, mh, mw, true>;
    run(s, x + n * s.H * s.W * s.C, h0, w0, v + tile * tile_step, steps);
  });
}

// Sets non_finite[n] if a sum of image n is not finite.
template <class T, int mh, int mw, Epilogue epilogue>
void output_tiles(const FusedShape& f, const WinogradUnit<T>& unit, BlockOutputs<T> to) {
  for_each_tile(unit, [&](int64_t tile, int64_t n, int64_t p, int64_t q) {
    const TileOutputs outputs = {n, p, q, upto(mh, f.conv.P - p), upto(mw, f.conv.Q - q)};
    if (!output_tile<T, mh, mw, epilogue>(f, to, to.product + tile * block_lanes<T>, outputs)) {
      __atomic_store_n(unit.non_finite + n, 1, __ATOMIC_RELAXED);
    }
  });
}

// The transforms of one kind of tile.
template <class T>
struct Transforms {
  decltype(&input_tiles<T, 1, 1>) input;
  decltype(&output_tiles<T, 1, 1, Epilogue::none>) output;
};

template <class T, int mh, int mw>
Transforms<T> transforms_of(Epilogue epilogue) {
  if constexpr (mh == 2 && mw == 2) {
    if (epilogue == Epilogue::relu_max_pool) {
      return {input_tiles<T, mh, mw>, output_tiles<T, mh, mw, Epilogue::relu_max_pool>};
    }
  }
  const bool relu = epilogue == Epilogue::relu;
  return {input_tiles<T, mh, mw>,
          relu ? output_tiles<T, mh, mw, Epilogue::relu> : output_tiles<T, mh, mw, Epilogue::none>};
}

template <class T>
Transforms<T> transforms_of(const WinogradTileKind& kind, Epilogue epilogue) {
  Transforms<T> transforms;
  with_outputs(kind.mh, [&](auto mh) {
    with_outputs(kind.mw,
                 [&](auto mw) { transforms = transforms_of<T, decltype(mh)::value, decltype(mw)::value>(epilogue); });
  });
  return transforms;
}

}  // namespace fastconv::FC_LEVEL::winograd
