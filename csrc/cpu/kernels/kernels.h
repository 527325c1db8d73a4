// The kernels of one ISA level, as the torch-facing functions see them. default.cpp, avx2.cpp and avx512.cpp each fill
// one such table from the same source; capability.cpp chooses. What the arguments mean stands beside the kernels.
#pragma once

#include "../../shapes.h"

namespace fastconv {

template <class T>
struct Conv2dKernels {
  int64_t block_lanes;  // channels in a block
  int64_t block_taps;   // taps that backward_weight sums at once
  int64_t (*packed_forward_size)(const Conv2dShape&);
  int64_t (*packed_backward_size)(const Conv2dShape&);
  void (*pack_weight_forward)(const Conv2dShape&, const T* weight, bool krsc, int64_t block, T* packed);
  void (*pack_weight_backward)(const Conv2dShape&, const T* weight, bool krsc, int64_t block, T* packed);
  void (*forward)(const Conv2dShape&, const T* x, const Strides&, const T* packed, const T* bias, T* y, int64_t images,
                  int64_t rows, int64_t block);
  void (*backward_data)(const Conv2dShape&, const T* g, int64_t g_row0, int64_t g_image, const T* packed, T* dx,
                        int64_t images, int64_t h0, int64_t rows, int64_t block);
  void (*backward_weight)(const Conv2dShape&, const T* x, const Strides&, const T* g, T* dw, T* db, int64_t images,
                          int64_t rows, int64_t first_tap, int64_t last_tap, int64_t block);
};

// For gradients that are mostly zeros (conv2d_sparse.h). `at` and `value`: scratch of list_size elements each.
template <class T>
struct SparseConv2dKernels {
  int64_t channels;  // output channels that backward_weight serves at once
  int64_t (*list_size)(const Conv2dShape&, int64_t pixels);
  int64_t (*count_nonzero)(const T* values, int64_t count);
  bool (*all_finite)(const T* values, int64_t count);
  void (*backward_weight)(const Conv2dShape&, const T* x, const Strides&, const T* g, T* dw, T* db, int64_t images,
                          int64_t rows, int64_t k0, int64_t* at, T* value);
  void (*backward_data)(const Conv2dShape&, const T* g, int64_t g_row0, int64_t g_rows, int64_t g_image,
                        const T* weight, T* dx, int64_t images, int64_t h0, int64_t rows, int64_t* at, T* value);
};

template <class T>
struct Conv2dFamily {
  Conv2dKernels<T> dense, depthwise;
  SparseConv2dKernels<T> sparse;
  void (*transpose)(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst, int64_t dst_stride);
};

template <class T>
struct MaxPool2dKernels {
  void (*nhwc)(const Pool2dShape&, const T* x, T* y, int64_t* indices, int64_t p0, int64_t p1);
  void (*nchw)(const Pool2dShape&, const T* x, T* y, int64_t* indices);
  // Floating types only, else null.
  void (*backward_nhwc)(const Pool2dShape&, const T* g, const int64_t* indices, T* dx, int64_t c0, int64_t c1);
  void (*backward_nchw)(const Pool2dShape&, const T* g, const int64_t* indices, T* dx);
};

template <class T>
struct ReluKernels {
  void (*forward)(const T* x, T* y, int64_t count);
  void (*backward)(const T* g, const T* y, T* dx, int64_t count);  // floating types only, else null
};

// What is served for which element type: convolution for the first two, pooling and ReLU for all.
template <class T>
struct ElementwiseKernels {
  MaxPool2dKernels<T> max_pool2d;
  ReluKernels<T> relu;
};

struct Kernels : Conv2dFamily<float>,
                 Conv2dFamily<double>,
                 ElementwiseKernels<float>,
                 ElementwiseKernels<double>,
                 ElementwiseKernels<int8_t>,
                 ElementwiseKernels<uint8_t>,
                 ElementwiseKernels<int16_t>,
                 ElementwiseKernels<int32_t>,
                 ElementwiseKernels<int64_t> {
  template <class T>
  const Conv2dFamily<T>& conv2d() const {
    return *this;
  }
  template <class T>
  const MaxPool2dKernels<T>& max_pool2d() const {
    return static_cast<const ElementwiseKernels<T>&>(*this).max_pool2d;
  }
  template <class T>
  const ReluKernels<T>& relu() const {
    return static_cast<const ElementwiseKernels<T>&>(*this).relu;
  }
};

extern const Kernels kernels_default;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace fastconv
