// Runs a convolution (conv2d.cpp) or its gradients (conv2d_backward.cpp), for every element type. Asks plan.h for the
// algorithm and calls its driver. Large calls run band by band.
#pragma once

#include <optional>

#include "../checks.h"
#include "normalize.h"

namespace fastconv::cpu {

// The operands of a forward call. `argmax` is null for a convolution alone. Otherwise ReLU and max-pooling follow, and
// `argmax` gets one byte for each element of `output`, in NHWC (csrc/ops.cpp).
struct Forward {
  FusedShape shape;
  Tensor input, weight;
  std::optional<Tensor> bias;
  Tensor output;
  uint8_t* argmax = nullptr;
  const Epilogue* epilogue = nullptr;  // inference: applied to `output`. Not together with argmax.

  // Returns argmax from this row of windows on.
  uint8_t* argmax_from(int64_t image, int64_t row) const {
    return argmax ? argmax + (image * shape.pool.P + row) * shape.pool.Q * shape.conv.K : nullptr;
  }
};

// Returns whether input and result are NHWC, so that plan.h may choose pairs. The result has `channels` channels and
// `pixels` pixels.
inline bool in_nhwc(const Tensor& input, bool channels_last, int64_t channels, int64_t pixels) {
  return is_nhwc(input) && (channels_last || channels == 1 || pixels == 1);
}

// Writes call.output, which must not be empty.
void run_forward(const Forward& call);

// The tensors of a backward call. Without an argmax, grad_output is the gradient of the convolution itself. Gradients
// that are not needed are absent. grad_weight and grad_bias are needed together. Only grad_input needs weight, and only
// grad_weight needs input. `input_nhwc` and `weight_nhwc`: grad_input and grad_weight are channels_last.
struct Backward {
  FusedShape shape;
  Tensor grad_output;
  std::optional<Tensor> argmax = std::nullopt;
  std::optional<Tensor> input = std::nullopt, weight = std::nullopt;
  bool input_nhwc = false, weight_nhwc = false;
  std::optional<Tensor> grad_input = std::nullopt, grad_weight = std::nullopt, grad_bias = std::nullopt;

  // Allocates the gradients that are needed. The other returned tensors have no elements.
  Gradients allocate(bool needs_input, bool needs_weight);
};

// Writes the gradients that the call has.
void run_backward(const Backward& call);

}  // namespace fastconv::cpu
