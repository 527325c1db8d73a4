// PyTorch's convolution within a fused operator. In forward, relu_max_pool2d reads its result. In backward, PyTorch
// gets the gradient of the convolution's results. The unfused operators call aten.h directly and copy nothing.
#include "../aten.h"
#include "tiling.h"

namespace fastconv::cpu {

template <class T>
void torch_forward(const Forward& call) {
  const FusedShape& f = call.shape;
  const Tensor conv = aten_conv2d(f.conv, call.input, call.weight, call.bias, true);
  const int64_t image = f.conv.P * f.conv.Q * f.conv.K;
  const NhwcWriter<T> y(call.output);
  const Tiles tiles(f.conv.N, f.pool.P, f.pool.Q, ceil_div(y.tile_pixels(tile_pixels), pixels_between_windows(f.pool)));
  for_each_tile(tiles, [&](const Tile& tile) {
    const OutputTile<T> images{mutable_data<T>(conv) + tile.image * image, tile.images, 0, f.conv.P};
    T* to = y.tile(tile);
    kernels().conv2d<T>().fused.relu_max_pool2d(
        f.pool, images, {to, call.argmax_from(tile.image, tile.row), tile.images, tile.row, tile.rows});
    y.finish(tile, to, 0, f.conv.K);
  });
}

void torch_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input) {
  const Backward call{without_pool(s), grad_output, {}, {}, weight, is_channels_last(grad_input)};
  copy(std::get<0>(aten_conv2d_backward(call, true, false)), grad_input);
}

void torch_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias) {
  const Backward call{without_pool(s), grad_output, {}, input, {}, false, is_channels_last(grad_weight)};
  const auto [unused, weight, bias] = aten_conv2d_backward(call, false, true);
  copy(weight, grad_weight);
  copy(bias, grad_bias);
}

template void torch_forward<float>(const Forward&);
template void torch_forward<double>(const Forward&);

}  // namespace fastconv::cpu
