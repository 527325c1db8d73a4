// The shape of one call, with the field's letters, for every device. Kernels include this file, so it uses neither
// torch nor the STL.
#pragma once

#include <cstdint>

namespace fastconv {

// y[n, k, p, q] = b[k] + sum over r, s, c of
//   x[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w] * w[k, c, r, s]
// where c runs over the C / groups channels of k's group.
struct Conv2dShape {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  int64_t group_C() const { return C / groups; }
  int64_t group_K() const { return K / groups; }
  // The number of products in one output value.
  int64_t taps() const { return R * S * group_C(); }
};

// y[n, c, p, q] = max over r < R, s < S of
//   x[n, c, p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w]
// over the taps inside the image.
struct Pool2dShape {
  int64_t N, C, H, W;
  int64_t R, S;
  int64_t P, Q;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

// Convolution, ReLU and max-pooling. The pool's C, H, W are the convolution's K, P, Q. No pooling is represented as 1x1
// pooling.
struct FusedShape {
  Conv2dShape conv;
  Pool2dShape pool;

  int64_t window() const { return pool.R * pool.S; }
  int64_t windows() const { return pool.N * pool.P * pool.Q; }
  // All windows are inside the image.
  bool windows_inside() const {
    return pool.pad_h == 0 && pool.pad_w == 0 &&
           (pool.P - 1) * pool.stride_h + (pool.R - 1) * pool.dilation_h < pool.H &&
           (pool.Q - 1) * pool.stride_w + (pool.S - 1) * pool.dilation_w < pool.W;
  }
  // Two windows may share a row, or the rows of one window may be between the rows of the other (dilation).
  bool windows_overlap_in_rows() const { return (pool.R - 1) * pool.dilation_h >= pool.stride_h; }
  // The windows tile the image: each pixel is in at most one window, and a window has no gaps.
  bool windows_touch() const {
    return windows_inside() && pool.stride_h == pool.R && pool.stride_w == pool.S && pool.dilation_h == 1 &&
           pool.dilation_w == 1;
  }
};

// A convolution without pooling, as windows of one pixel.
inline FusedShape without_pool(const Conv2dShape& s) {
  FusedShape f{s, {}};
  f.pool.N = s.N, f.pool.C = s.K, f.pool.H = f.pool.P = s.P, f.pool.W = f.pool.Q = s.Q;
  f.pool.R = f.pool.S = 1;
  f.pool.stride_h = f.pool.stride_w = f.pool.dilation_h = f.pool.dilation_w = 1;
  return f;
}

// The argmax of the fused operators has one byte for each pooling window and channel. The byte is the position
// r * S + s of the pixel that receives the window's gradient, or no_gradient if no pixel does. A convolution without
// pooling has windows of one pixel, and its bytes are 0 or no_gradient.
constexpr uint8_t no_gradient = 255;

// Element strides of an NHWC tensor, or of a part of one. The channels are adjacent.
struct Strides {
  int64_t image, row, pixel;
};

}  // namespace fastconv
