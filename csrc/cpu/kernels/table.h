// Fills the table of one ISA level (kernels.h).
#pragma once

#include "conv2d.h"
#include "conv2d_forward.h"
#include "depthwise.h"
#include "dot.h"
#include "kernels.h"
#include "live.h"
#include "live_patch.h"
#include "max_pool2d.h"
#include "narrow.h"
#include "reduced.h"
#include "relu.h"
#include "window.h"
#include "winograd.h"

namespace fastconv::FC_LEVEL {

template <class T>
constexpr Conv2dFamily<T> conv2d_family() {
  return {.dense = {.block_lanes = block_lanes<T>,
                    .block_taps = block_rows,
                    .packed_forward_size = packed_forward_size<T>,
                    .packed_backward_size = packed_backward_size<T>,
                    .pack_weight_forward = pack_weight_forward<T>,
                    .pack_weight_backward = pack_weight_backward<T>,
                    .forward = conv2d_forward<T>,
                    .backward_data = conv2d_backward_data<T>,
                    .backward_weight = conv2d_backward_weight<T>},
          .depthwise = {.block_lanes = block_lanes<T>,
                        .block_taps = depthwise::taps_at_once,
                        .packed_forward_size = depthwise::packed_size<T>,
                        .packed_backward_size = depthwise::packed_size<T>,
                        .pack_weight_forward = depthwise::pack_weight<T>,
                        .pack_weight_backward = depthwise::pack_weight<T>,
                        .forward = depthwise::forward<T>,
                        .backward_data = depthwise::backward_data<T>,
                        .backward_weight = depthwise::backward_weight<T>},
          .fused = {.forward = conv2d_relu_max_pool2d_forward<T>,
                    .relu_max_pool2d = relu_max_pool2d<T>,
                    .unpool = unpool<T>},
          .winograd = {.largest = winograd::largest_wanted,
                       .unit_tiles = winograd::unit_tiles,
                       .packed_size = winograd::packed_size<T>,
                       .scratch_size = winograd::scratch_size<T>,
                       .pack_weight = winograd::pack_weight<T>,
                       .forward = winograd::forward<T>},
          .live = {.channels = lanes<T>,
                   .list_size = live_list_size<T>,
                   .all_finite = all_finite<T>,
                   .mark_zeros = mark_zeros<T>,
                   .count_live = count_live,
                   .backward_weight = live_backward_weight<T>,
                   .backward_data = live_backward_data<T>},
          .patch = {.serves = patch::serves,
                    .packed_size = patch::packed_size<T>,
                    .pack_weight = patch::pack_weight<T>,
                    .list_size = patch::list_size<T>,
                    .backward_data = patch::backward_data<T>},
          .narrow = {.serves = narrow::serves<T>,
                     .scratch_size = narrow::scratch_size<T>,
                     .backward_weight = narrow::backward_weight<T>},
          .dot_forward = dot_forward<T>,
          .transpose = transpose<T>};
}

template <class T>
constexpr ElementwiseKernels<T> elementwise_kernels() {
  ElementwiseKernels<T> kernels = {.max_pool2d = {.nhwc = max_pool2d_nhwc<T>, .nchw = max_pool2d_nchw<T>},
                                   .relu = {.forward = relu<T>}};
  if constexpr (static_cast<T>(0.5) != static_cast<T>(0)) {
    kernels.max_pool2d.backward = max_pool2d_backward<T>;
    kernels.relu.backward = relu_backward<T>;
  }
  return kernels;
}

template <class Format>
constexpr ReducedKernels reduced_kernels() {
  return {.widen = reduced::widen<Format>,
          .round = reduced::round<Format>,
          .relu = reduced::relu<Format>,
          .relu_backward = reduced::relu_backward<Format>};
}

constexpr ReducedFamily reduced_family() {
  return {.bfloat16 = reduced_kernels<reduced::Bfloat16>(), .half = reduced_kernels<reduced::Half>()};
}

// Each base of Kernels has a type of its own, so a wrong order does not compile.
constexpr Kernels all_kernels() {
  return {conv2d_family<float>(),         conv2d_family<double>(),
          elementwise_kernels<float>(),   elementwise_kernels<double>(),
          elementwise_kernels<int8_t>(),  elementwise_kernels<uint8_t>(),
          elementwise_kernels<int16_t>(), elementwise_kernels<int32_t>(),
          elementwise_kernels<int64_t>(), reduced_family()};
}

}  // namespace fastconv::FC_LEVEL
