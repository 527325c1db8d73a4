// 3 x 3 convolution of stride 1 with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", arXiv 1509.09308, section 4.1):
//
//   Y = A' [ sum over c of (G w[k, c] G') * (B' x[c] B) ] A       x: the pixels behind one tile of outputs
//
// F(m, 3) makes m outputs of m + 2 pixels with m + 2 multiplications instead of 3 m. In two dimensions a tile of 4 x 4
// outputs takes 36 instead of 144, of 3 x 3 25 instead of 81, of 2 x 2 16 instead of 36. What of an image is left over
// has tiles of its own, down to F(1, 3), the plain sum of 3 (csrc/cpu/winograd.h cuts images into kinds of tiles).
//
// The sum over c is 36 (25, 16) small matrix products, [tiles][C] x [C][K], one for each element ("frequency") of the
// transformed tile, done by the same micro-kernel as the direct convolution. A tile of 2 x 2 is one window of a 2 x 2
// pool, so ReLU, maximum and argmax happen in the output transform. (Larger tiles have no pool: where the pixels behind
// a window are all alike, as in the background of a digit, F(2, 3) gives results that are exactly alike, of which the
// first takes the gradient, as it should; F(4, 3) gives results that rounding tells apart.)
//
// An infinity or NaN in x or w spoils the whole tile, so results that are not finite are reported.
//
// Tiles of a kind are numbered through all images, so only the last unit of a kind is not full. A unit's V and M
// (transformed inputs, products) stay in the second-level cache. x and y are NHWC and dense, padding is not in place.
#pragma once

#include "conv2d_forward.h"
#include "winograd_transform.h"

namespace fastconv::FC_LEVEL::winograd {

constexpr int largest = 4;
// What is asked of this level. Without fused multiply-adds (SSE2) each product is rounded, too, and larger tiles err
// more than twice as much as PyTorch's AVX-512 kernels.
#if defined(__x86_64__) && FC_VECTOR_BYTES == 16
constexpr int largest_wanted = 2;
#else
constexpr int largest_wanted = largest;
#endif
constexpr int64_t unit_tiles = 2 * block_rows;

// How long the sums are that a sum over c is made of: the larger the tile, the more its output transform enlarges their
// rounding errors. (conv3 of MnistCNN takes 4 % longer by sums of 16 than by one.)
inline int longest_product_sum(const WinogradTiles& kind) { return kind.mh > 2 || kind.mw > 2 ? 16 : 64; }

// The smaller one.
inline int upto(int most, int64_t count) { return count < most ? static_cast<int>(count) : most; }

// `run` with m as a constant.
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

// ---- weights of one kind: [block of K][frequency][c][block_lanes of k] ----

// From one frequency to the next: a vector more than it takes, here and in V below. At a distance of a power of two,
// all frequencies would share the same few lines of the first-level cache. (The weight of MnistCNN's conv3 is packed in
// 60 us, not 115; one thread of Zen 3.)
template <class T>
int64_t weight_step(const Conv2dShape& s) {
  return s.C * block_lanes<T> + 64 / sizeof(T);
}

template <class T>
int64_t packed_size(const Conv2dShape& s, const WinogradTiles& kind) {
  return ceil_div(s.K, block_lanes<T>) * kind.frequencies() * weight_step<T>(s);
}

// One block, out of what pack_weight_forward (or pack_weight_backward, with `rotated`: turned around) made of it.
template <class T>
void pack_weight(const Conv2dShape& s, const T* packed, bool rotated, const WinogradTiles& kind, int64_t index, T* to) {
  const ChannelBlock<T> block(index, s.K);
  const int64_t size = s.C * block.vectors * lanes<T>;
  const int columns = kind.mw + 2;
  packed += block.first * 9 * s.C;
  to += index * kind.frequencies() * weight_step<T>(s);
  const T* origin = rotated ? packed + 8 * size : packed;
  const int64_t tap = rotated ? -size : size;
  for (int64_t i = 0; i < size; i += lanes<T>) {
    Vec<T> column[3][pixels<largest>];
    with_outputs(kind.mh, [&](auto outputs) {
      constexpr int m = decltype(outputs)::value;
#pragma GCC unroll 3
      for (int side = 0; side < 3; ++side) {
        const T* from = origin + side * tap + i;
        Vec<T> u[m + 2];
        transform_weight<T, m>(load(from), load(from + 3 * tap), load(from + 6 * tap), u);
#pragma GCC unroll 6
        for (int row = 0; row < m + 2; ++row) column[side][row] = u[row];
      }
    });
    with_outputs(kind.mw, [&](auto outputs) {
      constexpr int m = decltype(outputs)::value;
      for (int row = 0; row < kind.mh + 2; ++row) {
        Vec<T> u[m + 2];
        transform_weight<T, m>(column[0][row], column[1][row], column[2][row], u);
#pragma GCC unroll 6
        for (int j = 0; j < m + 2; ++j) store(to + (row * columns + j) * weight_step<T>(s) + i, u[j]);
      }
    });
  }
}

// ---- one unit ----------------------------------------------------------------------------------------------------

// Calls visit(tile, n, p, q) for each tile of a unit: its number within the unit, its image, and its first output.
template <class T, class Visit>
FC_INLINE void for_each_tile(const WinogradUnit<T>& unit, Visit visit) {
  const WinogradTiles& kind = unit.kind;
  const int64_t first = unit.first_tile, tiles = unit.last_tile - first;
  int64_t n = first / kind.per_image(), row = first / kind.columns % kind.rows, column = first % kind.columns;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    visit(tile, n, kind.row0 + kind.mh * row, kind.column0 + kind.mw * column);
    if (++column < kind.columns) continue;
    column = 0;
    if (++row == kind.rows) row = 0, ++n;
  }
}

// V[frequency][unit_tiles][C, rounded up], M[frequency][unit_tiles][block_lanes].
template <class T>
int64_t v_step(const Conv2dShape& s) {
  return unit_tiles * round_up_to_lanes<T>(s.C) + 64 / sizeof(T);
}
template <class T>
constexpr int64_t m_step = unit_tiles * block_lanes<T>;

template <class T>
int64_t scratch_size(const Conv2dShape& s) {
  return pixels<largest> * pixels<largest> * (v_step<T>(s) + m_step<T>);
}

// The pixels of a tile, from (h0, w0) of one image on. `edge`: some may lie outside of it, and are zero.
template <class T, int mh, int mw, bool edge>
void input_tile(const Conv2dShape& s, const T* image, int64_t h0, int64_t w0, T* v) {
  const int64_t step = v_step<T>(s), C = s.C, W = s.W;
  const T* origin = image + (h0 * W + w0) * C;
  for (int64_t c = 0; c < C; c += lanes<T>) {
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
      for (int j = 0; j < pixels<mw>; ++j) store(v + (i * pixels<mw> + j) * step + c, half[i][j]);
    }
  }
}

enum class Epilogue { none, relu, relu_max_pool };

// What the outputs of one block of channels are made of, and where they go. `y` and `argmax`: of all images.
template <class T>
struct BlockOutputs {
  ChannelBlock<T> block;
  const T* product;
  const T* bias;
  T* y;
  uint8_t* argmax;
};

struct OutputPixel {
  int64_t n, p, q;
};

// One tile, one block of channels: M -> y and argmax of the tile's outputs from `first` on, or of their window; what
// hangs over the edge is dropped. Returns whether all sums are finite.
template <class T, int mh, int mw, Epilogue epilogue>
FC_INLINE bool output_tile(const FusedShape& f, const BlockOutputs<T>& to, const T* product, OutputPixel first) {
  const Conv2dShape& s = f.conv;
  const ChannelBlock<T>& block = to.block;
  const T* bias = to.bias;
  T* y = to.y;
  uint8_t* argmax = to.argmax;
  const int64_t n = first.n, p = first.p, q = first.q;
  const int rows = upto(mh, s.P - p), columns = upto(mw, s.Q - q);
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
    if constexpr (epilogue == Epilogue::relu_max_pool) {
      static_assert(mh == 2 && mw == 2);
      WindowMax<T> max(out[0][0]);
      max.take(out[0][1], 1);
      max.take(out[1][0], 2);
      max.take(out[1][1], 3);
      const int64_t at = ((n * f.pool.P + p / 2) * f.pool.Q + q / 2) * s.K + k;
      max.store(y + at, argmax + at, count);
      continue;
    }
#pragma GCC unroll 4
    for (int i = 0; i < mh; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < mw; ++j) {
        if (i >= rows || j >= columns) continue;
        const int64_t at = ((n * s.P + p + i) * s.Q + q + j) * s.K + k;
        if constexpr (epilogue == Epilogue::relu) {
          WindowMax<T>(out[i][j]).store(y + at, argmax + at, count);
        } else {
          store_upto(y + at, out[i][j], count);
        }
      }
    }
  }
  return nonzero_lanes<T>(zero_if_finite) == 0;
}

template <class T, int mh, int mw>
void input_tiles(const Conv2dShape& s, const WinogradUnit<T>& unit, const T* x, T* v) {
  for_each_tile(unit, [&](int64_t tile, int64_t n, int64_t p, int64_t q) {
    const int64_t h0 = p - s.pad_h, w0 = q - s.pad_w;
    const bool inside = h0 >= 0 && h0 + pixels<mh> <= s.H && w0 >= 0 && w0 + pixels<mw> <= s.W;
    const auto run = inside ? input_tile<T, mh, mw, false> : input_tile<T, mh, mw, true>;
    run(s, x + n * s.H * s.W * s.C, h0, w0, v + tile * round_up_to_lanes<T>(s.C));
  });
}

// non_finite[n] is set where a sum of image n is not finite.
template <class T, int mh, int mw, Epilogue epilogue>
void output_tiles(const FusedShape& f, const WinogradUnit<T>& unit, const BlockOutputs<T>& to) {
  for_each_tile(unit, [&](int64_t tile, int64_t n, int64_t p, int64_t q) {
    if (!output_tile<T, mh, mw, epilogue>(f, to, to.product + tile * block_lanes<T>, {n, p, q})) {
      __atomic_store_n(unit.non_finite + n, 1, __ATOMIC_RELAXED);
    }
  });
}

// The transforms of one kind of tiles.
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
Transforms<T> transforms_of(const WinogradTiles& kind, Epilogue epilogue) {
  Transforms<T> transforms;
  with_outputs(kind.mh, [&](auto mh) {
    with_outputs(kind.mw,
                 [&](auto mw) { transforms = transforms_of<T, decltype(mh)::value, decltype(mw)::value>(epilogue); });
  });
  return transforms;
}

// One frequency: M = V * weight, added up from sums of `longest`, each the sum of two halves. (Halves take 0 to 4 % of
// the time and 10 to 20 % of the error.) Behind the last tile, whatever lies there is multiplied.
template <class T, int vectors>
void multiply(const T* v, int64_t C, int longest, const T* weight, T* product, int64_t tiles) {
  const int64_t v_row = round_up_to_lanes<T>(C);
  const auto sum = [&](int64_t c, int64_t count) {
    const T* rows[block_rows];
#pragma GCC unroll 12
    for (int row = 0; row < block_rows; ++row) rows[row] = v + row * v_row + c;
    Block<T, vectors> acc = {};
    accumulate<T, vectors, false>(acc, rows, {1, 0, 1, 0, count, 1}, weight + c * vectors * lanes<T>,
                                  vectors * lanes<T>, 0);
    return acc;
  };
  const T* const end = product + tiles * block_lanes<T>;
  for (; product < end; product += block_rows * block_lanes<T>, v += block_rows * v_row) {
    for (int64_t c = 0; c < C; c += longest) {
      const int64_t count = upto(longest, C - c), half = count / 2;
      const Block<T, vectors> first = sum(c, half), second = sum(c + half, count - half);
#pragma GCC unroll 12
      for (int row = 0; row < block_rows; ++row) {
#pragma GCC unroll 2
        for (int i = 0; i < vectors; ++i) {
          T* at = product + row * block_lanes<T> + i * lanes<T>;
          const Vec<T> both = first.value[row][i] + second.value[row][i];
          store(at, c == 0 ? both : load(at) + both);
        }
      }
    }
  }
}

// A unit has at most unit_tiles tiles; packed: of its kind. x, y and argmax: of all images; argmax is null where there
// is no ReLU. Images whose sums are not all finite are to be computed directly.
template <class T>
void forward(const FusedShape& f, const WinogradUnit<T>& unit, const T* x, const PackedWeight<T>& packed, T* y,
             uint8_t* argmax) {
  const Conv2dShape& s = f.conv;
  const WinogradTiles& kind = unit.kind;
  const auto transforms = transforms_of<T>(kind, f.window() == 4 ? Epilogue::relu_max_pool
                                                 : argmax        ? Epilogue::relu
                                                                 : Epilogue::none);
  const int64_t frequencies = kind.frequencies();
  T* v = unit.workspace;
  T* product = v + frequencies * v_step<T>(s);
  transforms.input(s, unit, x, v);
  for (int64_t index = unit.first_block; index < unit.last_block; ++index) {
    const ChannelBlock<T> block(index, s.K);
    const T* weight = packed.data + index * frequencies * weight_step<T>(s);
    const auto run = block.vectors == 2 ? multiply<T, 2> : multiply<T, 1>;
    for (int64_t i = 0; i < frequencies; ++i) {
      run(v + i * v_step<T>(s), s.C, longest_product_sum(kind), weight + i * weight_step<T>(s), product + i * m_step<T>,
          unit.last_tile - unit.first_tile);
    }
    transforms.output(f, unit, {block, product, packed.bias, y, argmax});
  }
}

}  // namespace fastconv::FC_LEVEL::winograd
