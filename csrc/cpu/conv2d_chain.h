// Several convolutions of a network in inference, one after the other, as one operator. Schema: ops.cpp.
#pragma once

#include "../checks.h"

namespace fastconv::cpu {

// Values are numbered: first the inputs, then the result of each step. A step is 10 numbers: the value that the
// convolution reads, the value that is added to its result (-1: none), stride, padding, dilation (two each), groups,
// and the activation. A step whose weight has one dimension computes x * weight + bias in place of a convolution: a
// batch norm that follows no convolution. `results` are the numbers of the values that are returned.
std::vector<Tensor> conv2d_chain(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                 const std::vector<Tensor>& biases, const Ints& steps,
                                 const std::vector<double>& slopes, const Ints& results);

}  // namespace fastconv::cpu
