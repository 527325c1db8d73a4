// The table of the kernels of one ISA level. default.cpp, avx2.cpp and avx512.cpp each fill one such table from the
// same source, and capability.cpp chooses one. Each kernel's file describes its arguments. operands.h has the structs.
#pragma once

#include "operands.h"

namespace fastconv {

// The three passes of the direct convolution (direct_*.h).
template <class T>
struct Conv2dKernels {
  int64_t block_lanes;  // channels in a block
  int64_t block_taps;   // taps that backward_weight sums at once
  int64_t (*packed_forward_size)(const Conv2dShape&);
  void (*pack_weight_forward)(const Conv2dShape&, const T* weight, bool krsc, int64_t block, T* packed);
  void (*pack_weight_backward)(const Conv2dShape&, const T* weight, bool krsc, int64_t block, int64_t first, T* packed);
  void (*forward)(const Conv2dShape&, const InputTile<T>& x, const PackedWeight<T>&, const OutputTile<T>& y,
                  int64_t block);
  void (*backward_data)(const Conv2dShape&, const GradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                        int64_t block);
  void (*backward_weight)(const Conv2dShape&, const InputTile<T>& x, const GradientTile<T>& g, const WeightSums<T>&,
                          const TapRange&, int64_t block);
};

// Copies between a tensor of `Stored` and the tiles of thin_groups.h (channel_blocks.h).
template <class Stored, class T>
struct ChannelBlockKernels {
  void (*gather)(const Stored* from, int64_t row_stride, int64_t pixel_stride, const LineTile& tile, T* to);
  void (*scatter)(const T* from, int64_t block_stride, int64_t pixels, int64_t channels, Stored* to,
                  int64_t pixel_stride);
};

// Groups of few channels, such as depthwise convolutions (thin_groups.h). One call computes one block of channels of
// one image.
template <class T>
struct ThinGroupsKernels {
  int64_t block;  // channels in a block
  bool (*supports)(const Conv2dShape&);
  ChannelBlockKernels<T, T> copies;
  void (*forward)(const Conv2dShape&, const GroupTile<T>& x, const PackedWeight<T>&, const GroupResult<T>& y);
  void (*backward_weight)(const Conv2dShape&, const GroupTile<T>& x, const GroupTile<T>& g, const WeightSums<T>&,
                          int64_t channels);
};

// Convolution, ReLU and max-pooling fused (direct_forward.h, pooling_epilogue.h).
template <class T>
struct FusedKernels {
  void (*forward)(const FusedShape&, const InputTile<T>& x, const PackedWeight<T>&, const PooledTile<T>& y,
                  int64_t block);
  void (*relu_max_pool2d)(const Pool2dShape&, const OutputTile<T>& conv, const PooledTile<T>& y);
  void (*unpool)(const Pool2dShape&, const T* g, const uint8_t* argmax, T* grad_conv);
  void (*unpool_nchw)(const Pool2dShape&, const T* g, const uint8_t* argmax, T* grad);
};

// Winograd's algorithm (winograd.h, winograd_weight.h).
template <class T>
struct WinogradKernels {
  int largest_tile;    // outputs along one side of the largest tile to use
  int64_t unit_tiles;  // tiles in a unit
  int64_t (*packed_size)(const Conv2dShape&, const WinogradTileKind&);
  int64_t (*workspace_size)(const Conv2dShape&);
  void (*pack_weight)(const Conv2dShape&, const T* packed, bool rotated, const WinogradTileKind&, int64_t block, T* to);
  void (*forward)(const FusedShape&, const WinogradUnit<T>&, const T* x, const PackedWeight<T>&, T* y, uint8_t* argmax);
  // backward_weight (winograd_weight.h)
  void (*set_sum_steps)(const Conv2dShape&, WinogradSums<T>&);
  void (*transform_tiles)(const Conv2dShape&, const WinogradSums<T>&, int64_t first, int64_t last, const T* x,
                          const T* g, T* bias);
  void (*multiply_tiles)(const Conv2dShape&, const WinogradSums<T>&, int64_t frequency, int64_t block);
  bool (*finish_weight)(const Conv2dShape&, const WinogradSums<T>&, int64_t c0, int64_t c1, T* dw);
};

// Gradients that are mostly zeros (sparse_gradient.h).
template <class T>
struct SparseGradientKernels {
  int64_t channels;  // output channels that backward_weight computes at once
  int64_t (*list_size)(const FusedShape&, int64_t windows);
  bool (*all_finite)(const T* values, int64_t count);
  int64_t (*mark_zeros)(const T* values, uint8_t* argmax, int64_t count);
  int64_t (*count_nonzero)(const uint8_t* argmax, int64_t count);
  void (*backward_weight)(const FusedShape&, const InputTile<T>& x, const SparseGradientTile<T>& g,
                          const WeightSums<T>&, int64_t k0, const NonZeroList<T>&);
  void (*backward_data)(const FusedShape&, const SparseGradientTile<T>& g, const T* weight, const OutputTile<T>& dx,
                        const NonZeroList<T>&);
};

// backward_data of such gradients for 3x3 kernels (sparse_gradient_3x3.h).
template <class T>
struct SparseGradient3x3Kernels {
  bool (*supports)(const FusedShape&);
  int64_t (*packed_size)(const Conv2dShape&);
  void (*pack_weight)(const Conv2dShape&, const T* krsc, int64_t k0, int64_t k1, T* packed);
  int64_t (*list_size)(const FusedShape&, int64_t windows);
  void (*backward_data)(const FusedShape&, const SparseGradientTile<T>& g, const T* packed, const OutputTile<T>& dx,
                        const NonZeroList<T>&);
};

// Few input channels (few_channels.h).
template <class T>
struct FewChannelsKernels {
  bool (*supports)(const FusedShape&);
  int64_t (*workspace_size)(const FusedShape&);
  void (*backward_weight)(const FusedShape&, const InputTile<T>& x, const SparseGradientTile<T>& g,
                          const WeightSums<T>&, T* workspace);
};

// backward_weight as a product of two matrices (gemm_weight.h). `Stored`: the type of x and g.
template <class T, class Stored = T>
struct GemmWeightKernels {
  int64_t block_rows, block_lanes;  // output channels and taps of a register block
  int64_t (*workspace_size)(int64_t pixels, int64_t channels);
  void (*backward_weight)(const Conv2dShape&, const InputTile<Stored>& x, const GradientTile<Stored>& g,
                          const WeightPart&, const WeightSums<T>&, T* workspace);
};

// Few output pixels (small_output.h).
template <class T>
struct SmallOutputKernels {
  void (*forward)(const Conv2dShape&, const InputTile<T>& x, const PixelList&, const PackedWeight<T>&, T* y,
                  const ChannelRange&);
};

// Few output channels and a stride of 1, such as filters of images (image_filter.h). One call computes one output
// channel, or the gradient of one pair of an output and an input channel.
template <class T>
struct ImageFilterKernels {
  int64_t lanes;  // A row of a plane is a multiple of this long.
  void (*forward)(const Conv2dShape&, const Planes<T>& x, const T* weight, T bias, const Plane<T>& y, const PlaneSize&);
  void (*backward_weight)(const Conv2dShape&, const Plane<const T>& x, const Plane<const T>& g, const PlaneSize&,
                          T* dw);
  double (*sum)(const Plane<const T>& g, const PlaneSize&);
};

// Batch normalisation (batch_norm.h).
template <class T>
struct BatchNormKernels {
  int64_t moment_pixels;  // the most pixels of one call of add_moments or add_gradient_sums
  void (*normalize)(const Normalization<T>&, const PixelRows<const T>& x, const PixelRows<const T>& residual,
                    const PixelRows<T>& y, const MatrixSize&);
  void (*add_moments)(const PixelRows<const T>& x, const MatrixSize&, const Moments&);
  void (*add_gradient_sums)(const Normalization<T>&, const NormalizedGradient<T>&, const MatrixSize&,
                            const GradientSums&);
  void (*gradient)(const Normalization<T>&, const NormalizedGradient<T>&, const GradientFactors<T>&, T* dx,
                   const MatrixSize&);
};

// All kernels of convolution and batch norm, for one element type.
template <class T>
struct Conv2dFamily {
  Conv2dKernels<T> direct;
  ThinGroupsKernels<T> thin_groups;
  FusedKernels<T> fused;
  WinogradKernels<T> winograd;
  SparseGradientKernels<T> sparse_gradient;
  SparseGradient3x3Kernels<T> sparse_gradient_3x3;
  FewChannelsKernels<T> few_channels;
  GemmWeightKernels<T> gemm_weight;
  SmallOutputKernels<T> small_output;
  ImageFilterKernels<T> image_filter;
  BatchNormKernels<T> batch_norm;
  void (*transpose)(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride);
};

template <class T>
struct MaxPool2dKernels {
  void (*nhwc)(const Pool2dShape&, const T* x, T* y, int64_t* indices, int64_t p0, int64_t p1);
  void (*nchw)(const Pool2dShape&, const T* x, T* y, int64_t* indices, int64_t p0, int64_t p1);
  // Null for integers.
  void (*backward)(const Pool2dShape&, const T* g, const int64_t* indices, T* dx, int64_t first_pixel) = nullptr;
  void (*argmax_nhwc)(const Pool2dShape&, const T* x, T* y, uint8_t* argmax, int64_t p0, int64_t p1) = nullptr;
  void (*argmax_nchw)(const Pool2dShape&, const T* x, T* y, uint8_t* argmax, int64_t p0, int64_t p1) = nullptr;
};

template <class T>
struct ReluKernels {
  void (*forward)(const T* x, T* y, int64_t count);
  void (*backward)(const T* g, const T* y, T* dx, int64_t count) = nullptr;  // null for integers
};

// Pooling and ReLU, for one element type.
template <class T>
struct ElementwiseKernels {
  MaxPool2dKernels<T> max_pool2d;
  ReluKernels<T> relu;
};

// A 16-bit floating-point type (reduced.h).
struct ReducedKernels {
  void (*widen)(const uint16_t* from, float* to, int64_t count);
  void (*round)(const float* from, uint16_t* to, int64_t count);
  void (*relu)(const uint16_t* x, uint16_t* y, int64_t count);
  void (*relu_backward)(const uint16_t* g, const uint16_t* y, uint16_t* dx, int64_t count);
  ChannelBlockKernels<uint16_t, float> copies;
};

// Convolution of bfloat16 (pairs.h, pairs_weight.h). In a packed weight, a pair of values has the type float.
struct PairsKernels {
  int64_t (*steps)(const Conv2dShape&);  // pairs in the packed weight for each output channel
  void (*forward)(const Conv2dShape&, const InputTile<uint16_t>& x, const PackedWeight<float>&,
                  const OutputTile<uint16_t>& y, const StoredForm<float, uint16_t>* form, int64_t block);
  void (*pack_weight_backward)(const Conv2dShape&, const uint16_t* weight, int64_t block, float* packed);
  GemmWeightKernels<float, uint16_t> weight;  // pairs_weight.h
};

struct ReducedFamily {
  ReducedKernels bfloat16, half;
};

struct Kernels : Conv2dFamily<float>,
                 Conv2dFamily<double>,
                 ElementwiseKernels<float>,
                 ElementwiseKernels<double>,
                 ElementwiseKernels<int8_t>,
                 ElementwiseKernels<uint8_t>,
                 ElementwiseKernels<int16_t>,
                 ElementwiseKernels<int32_t>,
                 ElementwiseKernels<int64_t>,
                 ReducedFamily {
  template <class T>
  const Conv2dFamily<T>& conv2d() const {
    return *this;
  }
  template <class T>
  const MaxPool2dKernels<T>& max_pool2d() const {
    return static_cast<const ElementwiseKernels<T>&>(*this).max_pool2d;
  }
  template <class T>
  const ReluKernels<T>& relu() const {
    return static_cast<const ElementwiseKernels<T>&>(*this).relu;
  }
};

extern const Kernels kernels_default;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const PairsKernels kernels_pairs;
#endif

}  // namespace fastconv
