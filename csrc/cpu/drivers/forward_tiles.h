// How the forward pass of the direct kernels is cut into tiles, and the packed weight that it reads.
#pragma once

#include "../memory/packed_weights.h"
#include "../plan.h"
#include "tiling.h"

namespace fastconv::cpu {

constexpr int64_t least_pixels = 24;  // of a tile: two register blocks of AVX-512

// The tiles of a forward call without a large weight. If there are few tiles and few blocks of channels, images are cut
// into more tiles, of `least` pixels or more. They are enough if the number of units of work is 16 or more, or even and
// 8 or more.
// Microseconds without / with more tiles, one image, 2 threads of Zen 4. The call from Python takes 10 of them:
//   96->24 1x1, 32x32    72 / 45        144->24    101 / 60        24->144    70 / 54        192->32, 16x16    43 / 30
//   384->96 1x1, 8x8     51 / 42        576->96     70 / 54
inline Tiles small_tiles(const FusedShape& f, int64_t pixels, int64_t least, int64_t blocks) {
  const int64_t image = f.pool.P * f.pool.Q;
  for (;;) {
    const Tiles tiles(f.conv.N, f.pool.P, f.pool.Q, pixels);
    const int64_t units = tiles.count() * blocks, in_image = ceil_div(tiles.count(), f.conv.N);
    if (units >= wanted_pieces || (units >= 8 && units % 2 == 0)) return tiles;
    if (image < 2 * in_image * least || f.pool.P < 2 * in_image) return tiles;
    pixels = ceil_div(image, 4 * in_image);
  }
}

// The tiles of a forward call. Each tile can be divided into up to `parts` parts that run in parallel. If the weight is
// large, there are fewer and larger tiles, with up to 512 KB of input, because each tile reads the whole weight.
// GFLOP/s with 16 small tiles / with these tiles, batch of 8, 2 threads of Zen 4:
//   512->2048 1x1, 7x7    171 / 197        1024->1024 1x1, 7x7    163 / 179        256->512 3x3 /2, 14x14    179 / 195
template <class T>
Tiles forward_tiles(const FusedShape& f, int64_t pixels, int64_t least, int64_t parts) {
  const Conv2dShape& s = f.conv;
  if (!has_large_weight(s)) return small_tiles(f, pixels, least, parts);
  const int64_t pixel_bytes = s.C * s.stride_h * s.stride_w * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max<int64_t>(48, 512 * 1024 / pixel_bytes);
  return {s.N, f.pool.P, f.pool.Q, std::min(pixels, most), std::max<int64_t>(2, ceil_div(wanted_pieces, parts))};
}

// The packed weight of a forward call. If there are only one or two tiles, the weight is packed block by block, just
// before its use. So it is read from memory only once, and not compared with a copy in the cache. GFLOP/s with a packed
// weight from the cache / packed by block, one image, 2 threads of Zen 4:
//   512->2048 1x1, 7x7    105 / 161        1024->1024    81 / 151        512->512 3x3, 8x8    159 / 180
// Weights of 0.2 to 0.6 MB that are not in the CPU's caches take 0.85 to 0.9 of the time. Packing a small weight that
// is NCHW in memory takes longer, so it is cached.
template <class T>
class ForwardWeight {
 public:
  ForwardWeight(const Conv2dShape& s, const Tensor& weight, const Tiles& tiles)
      : s_(s),
        blocks_(channel_blocks<T>(s, s.group_K())),
        plain_(dense(weight)),
        by_block_(tiles.count() <= 2 && s.groups == 1 && (has_large_weight(s) || is_nhwc(plain_)) &&
                  !is_frozen(weight)) {
    if (!by_block_) whole_ = packed_for_direct<T>(s, plain_);
  }

  PackedWeight<T> block(int64_t index, const T* bias) const {
    if (!by_block_) return {whole_.get(), bias};
    const int64_t k = blocks_.first_channel(index), taps = s_.taps();
    Conv2dShape part = s_;
    part.K = std::min(blocks_.width, s_.K - k);
    T* packed = workspace<T>(Workspace::weight_block, direct_kernels<T>().packed_forward_size(part));
    direct_kernels<T>().pack_weight_forward(part, data<T>(plain_) + k * taps, is_nhwc(plain_), 0, packed);
    return {packed, bias, k * taps};
  }

 private:
  const Conv2dShape& s_;
  Blocks blocks_;
  Tensor plain_;
  bool by_block_;
  std::shared_ptr<const T> whole_;
};

}  // namespace fastconv::cpu
