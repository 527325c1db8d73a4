// The drivers: each computes a convolution, or a gradient of one, by one algorithm. A driver cuts the work into tiles,
// runs them in parallel and adds partial sums in a fixed order. So its results are bitwise equal for every number of
// threads. plan.h says which driver computes which call.
//
// T is float or double. All tensors exist and have the right sizes. An (N, C, H, W) tensor may be in NCHW or NHWC
// order.
#pragma once

#include "../convolution.h"
#include "../plan.h"

namespace fastconv::cpu {

template <class T>
class Gradient;  // gradient.h

template <class T>
void direct_forward(const Forward& call, bool pool_in_registers);
template <class T>
void winograd_forward(const Forward& call, const WinogradCut& cut);
template <class T>
void small_output_forward(const Forward& call);
template <class T>
void torch_forward(const Forward& call);
template <class T>
void image_filter_forward(const Forward& call);

// grad_output: (N, K, P, Q).
template <class T>
void direct_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                          const Tensor& grad_input);
template <class T>
void winograd_backward_data(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                            const Tensor& weight, const Tensor& grad_input);
template <class T>
void direct_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                            const Tensor& grad_weight, const Tensor& grad_bias);
template <class T>
void gemm_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                          const Tensor& grad_weight, const Tensor& grad_bias);
// The cut has one kind of tiles.
template <class T>
void winograd_backward_weight(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                              const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias);

template <class T>
void image_filter_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                const Tensor& grad_input);
template <class T>
void image_filter_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                                  const Tensor& grad_weight, const Tensor& grad_bias);

// For float32 and float64.
void torch_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
void torch_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias);

// `Elements` is PlainElements<T> or ReducedElements (memory/reduced.h). With the latter, `weight`, `grad_weight` and
// `grad_bias` of the gradients are float32, and nothing is fused.
template <class Elements>
void thin_groups_forward(const Elements& elements, const Forward& call);
template <class Elements>
void thin_groups_backward_data(const Elements& elements, const Conv2dShape& s, const Tensor& grad_output,
                               const Tensor& weight, const Tensor& grad_input);
template <class Elements>
void thin_groups_backward_weight(const Elements& elements, const Conv2dShape& s, const Tensor& grad_output,
                                 const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias);

// For bfloat16 calls for which multiplies_pairs() is true (plan.h).
void pairs_forward(const Forward& call);
void pairs_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                         const Tensor& grad_input);
// The gradients are float32.
void pairs_backward_weight(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                           const Tensor& grad_weight, const Tensor& grad_bias);

// The gradient for drivers that skip its zeros: one value and one byte of `argmax` for each pooling window and channel,
// both NHWC. The byte is the position of the maximum in its window, or `no_gradient` where no gradient passes.
template <class T>
struct SparseGradient {
  FusedShape shape;
  const T* values;
  const uint8_t* argmax;
};

// The tensors of backward_data and of backward_weight, with their plans. `weight` and `input` are dense.
struct DataPass {
  Tensor weight, grad_input;
  BackwardPlan plan{};
};
struct WeightPass {
  Tensor input, grad_weight, grad_bias;
  BackwardPlan plan{};
};

// Computes the gradients of one pass or of both. A pass that is not needed is null.
template <class T>
void sparse_backward(Gradient<T>& gradient, const DataPass* data, const WeightPass* weight);
template <class T>
void few_channels_backward_weight(const SparseGradient<T>& g, const Tensor& input, const Tensor& grad_weight,
                                  const Tensor& grad_bias);

}  // namespace fastconv::cpu
