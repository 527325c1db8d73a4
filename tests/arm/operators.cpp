// Compares every operator of the CPU with plain loops in double: each algorithm, dtype and memory layout. `make arm`
// compiles it for Arm and runs it in QEMU. torch.cpp stands in for libtorch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "cpu/capability.h"
#include "cpu/memory/reduced.h"
#include "cpu/ops.h"
#include "cpu/plan.h"
#include "loops.h"

using namespace fastconv;
using namespace arm;

namespace {

int comparisons = 0, failures = 0;

void report(bool good, const std::string& what) {
  ++comparisons;
  if (good) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// The largest difference, relative to the largest value, is at most the type's tolerance. NaN is never close.
void close(const Tensor& found, const Image& expected, const std::string& what) {
  double largest = 1e-30, difference = 0;
  bool numbers = true;
  expected.each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
    const double value = get(found, n, c, h, w), wanted = expected(n, c, h, w);
    numbers = numbers && std::isfinite(value);
    largest = std::max(largest, std::abs(wanted)), difference = std::max(difference, std::abs(value - wanted));
  });
  const std::map<ScalarType, double> tolerances = {
      {ScalarType::Float, 1e-4}, {ScalarType::Double, 1e-11}, {ScalarType::Half, 2e-3}, {ScalarType::BFloat16, 2e-2}};
  const double tolerance = tolerances.at(found.scalar_type());
  report(numbers && difference <= tolerance * largest, what + ": difference " + std::to_string(difference / largest));
}

struct Case {
  Ints input, weight, stride, padding, dilation;
  int64_t groups;
};

const std::vector<Case> cases = {
    {{2, 1, 28, 28}, {32, 1, 3, 3}, {1, 1}, {0, 0}, {1, 1}, 1},    // the first layer of MnistCNN
    {{3, 32, 13, 13}, {64, 32, 3, 3}, {1, 1}, {0, 0}, {1, 1}, 1},  // its second layer
    {{2, 3, 17, 15}, {21, 3, 5, 5}, {2, 2}, {2, 2}, {1, 1}, 1},    //
    {{1, 16, 4, 4}, {16, 16, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    // few output pixels
    {{2, 19, 9, 7}, {13, 19, 1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},    //
    {{2, 8, 12, 11}, {16, 4, 3, 2}, {1, 2}, {1, 0}, {2, 1}, 2},    // groups
    {{2, 18, 10, 9}, {18, 1, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 18},   // depthwise
    {{1, 6, 40, 40}, {10, 6, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    //
    {{1, 4, 9, 30}, {7, 4, 7, 3}, {3, 1}, {3, 1}, {1, 2}, 1},      //
    {{2, 70, 8, 8}, {35, 70, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    //
};

std::string describe(const Case& c, ScalarType type, bool channels_last) {
  std::string text = torch::headeronly::toString(type);
  for (const int64_t size : c.input) text += " " + std::to_string(size);
  text += " *";
  for (const int64_t size : c.weight) text += " " + std::to_string(size);
  return text + (channels_last ? " NHWC" : " NCHW");
}

// Calls run(name) with the plan's choice of the algorithm, and then with each algorithm wherever it can run.
template <class F>
void with_each_algorithm(const std::string& name, F run) {
  cpu::set_algorithms({}, -1, 0);
  run(name + ", as measured");
  for (const char* algorithm : {"winograd", "small_output", "sparse_gradient", "gemm", "few_channels",
                                "pool_in_registers", "weight_as_patches"}) {
    cpu::set_algorithms({{algorithm, "always"}}, -1, 0);
    run(name + ", " + algorithm);
  }
  cpu::set_algorithms(
      {{"winograd", "never"}, {"small_output", "never"}, {"sparse_gradient", "never"}, {"gemm", "never"}}, -1, 0);
  run(name + ", direct");
  cpu::set_algorithms({}, -1, 0);
}

struct Operands {
  Conv2dShape shape;
  Tensor x, w, b;
  Image y;  // the convolution

  Operands(const Case& c, ScalarType type, bool channels_last)
      : shape(check_conv2d_sizes(c.input, c.weight, c.stride, c.padding, c.dilation, c.groups)),
        x(random(c.input, type, channels_last)),
        w(random(c.weight, type, channels_last)),
        b(random({shape.K}, type, false)),
        y(convolution(shape, x, w, b)) {}
};

void check_gradients(const Case& c, const Operands& o, ScalarType type, bool channels_last, double nonzero) {
  const Conv2dShape& s = o.shape;
  const Tensor g = random({s.N, s.K, s.P, s.Q}, type, channels_last, nonzero);
  const Image gradient = image_of(g);
  const Image dx = input_gradient(s, gradient, o.w), dw = weight_gradient(s, gradient, o.x);
  const Image db = bias_gradient(gradient);
  with_each_algorithm(describe(c, type, channels_last), [&](const std::string& name) {
    close(cpu::conv2d_backward_data(g, o.w, c.input, c.stride, c.padding, c.dilation, c.groups, channels_last), dx,
          "conv2d_backward_data " + name);
    const auto [weight, bias] =
        cpu::conv2d_backward_weight(g, o.x, {s.R, s.S}, c.stride, c.padding, c.dilation, c.groups, channels_last);
    close(weight, dw, "conv2d_backward_weight " + name);
    close(bias, db, "conv2d_backward_weight, bias " + name);
  });
}

void check_fused(const Case& c, const Operands& o, ScalarType type, bool channels_last, const Ints& pool) {
  const Conv2dShape& s = o.shape;
  if (s.P < pool[0] || s.Q < pool[1]) return;
  const Ints none{0, 0}, one{1, 1};
  const auto forward = [&] {
    return cpu::conv2d_relu_max_pool2d(o.x, o.w, o.b, c.stride, c.padding, c.dilation, c.groups, pool, pool, none, one,
                                       false);
  };
  const Pool2dShape p = check_max_pool2d_sizes({s.N, s.K, s.P, s.Q}, pool, pool, none, one, false);
  const Image expected = rectified_maxima(p, o.y);
  const Tensor g = random({s.N, s.K, p.P, p.Q}, type, channels_last), argmax = std::get<1>(forward());
  const Image spread = unpooled(p, g, argmax);
  const Image dx = input_gradient(s, spread, o.w), dw = weight_gradient(s, spread, o.x), db = bias_gradient(spread);
  const std::string size = " pool " + std::to_string(pool[0]);
  with_each_algorithm(describe(c, type, channels_last) + size, [&](const std::string& name) {
    const auto [y, positions] = forward();
    close(y, expected, "fused " + name);
    close(y, picked(p, o.y, positions), "argmax " + name);
    const auto [input, weight, bias] = cpu::conv2d_relu_max_pool2d_backward(
        g, argmax, o.x, o.w, true, true, c.stride, c.padding, c.dilation, c.groups, pool, pool, none, one);
    close(input, dx, "fused input gradient " + name);
    close(weight, dw, "fused weight gradient " + name);
    close(bias, db, "fused bias gradient " + name);
  });
}

void check_convolutions() {
  for (const Case& c : cases) {
    for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
      for (const bool channels_last : {false, true}) {
        const Operands o(c, type, channels_last);
        with_each_algorithm(describe(c, type, channels_last), [&](const std::string& name) {
          close(cpu::conv2d(o.x, o.w, o.b, c.stride, c.padding, c.dilation, c.groups), o.y, "conv2d " + name);
        });
        for (const double nonzero : {1.0, 0.2}) check_gradients(c, o, type, channels_last, nonzero);
        for (const Ints& pool : {Ints{2, 2}, Ints{1, 1}}) check_fused(c, o, type, channels_last, pool);
      }
    }
  }
}

// 16-bit types are computed in float32 and rounded once.
void check_reduced() {
  for (const ScalarType type : {ScalarType::Half, ScalarType::BFloat16}) {
    for (const Case& c : {cases[0], cases[1], cases[5]}) {
      const Operands o(c, type, true);
      close(cpu::conv2d(o.x, o.w, o.b, c.stride, c.padding, c.dilation, c.groups), o.y,
            "conv2d " + describe(c, type, true));
    }
  }
}

template <class T>
void check_pool_and_relu(ScalarType type) {
  const std::string name = torch::headeronly::toString(type);
  for (const bool channels_last : {false, true}) {
    for (const Ints& size : {Ints{2, 3, 13, 11}, Ints{1, 37, 8, 9}}) {
      const Tensor x = integers(size, type, channels_last);  // with ties
      const Pool2dShape p = check_max_pool2d_sizes(size, {3, 2}, {2, 2}, {1, 1}, {1, 1}, false);
      const auto [y, indices] = cpu::max_pool2d(x, {3, 2}, {2, 2}, {1, 1}, {1, 1}, false);
      const auto [maxima, positions] = pooled(p, image_of(x));
      bool equal = true, relu_equal = true;
      maxima.each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
        equal = equal && get(y, n, c, h, w) == maxima(n, c, h, w) && get(indices, n, c, h, w) == positions(n, c, h, w);
      });
      report(equal, "max_pool2d " + name + (channels_last ? " NHWC" : " NCHW"));
      const Tensor rectified = cpu::relu(x);
      image_of(x).each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
        relu_equal = relu_equal && get(rectified, n, c, h, w) == std::max(0.0, get(x, n, c, h, w));
      });
      report(relu_equal, "relu " + name);
      if constexpr (std::is_floating_point_v<T>) {
        const Tensor g = random({p.N, p.C, p.P, p.Q}, type, channels_last);
        const Tensor dx = cpu::max_pool2d_backward(g, indices, size, {3, 2}, {2, 2}, {1, 1}, {1, 1}, channels_last);
        close(dx, scattered(p, g, positions), "max_pool2d_backward " + name);
        const Tensor dy = random(size, type, channels_last);
        close(cpu::relu_backward(dy, rectified), passed(dy, rectified), "relu_backward " + name);
      }
    }
  }
}

void check_normalized_pool(ScalarType type, bool channels_last) {
  const Ints size{2, 21, 13, 37}, kernel{3, 2}, stride{2, 2}, padding{0, 0}, dilation{1, 1};
  const Tensor x = random(size, type, channels_last), w = random({21}, type, false), b = random({21}, type, false);
  const Tensor mean = random({21}, type, false), var = filled({21}, type, false, [] { return 4.0; });
  Image normalized = image_of(x);
  normalized.each([&](int64_t n, int64_t c, int64_t h, int64_t q) {
    normalized(n, c, h, q) = (get(x, n, c, h, q) - get(mean, 0, c, 0, 0)) / 2 * get(w, 0, c, 0, 0) + get(b, 0, c, 0, 0);
  });
  const Pool2dShape p = check_max_pool2d_sizes(size, kernel, stride, padding, dilation, false);
  const std::string name = torch::headeronly::toString(type) + std::string(channels_last ? " NHWC" : " NCHW");
  const auto [y, argmax] =
      cpu::batch_norm_relu_max_pool2d(x, w, b, mean, var, false, 0, kernel, stride, padding, dilation, false);
  close(y, rectified_maxima(p, normalized), "batch_norm_relu_max_pool2d " + name);
  close(y, picked(p, normalized, argmax), "argmax " + name);
  const Tensor g = random({p.N, p.C, p.P, p.Q}, type, channels_last);
  Image spread = unpooled(p, g, argmax);
  const Image db = bias_gradient(spread);
  spread.each([&](int64_t n, int64_t c, int64_t h, int64_t q) { spread(n, c, h, q) *= get(w, 0, c, 0, 0) / 2; });
  const auto [dx, grad_weight, grad_bias] = cpu::batch_norm_relu_max_pool2d_backward(
      g, argmax, x, w, mean, var, false, 0, true, kernel, stride, padding, dilation);
  close(dx, spread, "batch_norm_relu_max_pool2d_backward " + name);
  close(grad_bias, db, "batch_norm_relu_max_pool2d_backward, bias " + name);
}

// Widens every half to float32, compares the result with loops.h, and rounds it back to the same half.
void check_conversions() {
  const ReducedKernels& half = kernels().half;
  std::vector<uint16_t> all(1 << 16), back(1 << 16);
  std::vector<float> wide(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  half.widen(all.data(), wide.data(), 1 << 16);
  half.round(wide.data(), back.data(), 1 << 16);
  bool exact = true;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool nan = (i & 0x7fff) > 0x7c00;
    exact = exact && (nan ? std::isnan(wide[i]) : wide[i] == half_value(all[i]));
    exact = exact && (nan ? (back[i] & 0x7fff) > 0x7c00 : back[i] == all[i]);
  }
  report(exact, "half to float32 and back");
}

}  // namespace

int main() {
  setenv("FASTCONV_ALGORITHM", "own", 1);  // torch.cpp has no convolution
  check_convolutions();
  check_reduced();
  check_pool_and_relu<float>(ScalarType::Float);
  check_pool_and_relu<double>(ScalarType::Double);
  check_pool_and_relu<int8_t>(ScalarType::Char);
  check_pool_and_relu<uint8_t>(ScalarType::Byte);
  check_pool_and_relu<int16_t>(ScalarType::Short);
  check_pool_and_relu<int32_t>(ScalarType::Int);
  check_pool_and_relu<int64_t>(ScalarType::Long);
  for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
    for (const bool channels_last : {false, true}) check_normalized_pool(type, channels_last);
  }
  check_conversions();
  std::printf("%d comparisons with plain loops, %d failures\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}
