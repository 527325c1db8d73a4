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
  return {{block_lanes<T>, block_rows, packed_forward_size<T>, packed_backward_size<T>, pack_weight_forward<T>,
           pack_weight_backward<T>, conv2d_forward<T>, conv2d_backward_data<T>, conv2d_backward_weight<T>},
          {block_lanes<T>, depthwise::taps_at_once, depthwise::packed_size<T>, depthwise::packed_size<T>,
           depthwise::pack_weight<T>, depthwise::pack_weight<T>, depthwise::forward<T>, depthwise::backward_data<T>,
           depthwise::backward_weight<T>},
          {conv2d_relu_max_pool2d_forward<T>, relu_max_pool2d<T>, unpool<T>},
          {winograd::largest_wanted, winograd::unit_tiles, winograd::packed_size<T>, winograd::scratch_size<T>,
           winograd::pack_weight<T>, winograd::forward<T>},
          {lanes<T>, live_list_size<T>, all_finite<T>, mark_zeros<T>, count_live, live_backward_weight<T>,
           live_backward_data<T>},
          {patch::serves, patch::packed_size<T>, patch::pack_weight<T>, patch::list_size<T>, patch::backward_data<T>},
          {narrow::serves<T>, narrow::scratch_size<T>, narrow::backward_weight<T>},
          dot_forward<T>,
          transpose<T>};
}

template <class T>
constexpr ElementwiseKernels<T> elementwise_kernels() {
  if constexpr (static_cast<T>(0.5) == static_cast<T>(0)) {
    return {{max_pool2d_nhwc<T>, max_pool2d_nchw<T>, nullptr}, {relu<T>, nullptr}};
  } else {
    return {{max_pool2d_nhwc<T>, max_pool2d_nchw<T>, max_pool2d_backward<T>}, {relu<T>, relu_backward<T>}};
  }
}

template <class Format>
constexpr ReducedKernels reduced_kernels() {
  return {reduced::widen<Format>, reduced::round<Format>, reduced::relu<Format>, reduced::relu_backward<Format>};
}

constexpr Kernels all_kernels() {
  return {conv2d_family<float>(),          conv2d_family<double>(),
          elementwise_kernels<float>(),    elementwise_kernels<double>(),
          elementwise_kernels<int8_t>(),   elementwise_kernels<uint8_t>(),
          elementwise_kernels<int16_t>(),  elementwise_kernels<int32_t>(),
          elementwise_kernels<int64_t>(),  reduced_kernels<reduced::Bfloat16>(),
          reduced_kernels<reduced::Half>()};
}

}  // namespace fastconv::FC_LEVEL
