// The operands of the matrix products of gemm.cuh. They read the tensors directly: no matrix is built in memory.
//
//   pass              rows of A            depth                rows of B             A                  B
//   forward           pixels (n, p, q)     taps (r, s, c)       output channels k     ForwardPatches     ForwardWeight
//   backward_data     pixels (n, h, w)     taps (r, s, k)       input channels c      GradientPatches    BackwardWeight
//   backward_weight   output channels k    pixels (n, p, q)     taps (r, s, c)        GradientChannels   WeightPatches
//
// An operand's row() and column() decode the index of a row and of a step of depth. load() reads the element at a row
// and a column. Within a tap (r, s, c), c varies fastest, so that V neighbours of a channels_last tensor are read at
// once. load() returns zero for no_row() and no_column(), which fill the edges of tiles. If has_addresses, at() returns
// the element's address, or null where load() returns zero.
#pragma once

#include "../../shapes.h"
#include "conv2d_gradient.cuh"
#include "divisor.cuh"
#include "layout.cuh"
#include "window.cuh"

namespace fastconv::cuda {

// A coordinate outside of every image. Coordinates are below 2^30 (check_coordinates), so sums with it are negative.
constexpr int nowhere = -(1 << 30);

// The input x, addressed by an output pixel and a tap. The padding is zero.
template <class T>
struct Patches : Geometry {
  const T* x;
  Layout layout;
  int H, W, group_C, S;
  Divisor by_group_C, by_S;

  Patches(const Conv2dShape& s, Dense<const T> input)
      : Geometry(s),
        x(input.data),
        layout(Layout::of(s.C, s.H * s.W, input.channels_last)),
        H(s.H),
        W(s.W),
        group_C(s.group_C()),
        S(s.S),
        by_group_C(s.group_C()),
        by_S(s.S) {}

  struct Pixel {
    int64_t offset;
    int h, w;
    __device__ bool exists() const { return h != nowhere; }
  };
  using Tap = Pixel;

  __device__ static Pixel none() { return {0, nowhere, nowhere}; }

  __device__ Pixel pixel(int n, int p, int q) const {
    const int h = p * stride_h - pad_h, w = q * stride_w - pad_w;
    return {n * layout.outer + (static_cast<int64_t>(h) * W + w) * layout.pixel, h, w};
  }

  __device__ Tap tap(int tap) const {
    const int rs = by_group_C.divide(tap), c = by_group_C.remainder(tap, rs), r = by_S.divide(rs);
    return this->tap(r, by_S.remainder(rs, r), c);
  }

  __device__ Tap tap(int r, int s, int c) const {
    const int h = r * dilation_h, w = s * dilation_w;
    return {(static_cast<int64_t>(h) * W + w) * layout.pixel + c * layout.channel, h, w};
  }

  __device__ const T* at(const Pixel& pixel, const Tap& tap) const {
    const int h = pixel.h + tap.h, w = pixel.w + tap.w;
    const bool inside = h >= 0 && h < H && w >= 0 && w < W;
    return inside ? x + pixel.offset + tap.offset : nullptr;
  }

  template <int V>
  __device__ Vector<T, V> load(const Pixel& pixel, const Tap& tap) const {
    return load_or_zero<V>(at(pixel, tap));
  }

  __device__ void enter_group(int group) { x += group * group_C * layout.channel; }
};

// ---- forward: pixels x output channels, over taps ------------------------------------------------------------------

template <class T>
struct ForwardPatches {
  static constexpr bool vectors_along_depth = true, has_addresses = true;
  using Row = typename Patches<T>::Pixel;
  using Column = typename Patches<T>::Tap;

  Patches<T> x;
  Windows windows;

  __device__ static Row no_row() { return Patches<T>::none(); }
  __device__ static Column no_column() { return Patches<T>::none(); }

  __device__ Row row(int64_t i) const {
    const auto window = windows.by_positions.divide(i);
    if (window >= windows.count) return no_row();
    const int position = windows.by_positions.remainder(i, window);
    const Windows::Pixel at = windows.pixel(window, position);
    return at.p < 0 ? no_row() : x.pixel(at.n, at.p, at.q);
  }

  __device__ Column column(int64_t tap) const { return x.tap(static_cast<int>(tap)); }

  __device__ const T* at(const Row& row, const Column& column) const { return x.at(row, column); }

  template <int V>
  __device__ Vector<T, V> load(const Row& row, const Column& column) const {
    return x.template load<V>(row, column);
  }

  __device__ void enter_group(int group) { x.enter_group(group); }
};

// A weight. Rows and columns are offsets whose sum addresses an element. A negative offset means none.
template <class T>
struct WeightView {
  static constexpr bool has_addresses = true;
  using Row = int64_t;
  using Column = int64_t;

  const T* w;
  Layout layout;
  int group_C, group_K;
  Divisor by_channels;

  WeightView(const Conv2dShape& s, Dense<const T> weight, int64_t inner_channels)
      : w(weight.data),
        layout(Layout::of(s.group_C(), s.R * s.S, weight.channels_last)),
        group_C(s.group_C()),
        group_K(s.group_K()),
        by_channels(inner_channels) {}

  __device__ static Row no_row() { return -1; }
  __device__ static Column no_column() { return -1; }

  __device__ const T* at(Row row, Column column) const { return row >= 0 && column >= 0 ? w + row + column : nullptr; }

  template <int V>
  __device__ Vector<T, V> load(Row row, Column column) const {
    return load_or_zero<V>(at(row, column));
  }

  __device__ void enter_group(int group) { w += group * group_K * layout.outer; }
};

template <class T>
struct ForwardWeight : WeightView<T> {
  static constexpr bool vectors_along_depth = true;

  ForwardWeight(const Conv2dShape& s, Dense<const T> weight) : WeightView<T>(s, weight, s.group_C()) {}

  __device__ int64_t row(int64_t k) const { return k < this->group_K ? k * this->layout.outer : -1; }

  __device__ int64_t column(int64_t tap) const {
    const auto rs = this->by_channels.divide(tap);
    return column(rs, this->by_channels.remainder(tap, rs));
  }

  __device__ int64_t column(int64_t rs, int64_t c) const { return rs * this->layout.pixel + c * this->layout.channel; }
};

// ---- backward_data: input pixels x input channels, over taps and output channels -----------------------------------

// The gradient of the output, addressed by an input pixel and a tap. It is zero if no output pixel multiplies this tap
// by this input pixel, because of the stride or the edges.
template <class T, class Gradient>
struct GradientPatches : Geometry {
  static constexpr bool vectors_along_depth = true, has_addresses = Gradient::has_addresses;

  Gradient gradient;
  int64_t pixels;
  int P, Q, group_K, S, first_channel = 0;
  Divisor by_image, by_row, by_group_K, by_S, by_stride_h, by_stride_w;

  GradientPatches(const Conv2dShape& s, const Gradient& g)
      : Geometry(s),
        gradient(g),
        pixels(s.N * s.H * s.W),
        P(s.P),
        Q(s.Q),
        group_K(s.group_K()),
        S(s.S),
        by_image(s.H * s.W),
        by_row(s.W),
        by_group_K(s.group_K()),
        by_S(s.S),
        by_stride_h(s.stride_h),
        by_stride_w(s.stride_w) {}

  struct Row {
    int n, h, w;
  };
  struct Column {
    int k, h, w;
  };

  __device__ static Row no_row() { return {0, nowhere, nowhere}; }
  __device__ static Column no_column() { return {0, -nowhere, -nowhere}; }

  __device__ Row row(int64_t i) const {
    if (i >= pixels) return no_row();
    const auto n = by_image.divide(i), in_image = by_image.remainder(i, n), h = by_row.divide(in_image);
    return {static_cast<int>(n), static_cast<int>(h) + pad_h, static_cast<int>(by_row.remainder(in_image, h)) + pad_w};
  }

  __device__ Column column(int64_t i) const {
    const int tap = static_cast<int>(i), rs = by_group_K.divide(tap), r = by_S.divide(rs);
    return column(r, by_S.remainder(rs, r), by_group_K.remainder(tap, rs));
  }

  __device__ Column column(int r, int s, int k) const { return {first_channel + k, r * dilation_h, s * dilation_w}; }

  __device__ const T* at(const Row& row, const Column& column) const {
    const auto from = pixel(row, column);
    return from.exists() ? gradient.at(from, column.k) : nullptr;
  }

  template <int V>
  __device__ Vector<T, V> load(const Row& row, const Column& column) const {
    const auto from = pixel(row, column);
    return from.exists() ? gradient.template load<V>(from, column.k) : Vector<T, V>::zero();
  }

  __device__ void enter_group(int group) { first_channel = group * group_K; }

 private:
  __device__ typename Gradient::Pixel pixel(const Row& row, const Column& column) const {
    const int h = row.h - column.h, w = row.w - column.w;
    if (h < 0 || w < 0) return Gradient::none();
    const int p = by_stride_h.divide(h), q = by_stride_w.divide(w);
    const bool meets = p < P && q < Q && p * stride_h == h && q * stride_w == w;
    return meets ? gradient.pixel(row.n, p, q) : Gradient::none();
  }
};

template <class T>
struct BackwardWeight : WeightView<T> {
  static constexpr bool vectors_along_depth = false;

  BackwardWeight(const Conv2dShape& s, Dense<const T> weight) : WeightView<T>(s, weight, s.group_K()) {}

  __device__ int64_t row(int64_t c) const { return c < this->group_C ? c * this->layout.channel : -1; }

  __device__ int64_t column(int64_t i) const {
    const auto rs = this->by_channels.divide(i);
    return column(rs, this->by_channels.remainder(i, rs));
  }

  __device__ int64_t column(int64_t rs, int64_t k) const { return rs * this->layout.pixel + k * this->layout.outer; }
};

// ---- backward_weight: output channels x taps, over pixels ----------------------------------------------------------

struct OutputPixels {
  Divisor by_image, by_row;

  explicit OutputPixels(const Conv2dShape& s) : by_image(s.P * s.Q), by_row(s.Q) {}

  // Runs f(n, p, q).
  template <class F>
  __device__ auto at(int64_t i, const F& f) const {
    const auto n = by_image.divide(i), in_image = by_image.remainder(i, n), p = by_row.divide(in_image);
    return f(static_cast<int>(n), static_cast<int>(p), static_cast<int>(by_row.remainder(in_image, p)));
  }
};

template <class T, class Gradient>
struct GradientChannels {
  static constexpr bool vectors_along_depth = false, has_addresses = Gradient::has_addresses;
  using Row = int;
  using Column = typename Gradient::Pixel;

  Gradient gradient;
  OutputPixels pixels;
  int group_K, first_channel = 0;

  GradientChannels(const Conv2dShape& s, const Gradient& g) : gradient(g), pixels(s), group_K(s.group_K()) {}

  __device__ static Row no_row() { return -1; }
  __device__ static Column no_column() { return Gradient::none(); }

  __device__ Row row(int64_t k) const { return k < group_K ? first_channel + static_cast<int>(k) : -1; }

  __device__ Column column(int64_t i) const {
    return pixels.at(i, [&](int n, int p, int q) { return gradient.pixel(n, p, q); });
  }

  __device__ const T* at(Row k, const Column& pixel) const {
    return k >= 0 && pixel.exists() ? gradient.at(pixel, k) : nullptr;
  }

  template <int V>
  __device__ Vector<T, V> load(Row k, const Column& pixel) const {
    return k >= 0 && pixel.exists() ? gradient.template load<V>(pixel, k) : Vector<T, V>::zero();
  }

  __device__ void enter_group(int group) { first_channel = group * group_K; }
};

template <class T>
struct WeightPatches {
  static constexpr bool vectors_along_depth = false, has_addresses = true;
  using Row = typename Patches<T>::Tap;
  using Column = typename Patches<T>::Pixel;

  Patches<T> x;
  OutputPixels pixels;
  int taps;

  WeightPatches(const Conv2dShape& s, Dense<const T> input) : x(s, input), pixels(s), taps(s.taps()) {}

  __device__ static Row no_row() { return Patches<T>::none(); }
  __device__ static Column no_column() { return Patches<T>::none(); }

  __device__ Row row(int64_t tap) const { return tap < taps ? x.tap(static_cast<int>(tap)) : no_row(); }

  __device__ Column column(int64_t i) const {
    return pixels.at(i, [&](int n, int p, int q) { return x.pixel(n, p, q); });
  }

  __device__ const T* at(const Row& tap, const Column& pixel) const { return x.at(pixel, tap); }

  template <int V>
  __device__ Vector<T, V> load(const Row& tap, const Column& pixel) const {
    return x.template load<V>(pixel, tap);
  }

  __device__ void enter_group(int group) { x.enter_group(group); }
};

}  // namespace fastconv::cuda
