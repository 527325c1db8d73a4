// Computes gradients from the non-zero values of grad_output only (kernels/sparse_gradient.h). After ReLU and
// max-pooling, most values are zero.
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

template <class T>
NonZeroList<T> list_of(int64_t size) {
  return {workspace<Offset<T>>(Workspace::list_offsets, size), workspace<T>(Workspace::list_values, size)};
}

}  // namespace

template <class T>
void sparse_backward_weight(const SparseGradient<T>& g, const Tensor& input, const Tensor& grad_weight,
                            const Tensor& grad_bias) {
  const FusedShape& f = g.shape;
  const Conv2dShape& s = f.conv;
  const SparseGradientKernels<T>& kernel = kernels().conv2d<T>().sparse_gradient;
  // The work is also divided by channels, which needs no partial sums. But each part reads all of x. With parts of 8
  // channels instead of 16, backward of conv2 of MnistCNN is 4 % slower (AVX2).
  constexpr int64_t part_channels = 16;
  const int64_t blocks = ceil_div(s.K, kernel.channels), most_parts = ceil_div(s.K, part_channels);
  const int64_t most = std::min(affordable_pieces<T>(s), ceil_div(wanted_pieces, most_parts));
  const Tiles tiles(f.pool.N, f.pool.P, f.pool.Q, ceil_div(sparse_weight_pixels, pixels_between_windows(f.pool)), most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const int64_t parts = std::min(most_parts, ceil_div(wanted_pieces, pieces.count));
  const SummedInput<T> x(s, input, parts == 1, Workspace::whole_input, Workspace::input_tile);
  parallel_for(0, pieces.count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, piece = i / parts;
      const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      const int64_t k0 = first * kernel.channels, k1 = std::min(last * kernel.channels, s.K);
      const WeightSums<T> sums = pieces.at(piece, s.taps() * s.K);
      zero_channels(sums.weight + k0 * s.taps(), k1 - k0, s.taps(), 0, s.taps());
      zero_channels(sums.bias, 1, s.K, k0, k1);
      for (int64_t t = tiles.count() * piece / pieces.count; t < tiles.count() * (piece + 1) / pieces.count; ++t) {
        const Tile tile = tiles[t];
        const InputTile<T> from = x.tile(convolution_rows(f, tile));
        const SparseGradientTile<T> gradient = tile_of(g, tile);
        const NonZeroList<T> list = list_of<T>(kernel.list_size(f, tile.images * tile.rows * f.pool.Q));
        for (int64_t block = first; block < last; ++block) {
          kernel.backward_weight(f, from, gradient, sums, block * kernel.channels, list);
        }
      }
    }
  });
  pieces.finish_krsc(s, grad_weight, grad_bias);
}

template <class T>
void sparse_backward_data(const SparseGradient<T>& g, bool weight_as_patches, const Tensor& weight,
                          const Tensor& grad_input) {
  const FusedShape& f = g.shape;
  const Conv2dShape& s = f.conv;
  const SparseGradientKernels<T>& kernel = kernels().conv2d<T>().sparse_gradient;
  const SparseGradient3x3Kernels<T>& patch = kernels().conv2d<T>().sparse_gradient_3x3;
  const Tensor krsc = to_nhwc<T>(weight);
  const T* w = data<T>(krsc);
  if (weight_as_patches) {
    T* packed = workspace<T>(Workspace::packed_weight, patch.packed_size(s));
    parallel_for(0, s.K, ceil_div(grain_size, s.taps()),
                 [&](int64_t begin, int64_t end) { patch.pack_weight(s, data<T>(krsc), begin, end, packed); });
    w = packed;
  }
  const auto run = weight_as_patches ? patch.backward_data : kernel.backward_data;
  const auto list_size = weight_as_patches ? patch.list_size : kernel.list_size;
  const NhwcWriter<T> dx(grad_input);
  const Tiles tiles(s.N, s.H, s.W, dx.tile_pixels(sparse_data_pixels));
  parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiles[i];
      const Rows windows = outputs_that_read(f.pool, outputs_that_read(s, {tile.row, tile.rows}));
      const OutputTile<T> to{dx.tile(tile), tile.images, tile.row, tile.rows};
      zero_channels(to.data, tile.images * tile.rows * s.W, s.C, 0, s.C);
      run(f, tile_of(g, {tile.image, tile.images, windows.first, windows.count}), w, to,
          list_of<T>(list_size(f, tile.images * windows.count * f.pool.Q)));
      dx.finish(tile, to.data, 0, s.C);
    }
  });
}

#define FASTCONV_INSTANTIATE(T)                                                                                   \
  template void sparse_backward_weight<T>(const SparseGradient<T>&, const Tensor&, const Tensor&, const Tensor&); \
  template void sparse_backward_data<T>(const SparseGradient<T>&, bool, const Tensor&, const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
