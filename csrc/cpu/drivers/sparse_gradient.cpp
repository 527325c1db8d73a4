// Computes gradients from the non-zero values of grad_output only (kernels/sparse_gradient.h). After ReLU and
// max-pooling, most values are zero.
#include "../gradient.h"
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

template <class T>
NonZeroList<T> list_of(int64_t size) {
  return {workspace<Offset<T>>(Workspace::list_offsets, size), workspace<T>(Workspace::list_values, size)};
}

// The weight of backward_data: in KRSC, or packed for sparse_gradient_3x3.
template <class T>
const T* weight_for(const Conv2dShape& s, const Tensor& krsc, bool as_patches) {
  if (!as_patches) return data<T>(krsc);
  const SparseGradient3x3Kernels<T>& kernel = kernels().conv2d<T>().sparse_gradient_3x3;
  T* packed = workspace<T>(Workspace::packed_weight, kernel.packed_size(s));
  parallel_for(0, s.K, ceil_div(grain_size, s.taps()),
               [&](int64_t begin, int64_t end) { kernel.pack_weight(s, data<T>(krsc), begin, end, packed); });
  return packed;
}

// How backward_weight is divided: each part of the output channels of each piece of the images is one unit of work.
// Parts need no partial sums, but each one reads all of x. With parts of 8 channels instead of 16, backward of conv2
// of MnistCNN is 4 % slower (AVX2).
template <class T>
struct WeightUnits {
  explicit WeightUnits(const FusedShape& f)
      : most(std::min(affordable_pieces<T>(f.conv), ceil_div(wanted_pieces, ceil_div(f.conv.K, part_channels)))),
        tiles(f.pool.N, f.pool.P, f.pool.Q, ceil_div(sparse_weight_pixels, pixels_between_windows(f.pool)), most),
        pieces(f.conv, std::min(most, tiles.count())),
        parts(std::min(ceil_div(f.conv.K, part_channels), ceil_div(wanted_pieces, pieces.count))) {}

  static constexpr int64_t part_channels = 16;
  const int64_t most;
  const Tiles tiles;
  const Pieces<T> pieces;
  const int64_t parts;
};

}  // namespace

template <class T>
void sparse_backward(Gradient<T>& gradient, const DataPass* data, const WeightPass* weight) {
  const SparseGradientKernels<T>& kernel = kernels().conv2d<T>().sparse_gradient;
  if (data) {
    const SparseGradient<T> g = gradient.sparse(data->plan.unpool);
    const FusedShape& f = g.shape;
    const Conv2dShape& s = f.conv;
    const SparseGradient3x3Kernels<T>& patch = kernels().conv2d<T>().sparse_gradient_3x3;
    const bool as_patches = data->plan.weight_as_patches;
    const auto run = as_patches ? patch.backward_data : kernel.backward_data;
    const auto list_size = as_patches ? patch.list_size : kernel.list_size;
    const Tensor krsc = to_nhwc<T>(data->weight);
    const T* w = weight_for<T>(s, krsc, as_patches);
    const NhwcWriter<T> dx(data->grad_input);
    const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(sparse_data_pixels));
    for_each_tile(tiles, [&](const Tile& tile) {
      const Rows windows = outputs_that_read(f.pool, outputs_that_read(s, {tile.row, tile.rows}));
      const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows};
      zero_channels(to.data, tile.images * tile.rows * s.W, s.C, 0, s.C);
      run(f, tile_of(g, {tile.image, tile.images, windows.first, windows.count}), w, to,
          list_of<T>(list_size(f, tile.images * windows.count * f.pool.Q)));
      dx.finish(tile, to.data, 0, s.C);
    });
  }
  if (weight) {
    const SparseGradient<T> g = gradient.sparse(weight->plan.unpool);
    const FusedShape& f = g.shape;
    const Conv2dShape& s = f.conv;
    const WeightUnits<T> units(f);
    const int64_t parts = units.parts, blocks = ceil_div(s.K, kernel.channels);
    const SummedInput<T> x(s, weight->input, parts == 1, Workspace::whole_input, Workspace::input_tile);
    units.pieces.for_each(parts, [&](int64_t piece, int64_t part) {
      const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      const int64_t k0 = first * kernel.channels, k1 = std::min(last * kernel.channels, s.K);
      const WeightSums<T> sums = units.pieces.at(piece, s.taps() * s.K);
      zero_channels(sums.weight + k0 * s.taps(), k1 - k0, s.taps(), 0, s.taps());
      zero_channels(sums.bias, 1, s.K, k0, k1);
      units.pieces.for_each_tile(units.tiles, piece, [&](const Tile& tile) {
        const InputTile<T> from = x.tile(convolution_rows(f, tile));
        const SparseGradientTile<T> of_tile = tile_of(g, tile);
        const NonZeroList<T> list = list_of<T>(kernel.list_size(f, tile.images * tile.rows * f.pool.Q));
        for (int64_t block = first; block < last; ++block) {
          kernel.backward_weight(f, from, of_tile, sums, block * kernel.channels, list);
        }
      });
    });
    units.pieces.finish_krsc(s, weight->grad_weight, weight->grad_bias);
  }
}

template void sparse_backward<float>(Gradient<float>&, const DataPass*, const WeightPass*);
template void sparse_backward<double>(Gradient<double>&, const DataPass*, const WeightPass*);

}  // namespace fastconv::cpu
