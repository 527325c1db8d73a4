// Decides how the CPU computes a convolution. Nothing else decides: conv2d.cpp and conv2d_relu_max_pool2d.cpp ask here,
// and Python asks here through fastconv._C.plan and fastconv._C.slower_than_torch. The measurements that the decisions
// follow are in plan.cpp.
//
// A plan depends on the shape, the element type, the memory format of the weight, the ISA level and, for a gradient, on
// its share of non-zero values. It never depends on the number of threads.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>

#include "kernels/kernels.h"

namespace fastconv::cpu {

// Each has a driver of the same name in drivers/.
enum class Algorithm {
  direct,           // multiplies every tap of every pixel; also depthwise convolutions
  winograd,         // 3 x 3 kernels with fewer multiplications
  small_output,     // few output pixels: reads the weight as it is, without packing it
  sparse_gradient,  // gradients: multiplies the non-zero values of grad_output only
  few_channels,     // backward_weight of 1 to 4 input channels
};

const char* name_of(Algorithm algorithm);

// How Winograd's algorithm cuts images into tiles: up to four kinds of tiles, and the cost of all of them in
// multiplications for each pair of channels.
struct WinogradCut {
  std::array<WinogradTiles, 4> kinds;
  int64_t cost;
};

struct ForwardPlan {
  Algorithm algorithm;     // direct, winograd or small_output
  WinogradCut cut;         // of winograd
  bool pool_in_registers;  // of direct: each window is pooled before it is written
};

// `T` is float or double. `krsc_weight`: the weight is in KRSC order.
template <class T>
ForwardPlan plan_forward(const FusedShape& f, bool krsc_weight);

// What a plan may ask about a gradient. It asks only if the answer decides, because the answers cost a pass over data.
struct GradientFacts {
  bool has_argmax;  // the gradient of a fused operator
  // The share of the convolution's results that the gradient reaches, or any number below `limit` if it is below that.
  std::function<double(double limit)> nonzero;
  // Whether the other factor, weight or input, is finite. Only then are products with zero zero.
  std::function<bool()> other_is_finite;
};

struct BackwardPlan {
  Algorithm algorithm;     // of backward_data: direct, winograd or sparse_gradient
                           // of backward_weight: direct, sparse_gradient or few_channels
  WinogradCut cut;         // of winograd
  bool unpool;             // the algorithm works on the gradient of the convolution, not on that of the pool
  bool weight_as_patches;  // of sparse_gradient in backward_data
  int64_t unused_rows;     // of direct and winograd in backward_data: the first rows of grad_output reach no input
};

template <class T>
BackwardPlan plan_backward_data(const FusedShape& f, const GradientFacts& gradient);
template <class T>
BackwardPlan plan_backward_weight(const FusedShape& f, const GradientFacts& gradient);

// Pixels of the convolution in a tile of sparse_gradient. For the weight: x stays in the first-level cache, and lists
// are long enough for a loop (conv3 of MnistCNN: 0.42 ms; 0.46 ms with 128). For data: dx stays there, and few windows
// reach two tiles.
constexpr int64_t sparse_weight_pixels = 64;
constexpr int64_t sparse_data_pixels = 128;

// Large calls are computed in bands (memory/bands.h). Sizes are in elements of input and output together.
struct BandLimits {
  int64_t band;     // a band is about this large
  int64_t weights;  // and at least so many times as large as the weight, which is packed or summed once a band
  int64_t call;     // the largest call that is computed in one piece
};

// The limits for 16-bit types are lower, because all their tensors are copied.
BandLimits band_limits(bool reduced);

// The pixels of the convolution from one pooling window to the next, at most those of the image.
int64_t pixels_between_windows(const Pool2dShape& s);

// backward_data is the convolution of grad_output with the kernel turned around and its channels exchanged.
Conv2dShape turned_around(const Conv2dShape& s);

// For tests: replaces decisions for this process, while nothing computes. `choices` gives "always" (wherever the
// algorithm can compute the shape) or "never" to any of winograd, small_output, sparse_gradient, few_channels,
// pool_in_registers and weight_as_patches. `winograd_side` replaces FASTCONV_WINOGRAD; -1 leaves it. `band`
// is the number of elements of a band; 0 leaves it. Throws std::invalid_argument.
void set_algorithms(const std::map<std::string, std::string>& choices, int winograd_side, int64_t band);

}  // namespace fastconv::cpu
