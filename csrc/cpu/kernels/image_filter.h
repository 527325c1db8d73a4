// Convolutions to few channels, such as filters of images, with a stride of 1:
//
//   y[p, q]     = b + sum over c, r, s of x[c, p + r * d, q + s * d] * w[c, r, s]      for each output channel
//   dw[c, r, s] = sum over p, q of g[p, q] * x[c, p + r * d, q + s * d]
//
// Lanes are neighbouring pixels of a row. In the other kernels, lanes are channels: a filter of the 3 channels of an
// image would use 3 of 16 lanes.
//
// Layout: the driver copies each channel to a plane, whose rows include the padding and end with zeros (Plane). So
// loads past the last pixel are valid, and results there are not used.
//
// Blocking: forward holds a column of up to 8 vectors of outputs in registers. backward_weight holds the sums of up to
// 8 neighbouring taps.
#pragma once

#include "blocks.h"

namespace fastconv::FC_LEVEL::image_filter {

// Computes `rows` rows of one vector of outputs.
template <class T, int rows>
FC_INLINE void filter_column(const Conv2dShape& s, const Planes<T>& x, const T* weight, T bias, const Plane<T>& y) {
  Vec<T> acc[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) acc[i] = bias - Vec<T>{};
  const T* plane = x.data;
  for (int64_t c = 0; c < s.group_C(); ++c, plane += x.plane) {
    for (int64_t r = 0; r < s.R; ++r) {
      const T* from = plane + r * s.dilation_h * x.row;
      for (int64_t tap = 0; tap < s.S; ++tap, from += s.dilation_w) {
        const Vec<T> w = *weight++ - Vec<T>{};
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) acc[i] += load(from + i * x.row) * w;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) store(y.data + i * y.row, acc[i]);
}

// Computes some rows of one output channel. x has the channels of its group.
template <class T>
void forward(const Conv2dShape& s, const Planes<T>& x, const T* weight, T bias, const Plane<T>& y,
             const PlaneSize& size) {
  FASTCONV_ASSERT(readable(x.data) && readable(weight) && readable(y.data) && size.rows > 0 && size.columns > 0);
  for (int64_t q = 0; q < size.columns; q += lanes<T>) {
    const auto filter = [&](auto rows, int64_t p) {
      filter_column<T, decltype(rows)::value>(s, {x.data + p * x.row + q, x.row, x.plane}, weight, bias,
                                              {y.data + p * y.row + q, y.row});
      return p + decltype(rows)::value;
    };
    int64_t p = 0;
    while (p + 8 <= size.rows) p = filter(Constant<8>{}, p);
    while (p + 2 <= size.rows) p = filter(Constant<2>{}, p);
    if (p < size.rows) filter(Constant<1>{}, p);
  }
}

// Adds the gradients of `taps` neighbouring taps of one kernel row, which begins at x.
template <class T, int taps>
FC_INLINE void add_taps(int64_t step, const Plane<const T>& x, const Plane<const T>& g, const PlaneSize& size, T* dw) {
  const int64_t whole = size.columns / lanes<T> * lanes<T>, left = size.columns - whole;
  Vec<T> acc[taps] = {};
  for (int64_t p = 0; p < size.rows; ++p) {
    const T *from = x.data + p * x.row, *gradient = g.data + p * g.row;
    for (int64_t q = 0; q < whole; q += lanes<T>) {
      const Vec<T> value = load(gradient + q);
#pragma GCC unroll 8
      for (int i = 0; i < taps; ++i) acc[i] += load(from + q + i * step) * value;
    }
    if (left > 0) {  // Products of other lanes might be NaN.
      const Vec<T> value = load_partial(gradient + whole, left);
#pragma GCC unroll 8
      for (int i = 0; i < taps; ++i) acc[i] += load_partial(from + whole + i * step, left) * value;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < taps; ++i) {
    double sum = 0;
    for (int64_t lane = 0; lane < lanes<T>; ++lane) sum += static_cast<double>(acc[i][lane]);
    dw[i] += static_cast<T>(sum);
  }
}

// Adds the gradients of all taps that a part of the planes x and g gives.
template <class T>
void backward_weight(const Conv2dShape& s, const Plane<const T>& x, const Plane<const T>& g, const PlaneSize& size,
                     T* dw) {
  FASTCONV_ASSERT(readable(x.data) && readable(g.data) && readable(dw) && size.rows > 0 && size.columns > 0);
  for (int64_t r = 0; r < s.R; ++r, dw += s.S) {
    const auto add = [&](auto taps, int64_t tap) {
      const T* from = x.data + r * s.dilation_h * x.row + tap * s.dilation_w;
      add_taps<T, decltype(taps)::value>(s.dilation_w, {from, x.row}, g, size, dw + tap);
      return tap + decltype(taps)::value;
    };
    int64_t tap = 0;
    while (tap + 8 <= s.S) tap = add(Constant<8>{}, tap);
    while (tap + 3 <= s.S) tap = add(Constant<3>{}, tap);
    while (tap < s.S) tap = add(Constant<1>{}, tap);
  }
}

// Returns the sum of a plane.
template <class T>
double sum(const Plane<const T>& g, const PlaneSize& size) {
  double total = 0;
  for (int64_t p = 0; p < size.rows; ++p) {
    Vec<T> acc = {};
    for (int64_t q = 0; q < size.columns; q += lanes<T>) {
      acc += load_partial(g.data + p * g.row + q, (size.columns - q < lanes<T> ? size.columns - q : lanes<T>));
    }
    for (int64_t lane = 0; lane < lanes<T>; ++lane) total += static_cast<double>(acc[lane]);
  }
  return total;
}

}  // namespace fastconv::FC_LEVEL::image_filter
