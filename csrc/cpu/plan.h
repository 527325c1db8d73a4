// Decides how the CPU computes a convolution. conv2d.cpp and conv2d_backward.cpp ask here, and Python asks here
// through fastconv._C.plan. plan.cpp has the measurements.
//
// A plan depends on the shape, the element type, the memory format of the weight and the ISA level. For a gradient, it
// also depends on GradientFacts. It does not depend on the number of threads, unless fastconv.tune() timed the call
// (tuning.h).
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>

#include "../tensor.h"
#include "kernels/kernels.h"

namespace fastconv::cpu {

// Each has a driver of the same name in drivers/.
enum class Algorithm {
  direct,           // multiplies every tap of every pixel
  thin_groups,      // groups of 1 to 16 channels, such as depthwise convolutions
  winograd,         // 3 x 3 kernels with fewer multiplications
  small_output,     // few output pixels: reads the weight without packing it
  sparse_gradient,  // gradients: multiplies the non-zero values of grad_output only
  gemm,             // backward_weight of a vector of input channels or more: a product of two matrices
  pairs,            // bfloat16 with AVX-512 BF16, in NHWC: multiplies pairs of channels or pixels
  few_channels,     // backward_weight of 1 to 4 input channels; up to 16 in fastconv.tune()
  image_filter,     // few channels and a stride of 1, such as filters of images
  torch,            // PyTorch's own operator. For fused operators, relu_max_pool2d or unpool run before or after it.
};

const char* name_of(Algorithm algorithm);

enum class Pass { forward, backward_data, backward_weight };

// Whether `pairs` computes a convolution, or a gradient of one. `type` is that of the tensors. `nhwc`: all tensors
// but the weight are in NHWC. The epilogue has at most ReLU or ReLU6.
bool multiplies_pairs(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc);

// Whether PyTorch's own operator computes a pass faster than every other algorithm. FASTCONV_ALGORITHM=own: never.
bool torch_is_faster(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc);

// Whether image_filter can compute a convolution and its gradients, and whether the plan chooses it for one pass. Fused
// operators never use it.
bool can_be_image_filter(const Conv2dShape& s);
bool chooses_image_filter(const Conv2dShape& s, Pass pass);
// Whether image_filter is faster than pairs and than PyTorch in bfloat16.
bool chooses_image_filter_in_bfloat16(const Conv2dShape& s, Pass pass);

// How Winograd's algorithm cuts images: up to four kinds of tiles (interior, two edges and a corner), and the number of
// multiplications of all tiles for each pair of input and output channel.
struct WinogradCut {
  std::array<WinogradTileKind, 4> kinds;
  int64_t cost;
};

struct ForwardPlan {
  Algorithm algorithm;             // direct, thin_groups, winograd, small_output, image_filter or torch
  WinogradCut cut{};               // for winograd
  bool pool_in_registers = false;  // for direct: pool each window before it is written to memory
};

// `T` is float or double. `krsc_weight`: the weight is in KRSC order. `has_argmax`: ReLU and perhaps a pool follow, in
// training.
template <class T>
ForwardPlan plan_forward(const FusedShape& f, bool krsc_weight, bool has_argmax);

// The facts about a gradient that a plan needs. A plan calls these functions only if the answer decides, because each
// reads a whole tensor.
struct GradientFacts {
  bool has_argmax;  // the gradient of a fused operator
  // Returns the share of the convolution's results that the gradient reaches. Instead, it may return an upper bound
  // that is below `limit`, or an estimate from a sample that is clearly above it.
  std::function<double(double limit)> nonzero;
  // Whether the other factor (weight or input) is finite. Only then may products with a zero gradient be skipped.
  std::function<bool()> other_is_finite;
};

struct BackwardPlan {
  Algorithm algorithm;  // of backward_data: direct, thin_groups, winograd, sparse_gradient, image_filter or torch
                        // of backward_weight: the same, gemm or few_channels
  WinogradCut cut{};    // for winograd
  bool unpool = false;  // the algorithm needs the gradient of the convolution, not that of the pool
  bool weight_as_patches = false;  // for sparse_gradient in backward_data: use the kernels of sparse_gradient_3x3.h
  int64_t unused_rows = 0;  // for direct and winograd in backward_data: the first rows of grad_output reach no input
};

// The plan of backward_data or of backward_weight.
template <class T>
BackwardPlan plan_backward(Pass pass, const FusedShape& f, const GradientFacts& gradient);

// Whether a weight does not fit in the second-level cache beside a tile: 1 MB of float32 or more. The direct kernel
// then packs it block by block.
bool has_large_weight(const Conv2dShape& s);

// Pixels of the convolution in a tile of sparse_gradient. In backward_weight, x stays in the first-level cache, and the
// lists are long enough for their loops (conv3 of MnistCNN: 0.42 ms; 0.46 ms with 128 pixels). In backward_data, dx
// stays in the first-level cache, and few windows reach two tiles.
constexpr int64_t sparse_weight_pixels = 64;
constexpr int64_t sparse_data_pixels = 128;

// Large calls are computed in bands (memory/bands.h). Sizes are in elements of input and output together.
struct BandLimits {
  int64_t band;     // the size of a band
  int64_t weights;  // a band is at least this many weights large, because it packs the weight or sums its gradient
  int64_t call;     // the largest call that is computed in one piece
};

// The limits for 16-bit types are lower, because all their tensors are copied.
BandLimits band_limits(bool reduced);

// The number of pixels of the convolution for each pooling window: the product of the strides, limited by the image.
int64_t pixels_between_windows(const Pool2dShape& s);

// backward_data is a convolution of grad_output, with the kernel rotated by 180 degrees and C and K exchanged. Returns
// the shape of that convolution.
Conv2dShape turned_around(const Conv2dShape& s);

// For tests: overrides decisions in this process, while no operator runs. `choices` maps any of torch, winograd,
// small_output, sparse_gradient, few_channels, pool_in_registers, weight_as_patches, thin_groups, gemm, pairs and
// image_filter to "always" (for every shape that it can compute), "never", or "measured" (the plan decides; the
// default). `winograd_side` replaces FASTCONV_WINOGRAD, unless it is -1. `band` replaces the size of a band, unless it
// is 0. Throws std::invalid_argument.
void set_algorithms(const std::map<std::string, std::string>& choices, int winograd_side, int64_t band);

}  // namespace fastconv::cpu
