// backward_weight as a product of two matrices (kernels/gemm_weight.h).
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

// Divides the gradient of the weight into `wanted` parts or more: each group into ranges of output channels and of
// taps. Each part packs the x and g that it needs, so the ranges are about equally long.
class WeightParts {
 public:
  WeightParts(const Conv2dShape& s, int64_t wanted, int64_t rows, int64_t lanes)
      : s_(s),
        rows_(rows),
        lanes_(lanes),
        rows_count_(ceil_div(s.group_K(), rows)),
        lanes_count_(ceil_div(s.taps(), lanes)) {
    while (count() < wanted) {
      const int64_t k = s.group_K() / in_k_, taps = s.taps() / in_taps_;
      if (k >= taps && 2 * in_k_ <= rows_count_) {
        in_k_ *= 2;
      } else if (2 * in_taps_ <= lanes_count_) {
        in_taps_ *= 2;
      } else if (2 * in_k_ <= rows_count_) {
        in_k_ *= 2;
      } else {
        break;
      }
    }
  }

  int64_t count() const { return s_.groups * in_k_ * in_taps_; }

  WeightPart operator[](int64_t i) const {
    const int64_t taps = i % in_taps_, k = i / in_taps_ % in_k_, first_k = i / in_taps_ / in_k_ * s_.group_K();
    const auto end_k = [&](int64_t part) {
      return first_k + std::min(s_.group_K(), rows_count_ * part / in_k_ * rows_);
    };
    const auto end_taps = [&](int64_t part) { return std::min(s_.taps(), lanes_count_ * part / in_taps_ * lanes_); };
    return {{end_k(k), end_k(k + 1)}, {end_taps(taps), end_taps(taps + 1)}, true, 0, 0};
  }

 private:
  const Conv2dShape& s_;
  int64_t rows_, lanes_, rows_count_, lanes_count_, in_k_ = 1, in_taps_ = 1;
};

// `Stored`: the type of grad_output and input. If it has 16 bits, they are NHWC.
template <class T, class Stored>
void multiply(const GemmWeightKernels<T, Stored>& kernel, const Conv2dShape& s, const Tensor& grad_output,
              const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
  // A tile has up to twice as many. A panel of x then has 24 KB and stays in the first-level cache.
  constexpr int64_t pixels = 96;
  // With 1 MB instead of 2, more parts read x and g. Batch of 8, means of two runs: 512->128 1x1, 28x28 then takes 5.1
  // instead of 4.8 ms, and 256->128, 56x56 takes 10.7 instead of 9.7 ms.
  const int64_t most = affordable_pieces<T>(s, 2 << 20);
  const Tiles tiles = tiles_of_pieces(s, pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const WeightParts parts(s, ceil_div(wanted_pieces, pieces.count), kernel.block_rows, kernel.block_lanes);
  const bool in_place = pieces.count == 1 && is_nhwc(grad_weight), read_once = parts.count() == 1;
  const SummedInput<Stored> x(s, input, read_once, Workspace::whole_input, Workspace::input_tile);
  const SummedInput<Stored> g(one_tap(s), grad_output, read_once, Workspace::whole_gradient, Workspace::output_tile);
  pieces.for_each(parts.count(), [&](int64_t piece, int64_t i) {
    const int64_t first = tiles.count() * piece / pieces.count, last = tiles.count() * (piece + 1) / pieces.count;
    WeightPart part = parts[i];
    WeightSums<T> sums = pieces.at(piece, s.taps() * s.K);
    if (in_place) sums.weight = mutable_data<T>(grad_weight);
    if (part.taps.first > 0) sums.bias = nullptr;
    for (int64_t t = first; t < last; ++t) {
      const Tile tile = tiles[t], next = tiles[std::min(t + 1, last - 1)];
      part.x_ahead = x.distance(tile, next), part.g_ahead = g.distance(tile, next);
      const InputTile<Stored> from = g.tile(tile);
      const GradientTile<Stored> gradient{from.data, from.strides.image, tile.images, tile.row, tile.rows};
      const int64_t size = kernel.workspace_size(tile.images * tile.rows * s.Q, part.k.last - part.k.first);
      part.overwrite = t == first;
      kernel.backward_weight(s, x.tile(tile), gradient, part, sums, workspace<T>(Workspace::intermediate, size));
    }
  });
  if (in_place) return pieces.finish_bias(s, grad_bias);
  pieces.finish_krsc(s, grad_weight, grad_bias);
}

}  // namespace

template <class T>
void gemm_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                          const Tensor& grad_weight, const Tensor& grad_bias) {
  multiply(kernels().conv2d<T>().gemm_weight, s, grad_output, input, grad_weight, grad_bias);
}

void pairs_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias) {
  multiply(pairs_kernels()->weight, s, ordered(grad_output, true), ordered(input, true), grad_weight, grad_bias);
}

template void gemm_backward_weight<float>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor&);
template void gemm_backward_weight<double>(const Conv2dShape&, const Tensor&, const Tensor&, const Tensor&,
                                           const Tensor&);

}  // namespace fastconv::cpu
