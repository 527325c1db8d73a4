// Applies the epilogue of a convolution in inference to parts of the result, while they are in the cache.
#pragma once

#include <limits>
#include <type_traits>

#include "../convolution.h"
#include "../memory/nhwc.h"

namespace fastconv::cpu {

// `Stored`: the type of the result and of the residual.
template <class T, class Stored = T>
class TileEpilogue {
 public:
  explicit TileEpilogue(const Forward& call) : epilogue_(call.epilogue), K_(call.shape.conv.K) {
    if (epilogue_ == nullptr) return;
    const ChannelConstants<T, 3>& constants = epilogue_->constants->of<T>();
    for (size_t i = 0; i < 3; ++i) constants_[i] = constants[i].data();
    if (epilogue_->residual) residual_ = in_nhwc(*epilogue_->residual);
  }

  // y: `pixels` pixels of the channels [c.first, c.last), from pixel `first` on, counted over all images. They are
  // `stride` elements apart.
  void apply(T* y, int64_t stride, int64_t first, int64_t pixels, const ChannelRange& c) const {
    if (epilogue_ == nullptr) return;
    const T* add = residual_from(first);
    apply(y, stride, pixels, c, {add ? add + c.first : nullptr, K_});
  }

  // Applies the epilogue to one block of channels of thin groups.
  template <class Elements>
  void apply_to_block(const Elements& elements, T* y, int64_t stride, int64_t first, int64_t pixels,
                      const ChannelRange& c) const {
    if constexpr (std::is_same_v<Stored, T>) {
      apply(y, stride, first, pixels, c);
    } else if (epilogue_) {
      PixelRows<const T> residual{nullptr, kernels().conv2d<T>().thin_groups.block};
      if (const Stored* add = residual_from(first)) {
        T* wide = workspace<T>(Workspace::wide_rows, pixels * residual.stride);
        elements.copies().gather(add + c.first, 0, K_, {1, 0, pixels, pixels, c.last - c.first, 0}, wide);
        residual.data = wide;
      }
      apply(y, stride, pixels, c, residual);
    }
  }

  // The epilogue in the form of the direct kernel, for a tile that begins at pixel `first`.
  StoredForm<T, Stored> form(int64_t first) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const bool limited = epilogue_->activation != Activation::none;
    const T most = epilogue_->activation == Activation::relu6 ? T(6) : infinity;
    return {constants_[0], constants_[1], constants_[2], residual_from(first), limited ? T(0) : -infinity, most};
  }

  // Applies the epilogue to all channels of whole tensors, in parallel.
  void apply_to_all(T* y, int64_t pixels) const {
    if (epilogue_ == nullptr) return;
    parallel_for(0, pixels, ceil_div(grain_size, K_),
                 [&](int64_t begin, int64_t end) { apply(y + begin * K_, K_, begin, end - begin, {0, K_}); });
  }

 private:
  void apply(T* y, int64_t stride, int64_t pixels, const ChannelRange& c, const PixelRows<const T>& residual) const {
    const auto at = [&](size_t i) { return constants_[i] + c.first; };
    kernels().conv2d<T>().batch_norm.normalize(
        {at(0), at(1), at(2), epilogue_->activation, static_cast<T>(epilogue_->slope)}, {y, stride}, residual,
        {y, stride}, {pixels, c.last - c.first});
  }

  static Tensor in_nhwc(const Tensor& residual) {
    if constexpr (std::is_same_v<Stored, T>) return to_nhwc<T>(residual);
    return ordered(residual, true);
  }

  const Stored* residual_from(int64_t pixel) const {
    return residual_ ? data<Stored>(*residual_) + pixel * K_ : nullptr;
  }

  const Epilogue* epilogue_;
  int64_t K_;
  std::array<const T*, 3> constants_{};
  std::optional<Tensor> residual_;
};

}  // namespace fastconv::cpu
