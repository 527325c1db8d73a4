// bfloat16 with AVX-512 BF16: multiplies pairs of channels (kernels/pairs.h). Tensors are read and written in place.
#include "pairs.h"

#include "../memory/reduced.h"
#include "epilogue.h"
#include "forward_tiles.h"

namespace fastconv::cpu {
namespace {

Conv2dShape shape_in_pairs(Conv2dShape s) {
  s.C /= 2;
  return s;
}

// Computes the convolution `s`, whose C counts pairs. weight(block) returns the packed weight of a block.
template <class WeightOf>
void convolve(const Conv2dShape& s, const NhwcReader<float>& x, const NhwcWriter<uint16_t>& y, const Tiles& tiles,
              const TileEpilogue<float, uint16_t>* epilogue, const WeightOf& weight) {
  const Blocks blocks = channel_blocks<float>(s, s.K);
  const int64_t parts = parts_of_tile(tiles, blocks);
  const bool streamed = y.streamed(s.K);
  for_each_part(tiles, blocks, parts, [&](const Tile& tile, int64_t first, int64_t last) {
    const InputTile<float> from = input_of(s, x, tile, Workspace::input_tile);
    const OutputTile<uint16_t> to{y.tile(tile), tile.images, tile.row, tile.rows, streamed};
    const auto form = epilogue ? epilogue->form((tile.image * s.P + tile.row) * s.Q) : StoredForm<float, uint16_t>{};
    for (int64_t block = first; block < last; ++block) {
      pairs_kernels()->forward(s, from, weight(block), to, epilogue ? &form : nullptr, block);
    }
  });
}

Tiles tiles_of(const Conv2dShape& s) {
  const int64_t blocks = channel_blocks<float>(s, s.K).count();
  return forward_tiles<float>(without_pool(s), tile_pixels, least_pixels, blocks);
}

}  // namespace

void pairs_forward(const Forward& call) {
  const Conv2dShape s = shape_in_pairs(call.shape.conv);
  const Pairs input(call.input), weight(call.weight);
  const Bias<float> bias(widened(call.bias, Workspace::wide_bias), weight.tensor());
  const TileEpilogue<float, uint16_t> epilogue(call);
  const Tiles tiles = tiles_of(s);
  const ForwardWeight<float> weights(s, weight.tensor(), tiles);
  convolve(s, NhwcReader<float>(input.tensor()), NhwcWriter<uint16_t>(call.output), tiles,
           call.epilogue ? &epilogue : nullptr, [&](int64_t block) { return weights.block(block, bias.data); });
}

void pairs_backward_data(const Conv2dShape& forward, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  const Conv2dShape s = shape_in_pairs(turned_around(forward));
  const Pairs g(grad_output);
  const Tensor krsc = ordered(weight, true);
  const Blocks blocks = channel_blocks<float>(s, s.K);
  float* packed = workspace<float>(Workspace::packed_weight, direct_kernels<float>().packed_forward_size(s));
  parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pairs_kernels()->pack_weight_backward(s, data<uint16_t>(krsc), i, packed);
  });
  convolve(s, NhwcReader<float>(g.tensor()), NhwcWriter<uint16_t>(grad_input), tiles_of(s), nullptr,
           [&](int64_t) { return PackedWeight<float>{packed, nullptr}; });
}

}  // namespace fastconv::cpu
