// Convolutions of few output pixels. The weight is read once, in KRSC order, and not packed (kernels/small_output.h).
#include <vector>

#include "epilogue.h"
#include "tiling.h"

namespace fastconv::cpu {

template <class T>
void small_output_forward(const Forward& call) {
  const FusedShape& f = call.shape;
  const Conv2dShape& s = f.conv;
  const Bias<T> bias(call.bias, call.weight);
  const NhwcReader<T> reader(call.input);
  const InputTile<T> x = input_of(s, reader, {0, s.N, 0, s.P}, Workspace::whole_input);
  const WholeResult<T> y(call.output);
  T* conv = call.argmax ? workspace<T>(Workspace::convolution, s.N * s.P * s.Q * s.K) : y.data();
  std::vector<int64_t> pixels;
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t p = 0; p < s.P; ++p) {
      for (int64_t q = 0; q < s.Q; ++q) {
        pixels.push_back(n * x.strides.image + p * s.stride_h * x.strides.row + q * s.stride_w * x.strides.pixel);
      }
    }
  }
  const PixelList list{pixels.data(), static_cast<int64_t>(pixels.size())};
  const TileEpilogue<T> epilogue(call);
  constexpr int64_t channels = 16;  // for each task
  parallel_for(0, ceil_div(s.K, channels), 1, [&](int64_t begin, int64_t end) {
    const ChannelRange c{begin * channels, std::min(end * channels, s.K)};
    kernels().conv2d<T>().small_output.forward(s, x, list, {data<T>(call.weight), bias.data}, conv, c);
    epilogue.apply(conv + c.first, s.K, 0, list.count, c);
  });
  if (call.argmax) {
    kernels().conv2d<T>().fused.relu_max_pool2d(f.pool, {conv, s.N, 0, s.P}, {y.data(), call.argmax, s.N, 0, f.pool.P});
  }
  y.finish();
}

template void small_output_forward<float>(const Forward&);
template void small_output_forward<double>(const Forward&);

}  // namespace fastconv::cpu
