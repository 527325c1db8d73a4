// backward_weight of few input channels (kernels/few_channels.h).
#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {

template <class T>
void few_channels_backward_weight(const SparseGradient<T>& g, const Tensor& input, const Tensor& grad_weight,
                                  const Tensor& grad_bias) {
  const FusedShape& f = g.shape;
  const Conv2dShape& s = f.conv;
  const FewChannelsKernels<T>& kernel = kernels().conv2d<T>().few_channels;
  const int64_t most = affordable_pieces<T>(s);
  const Tiles tiles(f.pool.N, f.pool.P, f.pool.Q, tile_pixels, most);
  const Pieces<T> pieces(s, std::min(most, tiles.count()));
  const SummedInput<T> x(s, input, true, Workspace::whole_input, Workspace::input_tile);
  pieces.for_each(1, [&](int64_t piece, int64_t) {
    T* patches = workspace<T>(Workspace::intermediate, kernel.workspace_size(f));
    const WeightSums<T> sums = pieces.at(piece, s.taps() * s.K);
    zero_channels(sums.weight, 1, pieces.size, 0, pieces.size);
    pieces.for_each_tile(tiles, piece, [&](const Tile& tile) {
      kernel.backward_weight(f, x.tile(convolution_rows(f, tile)), tile_of(g, tile), sums, patches);
    });
  });
  pieces.finish_rsck(s, grad_weight, grad_bias);
}

template void few_channels_backward_weight<float>(const SparseGradient<float>&, const Tensor&, const Tensor&,
                                                  const Tensor&);
template void few_channels_backward_weight<double>(const SparseGradient<double>&, const Tensor&, const Tensor&,
                                                   const Tensor&);

}  // namespace fastconv::cpu
