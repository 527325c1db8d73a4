// Applies the epilogue of a convolution in inference to parts of the result, while they are in the cache.
#pragma once

#include "../convolution.h"
#include "../memory/nhwc.h"

namespace fastconv::cpu {

template <class T>
class TileEpilogue {
 public:
  explicit TileEpilogue(const Forward& call) : epilogue_(call.epilogue), K_(call.shape.conv.K) {
    if (epilogue_ == nullptr) return;
    const ChannelConstants<T, 3>& constants = epilogue_->constants->of<T>();
    for (size_t i = 0; i < 3; ++i) constants_[i] = constants[i].empty() ? nullptr : constants[i].data();
    if (epilogue_->residual) residual_ = to_nhwc<T>(*epilogue_->residual);
  }

  // y: `pixels` pixels, from pixel `first` of all images on, of the channels [c.first, c.last). The pixels are `stride`
  // elements apart.
  void apply(T* y, int64_t stride, int64_t first, int64_t pixels, const ChannelRange& c) const {
    if (epilogue_ == nullptr) return;
    const auto at = [&](size_t i) { return constants_[i] ? constants_[i] + c.first : nullptr; };
    const T* add = residual_ ? data<T>(*residual_) + first * K_ + c.first : nullptr;
    kernels().conv2d<T>().batch_norm.normalize(
        {at(0), at(1), at(2), epilogue_->activation, static_cast<T>(epilogue_->slope)}, {y, stride}, {add, K_},
        {y, stride}, {pixels, c.last - c.first});
  }

  // The same for all channels of whole tensors, in parallel.
  void apply_to_all(T* y, int64_t pixels) const {
    if (epilogue_ == nullptr) return;
    parallel_for(0, pixels, ceil_div(grain_size, K_),
                 [&](int64_t begin, int64_t end) { apply(y + begin * K_, K_, begin, end - begin, {0, K_}); });
  }

 private:
  const Epilogue* epilogue_;
  int64_t K_;
  std::array<const T*, 3> constants_{};
  std::optional<Tensor> residual_;
};

}  // namespace fastconv::cpu
