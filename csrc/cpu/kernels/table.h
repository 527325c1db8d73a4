// Fills the table of one ISA level (kernels.h). Each struct is filled by name.
#pragma once

#include "batch_norm.h"
#include "channel_blocks.h"
#include "direct_backward.h"
#include "direct_forward.h"
#include "direct_pack.h"
#include "few_channels.h"
#include "gemm_weight.h"
#include "image_filter.h"
#include "kernels.h"
#include "max_pool2d.h"
#include "pooling_epilogue.h"
#include "reduced.h"
#include "relu.h"
#include "small_output.h"
#include "sparse_gradient.h"
#include "sparse_gradient_3x3.h"
#include "thin_groups.h"
#include "winograd.h"
#include "winograd_weight.h"

namespace fastconv::FC_LEVEL {

template <class Elements>
constexpr ChannelBlockKernels<typename Elements::Stored, typename Elements::Computed> channel_block_kernels() {
  return {.gather = thin_groups::gather<Elements>, .scatter = thin_groups::scatter<Elements>};
}

template <class T>
constexpr Conv2dFamily<T> conv2d_family() {
  return {.direct = {.block_lanes = block_lanes<T>,
                     .block_taps = block_rows,
                     .packed_forward_size = direct::packed_forward_size<T>,
                     .pack_weight_forward = direct::pack_weight_forward<T>,
                     .pack_weight_backward = direct::pack_weight_backward<T>,
                     .forward = direct::forward<T>,
                     .backward_data = direct::backward_data<T>,
                     .backward_weight = direct::backward_weight<T>},
          .thin_groups = {.block = thin_groups::block<T>,
                          .supports = thin_groups::supports<T>,
                          .copies = channel_block_kernels<thin_groups::Plain<T>>(),
                          .forward = thin_groups::forward<T>,
                          .backward_weight = thin_groups::backward_weight<T>},
          .fused = {.forward = direct::relu_max_pool2d_forward<T>,
                    .relu_max_pool2d = relu_max_pool2d<T>,
                    .unpool = unpool<T>,
                    .unpool_nchw = unpool_nchw<T>},
          .winograd = {.largest_tile = winograd::largest_tile,
                       .unit_tiles = winograd::unit_tiles,
                       .packed_size = winograd::packed_size<T>,
                       .workspace_size = winograd::workspace_size<T>,
                       .pack_weight = winograd::pack_weight<T>,
                       .forward = winograd::forward<T>,
                       .set_sum_steps = winograd::set_sum_steps<T>,
                       .transform_tiles = winograd::transform_tiles<T>,
                       .multiply_tiles = winograd::multiply_tiles<T>,
                       .finish_weight = winograd::finish_weight<T>},
          .sparse_gradient = {.channels = lanes<T>,
                              .list_size = sparse_gradient::list_size<T>,
                              .all_finite = sparse_gradient::all_finite<T>,
                              .mark_zeros = sparse_gradient::mark_zeros<T>,
                              .count_nonzero = sparse_gradient::count_nonzero,
                              .backward_weight = sparse_gradient::backward_weight<T>,
                              .backward_data = sparse_gradient::backward_data<T>},
          .sparse_gradient_3x3 = {.supports = sparse_gradient_3x3::supports,
                                  .packed_size = sparse_gradient_3x3::packed_size<T>,
                                  .pack_weight = sparse_gradient_3x3::pack_weight<T>,
                                  .list_size = sparse_gradient_3x3::list_size<T>,
                                  .backward_data = sparse_gradient_3x3::backward_data<T>},
          .few_channels = {.supports = few_channels::supports<T>,
                           .workspace_size = few_channels::workspace_size<T>,
                           .backward_weight = few_channels::backward_weight<T>},
          .gemm_weight = {.block_rows = block_rows,
                          .block_lanes = block_lanes<T>,
                          .workspace_size = gemm_weight::workspace_size<gemm_weight::OnePixel<T>>,
                          .backward_weight = gemm_weight::backward_weight<gemm_weight::OnePixel<T>>},
          .small_output = {.forward = small_output::forward<T>},
          .image_filter = {.lanes = lanes<T>,
                           .forward = image_filter::forward<T>,
                           .backward_weight = image_filter::backward_weight<T>,
                           .sum = image_filter::sum<T>},
          .batch_norm = {.moment_pixels = batch_norm::moment_pixels,
                         .normalize = batch_norm::normalize<T>,
                         .add_moments = batch_norm::add_moments<T>,
                         .add_gradient_sums = batch_norm::add_gradient_sums<T>,
                         .gradient = batch_norm::gradient<T>},
          .transpose = transpose<T>};
}

template <class T>
constexpr ElementwiseKernels<T> elementwise_kernels() {
  ElementwiseKernels<T> kernels = {.max_pool2d = {.nhwc = max_pool2d_nhwc<T>, .nchw = max_pool2d_nchw<T>},
                                   .relu = {.forward = relu<T>}};
  if constexpr (static_cast<T>(0.5) != static_cast<T>(0)) {
    kernels.max_pool2d.backward = max_pool2d_backward<T>;
    kernels.max_pool2d.argmax_nhwc = max_pool2d_nhwc<T>;
    kernels.max_pool2d.argmax_nchw = max_pool2d_nchw<T>;
    kernels.relu.backward = relu_backward<T>;
  }
  return kernels;
}

template <class Format>
constexpr ReducedKernels reduced_kernels() {
  return {.widen = reduced::widen<Format>,
          .round = reduced::round<Format>,
          .relu = reduced::relu<Format>,
          .relu_backward = reduced::relu_backward<Format>,
          .copies = channel_block_kernels<thin_groups::Reduced<Format>>()};
}

constexpr ReducedFamily reduced_family() {
  return {.bfloat16 = reduced_kernels<reduced::Bfloat16>(), .half = reduced_kernels<reduced::Half>()};
}

// Each base of Kernels has its own type, so a wrong order does not compile.
constexpr Kernels all_kernels() {
  return {conv2d_family<float>(),         conv2d_family<double>(),
          elementwise_kernels<float>(),   elementwise_kernels<double>(),
          elementwise_kernels<int8_t>(),  elementwise_kernels<uint8_t>(),
          elementwise_kernels<int16_t>(), elementwise_kernels<int32_t>(),
          elementwise_kernels<int64_t>(), reduced_family()};
}

}  // namespace fastconv::FC_LEVEL
