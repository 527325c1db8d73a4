// backward_data for a gradient that is mostly zeros (sparse_gradient.h), for 3x3 kernels of stride 1, alone or followed
// by pooling windows of one or two columns:
//
//   dx[pixel + (r, s), c] += sum over k of g[window, k] * w[k][r, s, c]     for the one or two pixels of a window's row
//
// Layout: as in sparse_gradient.h. The packed weight is [vector of c][k][r, s][lanes].
//
// Blocking: the two pixels of a window's row write to a patch of 3x4 pixels of dx. The 12 sums of that patch, for one
// vector of channels, stay in registers while the lists of both pixels are read. The weights of one vector of c and of
// block_channels output channels are 36 KiB and stay in the first-level cache. In sparse_gradient.h, the weights of all
// c come from the second-level cache.
//
// Measured: dx of conv2 of MnistCNN with half of its windows non-zero takes 0.56 ms, and 0.66 ms with
// sparse_gradient.h. dx of conv3 with 30 % non-zero takes 0.40 and 0.53 ms. (Batch 64, one thread of Zen 4.)
#pragma once

#include "nonzero_lists.h"

namespace fastconv::FC_LEVEL::sparse_gradient_3x3 {

constexpr int taps = 9;
template <class T>
constexpr int64_t block_channels = 36 * 1024 / (taps * FC_VECTOR_BYTES) / lanes<T> * lanes<T>;

inline bool supports(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  return s.groups == 1 && s.R == 3 && s.S == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1 && f.pool.S <= 2 && f.pool.dilation_h == 1 && f.pool.dilation_w == 1 && f.windows_inside();
}

template <class T>
int64_t packed_size(const Conv2dShape& s) {
  return s.K * taps * ceil_div(s.C, lanes<T>) * lanes<T>;
}

// Packs the kernels [k0, k1) of a KRSC weight.
template <class T>
void pack_weight(const Conv2dShape& s, const T* weight, int64_t k0, int64_t k1, T* packed) {
  for (int64_t c = 0; c < s.C; c += lanes<T>) {
    T* to = packed + c * s.K * taps;
    for (int64_t i = k0 * taps; i < k1 * taps; ++i) store(to + i * lanes<T>, load_upto(weight + i * s.C + c, s.C - c));
  }
}

template <class T>
int64_t list_size(const FusedShape& f, int64_t windows) {
  const int64_t blocks = ceil_div(f.conv.K, block_channels<T>);
  return windows * (f.conv.K + f.window() * blocks) + 1 + lanes<T>;
}

// The lists of the pixels of one row of a window, for one block of output channels. There are `blocks` such blocks. The
// list of pixel i begins at end[i * blocks - 1] and ends at end[i * blocks].
template <class T>
struct RowLists {
  const Offset<T>* offset;
  const T* value;
  const Offset<T>* end;
  int64_t blocks;
};

// The patch of dx whose first pixel is (h, w), in an image of `rows` x `width` pixels of C channels. `data` points to
// the current vector of channels of that pixel. From there on, the pixel has `channels` channels.
template <class T>
struct PatchAt {
  T* data;
  int64_t h, w, rows, width, C, channels;
};

// Adds the products of the lists of `columns` pixels to their patch. `edge`: the patch may cross the edge of the image.
template <class T, int columns, bool edge>
FC_INLINE void add_row(const T* packed, const RowLists<T>& lists, const PatchAt<T>& patch) {
  constexpr int patch_width = columns + 2;
  const Offset<T>*at = lists.offset, *end = lists.end;
  const T* value = lists.value;
  T* dx = patch.data;
  const int64_t blocks = lists.blocks, h = patch.h, w = patch.w, rows = patch.rows, width = patch.width, C = patch.C,
                count = patch.channels, row_step = width * C;
  const auto inside = [&](int r, int s) {
    return !edge || (h + r >= 0 && h + r < rows && w + s >= 0 && w + s < width);
  };
  // The sum starts at zero and is then added to dx. A sum that starts at dx has more than twice PyTorch's error.
  Vec<T> acc[3][patch_width] = {};
#pragma GCC unroll 2
  for (int column = 0; column < columns; ++column) {
    for (int64_t i = end[column * blocks - 1]; i < end[column * blocks]; ++i) {
      const T* kernel = packed + at[i];
      const T factor = value[i];
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) acc[r][s + column] += factor * load(kernel + (r * 3 + s) * lanes<T>);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < 3; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < patch_width; ++s) {
      if (!inside(r, s)) continue;
      T* to = dx + r * row_step + s * C;
      store_upto(to, load_upto(to, count) + acc[r][s], count);
    }
  }
}

// Adds the gradient to dx, which the caller has zeroed. `gradient` has all rows of windows that read the tile's pixels.
template <class T>
void backward_data(const FusedShape& f, const SparseGradientTile<T>& gradient, const T* packed, const OutputTile<T>& dx,
                   const NonZeroList<T>& workspace) {
  FASTCONV_ASSERT((gradient.rows == 0 || (readable(gradient.data) && readable(gradient.argmax))) && readable(packed));
  FASTCONV_ASSERT(readable(dx.data) && readable(workspace.offset) && readable(workspace.value) && supports(f));
  FASTCONV_ASSERT(dx.images > 0 && dx.rows > 0 && dx.row >= 0 && dx.row + dx.rows <= f.conv.H);
  FASTCONV_ASSERT(gradient.images == dx.images && gradient.row >= 0 && gradient.row + gradient.rows <= f.pool.P);
  const int64_t h0 = dx.row, rows = dx.rows;
  const Conv2dShape& s = f.conv;
  const Pool2dShape& pool = f.pool;
  const int64_t blocks = ceil_div(s.K, block_channels<T>);
  const TileLists<T> lists = list_tile(f, gradient, block_channels<T>, taps * lanes<T>, workspace);
  for (int64_t c = 0; c < s.C; c += lanes<T>) {
    for (int64_t block = 0; block < blocks; ++block) {
      const Offset<T>* list = lists.end + block;
      for (int64_t n = 0; n < dx.images; ++n) {
        T* image = dx.data + n * rows * s.W * s.C + c;
        for (int64_t p = gradient.row; p < gradient.row + gradient.rows; ++p) {
          for (int64_t q = 0; q < pool.Q; ++q) {
            for (int64_t r = 0; r < pool.R; ++r, list += pool.S * blocks) {
              const int64_t h = p * pool.stride_h + r - s.pad_h - h0, w = q * pool.stride_w - s.pad_w;
              const bool edge = h < 0 || h + 3 > rows || w < 0 || w + pool.S + 2 > s.W;
              const auto run = pool.S == 1 ? (edge ? add_row<T, 1, true> : add_row<T, 1, false>)
                                           : (edge ? add_row<T, 2, true> : add_row<T, 2, false>);
              run(packed + c * s.K * taps, {lists.offset, lists.value, list, blocks},
                  {image + (h * s.W + w) * s.C, h, w, rows, s.W, s.C, s.C - c});
            }
          }
        }
      }
    }
  }
}

}  // namespace fastconv::FC_LEVEL::sparse_gradient_3x3
