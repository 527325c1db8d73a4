// bfloat16 with AVX-512 BF16: multiplies pairs of values (kernels/pairs.h). Tensors are read and written in place.
#include "../memory/reduced.h"
#include "epilogue.h"
#include "forward_tiles.h"

namespace fastconv::cpu {
namespace {

// A weight in the form of a 1x1 kernel: each channel is a pair of values that are multiplied together.
Conv2dShape shape_in_pairs(Conv2dShape s) {
  s.C = pairs_kernels()->steps(s);
  s.R = s.S = 1, s.H = s.P, s.W = s.Q;
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1, s.pad_h = s.pad_w = 0;
  return s;
}

// The weight in the form of shape_in_pairs: the weight in KRSC itself, or a copy of it in which a zero follows each run
// of an odd number of taps.
class WeightInPairs {
 public:
  WeightInPairs(const Conv2dShape& s, const Tensor& weight) : s_(s), owner_(ordered(weight, true)) {
    const bool aligned = reinterpret_cast<uintptr_t>(data<uint16_t>(owner_)) % alignof(float) == 0;
    if (2 * steps() == s.taps() && aligned) return;
    const Tensor krsc = owner_;
    owner_ = empty({s.K, 2 * steps(), 1, 1}, weight, false);
    const int64_t run = s.dilation_w == 1 ? s.S * s.C : s.C, padded = run + run % 2;
    const uint16_t* from = data<uint16_t>(krsc);
    uint16_t* to = mutable_data<uint16_t>(owner_);
    for (int64_t i = 0; i < s.K * s.taps() / run; ++i, from += run, to += padded) {
      to[padded - 1] = 0;
      std::memcpy(to, from, static_cast<size_t>(run) * sizeof(uint16_t));
    }
  }

  Tensor tensor() const {
    return torch::stable::from_blob(const_cast<uint16_t*>(data<uint16_t>(owner_)), {s_.K, steps(), 1, 1},
                                    {steps(), 1, 1, 1}, owner_.device(), ScalarType::Float);
  }

 private:
  int64_t steps() const { return pairs_kernels()->steps(s_); }

  const Conv2dShape& s_;
  Tensor owner_;
};

// Computes the convolution `s`. weight(block) returns the packed weight of a block.
template <class WeightOf>
void convolve(const Conv2dShape& s, const NhwcReader<uint16_t>& x, const NhwcWriter<uint16_t>& y, const Tiles& tiles,
              const TileEpilogue<float, uint16_t>* epilogue, const WeightOf& weight) {
  const Blocks blocks = channel_blocks<float>(s, s.K);
  const int64_t parts = parts_of_tile(tiles, blocks);
  const bool streamed = y.streamed(s.K);
  for_each_part(tiles, blocks.count(), parts, [&](const Tile& tile, int64_t first, int64_t last) {
    const InputTile<uint16_t> from = input_of(s, x, tile, Workspace::input_tile);
    const OutputTile<uint16_t> to{y.tile(tile), tile.images, tile.row, tile.rows, streamed};
    const auto form = epilogue ? epilogue->form((tile.image * s.P + tile.row) * s.Q) : StoredForm<float, uint16_t>{};
    for (int64_t block = first; block < last; ++block) {
      pairs_kernels()->forward(s, from, weight(block), to, epilogue ? &form : nullptr, block);
    }
  });
}

// A pair of channels has the size of a float32.
Tiles tiles_of(Conv2dShape s) {
  s.C = ceil_div(s.C, 2);
  const int64_t blocks = channel_blocks<float>(s, s.K).count();
  return forward_tiles<float>(without_pool(s), tile_pixels, least_pixels, blocks);
}

}  // namespace

void pairs_forward(const Forward& call) {
  const Conv2dShape &s = call.shape.conv, in_pairs = shape_in_pairs(s);
  const Tensor x = ordered(call.input, true);
  const WeightInPairs weight(s, call.weight);
  const Bias<float> bias(widened(call.bias, Workspace::wide_bias), x);
  const TileEpilogue<float, uint16_t> epilogue(call);
  const Tiles tiles = tiles_of(s);
  const ForwardWeight<float> weights(in_pairs, weight.tensor(), tiles);
  convolve(s, NhwcReader<uint16_t>(x), NhwcWriter<uint16_t>(call.output), tiles, call.epilogue ? &epilogue : nullptr,
           [&](int64_t block) { return weights.block(block, bias.data); });
}

void pairs_backward_data(const Conv2dShape& forward, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  const Conv2dShape s = turned_around(forward);
  const Tensor g = ordered(grad_output, true), krsc = ordered(weight, true);
  const Blocks blocks = channel_blocks<float>(s, s.K);
  float* packed =
      workspace<float>(Workspace::packed_weight, direct_kernels<float>().packed_forward_size(shape_in_pairs(s)));
  parallel_for_each(blocks.count(),
                    [&](int64_t i) { pairs_kernels()->pack_weight_backward(s, data<uint16_t>(krsc), i, packed); });
  convolve(s, NhwcReader<uint16_t>(g), NhwcWriter<uint16_t>(grad_input), tiles_of(s), nullptr,
           [&](int64_t) { return PackedWeight<float>{packed, nullptr}; });
}

}  // namespace fastconv::cpu
