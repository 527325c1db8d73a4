// Runs a convolution or its gradients, for every element type. Asks plan.h for the algorithm and calls its driver.
// Large calls run band by band.
#pragma once

#include <optional>

#include "../checks.h"

namespace fastconv::cpu {

// Writes `output`, which is not empty: the convolution, followed by ReLU and max-pooling if there is an argmax.
void run_forward(const FusedShape& f, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Tensor& output, const std::optional<Tensor>& argmax);

// The tensors of a backward call. Without an argmax, grad_output is the gradient of the convolution itself. Gradients
// that are not needed are absent. grad_weight and grad_bias are needed together. Only grad_input needs weight, and only
// grad_weight needs input.
struct Backward {
  FusedShape shape;
  Tensor grad_output;
  std::optional<Tensor> argmax = std::nullopt;
  std::optional<Tensor> input = std::nullopt, weight = std::nullopt;
  std::optional<Tensor> grad_input = std::nullopt, grad_weight = std::nullopt, grad_bias = std::nullopt;
};

void run_backward(const Backward& call);

}  // namespace fastconv::cpu
