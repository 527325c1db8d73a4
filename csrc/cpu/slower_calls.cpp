#include "slower_calls.h"

#include <algorithm>
#include <limits>

#include "memory/tiles.h"

// Figures are PyTorch's time / fastconv's, each in its faster memory format, for batches of 1 and 8. A single figure is
// for a batch of 1. Machine: 2 cores of Zen 4, AVX-512. Command:
// FASTCONV_ALGORITHM=own python benchmarks/bench_layers.py --pass forward backward_data ...
namespace fastconv::cpu {
namespace {

// Smaller calls stay with fastconv, because calling PyTorch's operator takes 10 us.
constexpr double least_products = 4e6;

// ---- float32 -----------------------------------------------------------------------------------------------------

// forward, first layers: a result sums few products, and the results do not fit in the cache, so most of the time is
// spent on writing them.
//   VGG-16 3->64 3x3, 224x224   0.84              U-Net 1->64 3x3, 128x128           3.37  0.79
//   ConvNeXt-T 3->96 4x4 /4     0.95  0.80        MobileNet 3->32 3x3 /2, 224x224    1.01  0.88
//   For comparison: MnistCNN 1->32 3x3, 28x28, batch 64, 1.4 million results: 1.81
bool only_writes(const Conv2dShape& s) {
  constexpr int64_t most_channels = 4, most_taps = 48, least_results = 2'000'000;
  return s.groups == 1 && s.C <= most_channels && s.taps() <= most_taps && s.N * s.K * s.P * s.Q >= least_results;
}

bool is_depthwise(const Conv2dShape& s) { return s.groups == s.C && s.groups == s.K && s.groups > 1; }

// forward, depthwise with a stride on large images, channels_last. Most of the time goes into reading the image, one
// line of channels at a time. Batch of 8, Zen 5, three processes. In NCHW: 1.7 to 2.5.
//   64 3x3 /2, 112x112      0.75  0.79  0.87        96 3x3 /2, 112x112      0.75  0.82  0.95
bool has_stride_on_large_images(const Conv2dShape& s) {
  constexpr int64_t least_values = 5'000'000;
  return is_depthwise(s) && s.stride_h > 1 && s.N * s.C * s.H * s.W >= least_values;
}

// backward_weight, depthwise 3x3 with a stride, several images, channels_last. The copy of the image takes as long as
// the products. Batch of 8, Zen 5:
//   64 3x3 /2, 112x112      0.72        144 3x3 /2, 56x56       0.75        128 3x3 /2, 56x56       0.93
//   96 3x3 /2, 112x112      1.02
//   For comparison: 240 5x5 /2, 28x28: 9.2. 64 3x3 /2, 112x112, one image: 1.22
bool has_stride_on_many_values(const Conv2dShape& s) {
  constexpr int64_t least_values = 1'500'000;
  return is_depthwise(s) && s.stride_h > 1 && s.R * s.S < 25 && s.N * s.C * s.H * s.W >= least_values;
}

// backward_weight, first layers of few outputs and many taps, several images. Batch of 8, Zen 5:
//   3->16 6x6 /2, 320x320   0.86        3->8 6x6 /2, 320x320     0.81        3->16 5x5, 224x224       0.86
//   For comparison: 3->16 3x3 /2, 224x224: 1.02. 3->32 6x6 /2, 320x320: 1.96. One image of the first: 1.73
bool is_first_layer_of_few_outputs(const Conv2dShape& s) {
  constexpr double least_products = 2e8;
  return s.groups == 1 && s.C <= 4 && s.K <= 16 && s.R * s.S >= 25 && s.N > 1 && products(s) >= least_products;
}

// Depthwise in channels_last. If pixels are a multiple of 1 KB apart, the lines of a block of channels fall into few
// sets of the caches. Batch of 8, Zen 5:
//                          forward    backward_data
//   256 3x3, 28x28           0.84         0.72
//   512 3x3, 14x14           0.80         0.72
//   1024 3x3, 14x14          0.58         0.52
//   For comparison: 480 3x3, 14x14: 1.39  1.12. 1024 3x3, 7x7: 1.05  1.04. 512 5x5, 14x14: 1.51  2.16
bool has_pixels_in_few_sets(const Conv2dShape& s) {
  return is_depthwise(s) && s.C % 256 == 0 && s.R * s.S < 25 && s.stride_h == 1 && s.H * s.W >= 196;
}

// 1x1 with 100 million products or more. In smaller calls, calling PyTorch costs more than its kernels save. Batch of
// 8, Zen 5, cold caches, PyTorch's time / fastconv's, with fastconv's kernels / with PyTorch's:
//   384->64 1x1, 8x8, forward          1.46 / 0.51        96->576 1x1, 8x8, backward_data      1.50 / 0.81
//   576->96 1x1, 8x8, forward          1.30 / 0.77        160->960 1x1, 4x4, backward_data     1.40 / 0.89
//   960->160 1x1, 4x4, forward         1.60 / 0.88        320->1280 1x1, 4x4, backward_data    1.40 / 0.95
bool is_large_1x1(const Conv2dShape& s) {
  constexpr double least_products = 1e8;
  return s.groups == 1 && s.R * s.S == 1 && s.stride_h == 1 && products(s) >= least_products;
}

// forward, several images:
//   256->64 1x1, 56x56     0.94  0.92        1024->256 1x1, 14x14    1.14  0.89
//   2048->512 1x1, 7x7     1.09  0.88        1024->1024, 7x7         1.05  0.90
bool is_slow_1x1_forward(const Conv2dShape& s) {
  return is_large_1x1(s) && s.N > 1 && (s.C >= 1024 || (s.C >= 256 && s.C >= 4 * s.K));
}

//                           forward                   backward_data
//   160->160 1x7, 17x17     0.81  0.88                0.90  0.94
//   192->192 7x1, 17x17     0.93                      1.00
// backward_weight, 160->160 1x7, 17x17, batch of 8, Zen 5, three processes: 0.89  0.90  0.92
bool has_one_row(const Conv2dShape& s) { return s.groups == 1 && (s.R == 1) != (s.S == 1) && s.C >= 16; }

// forward, 200 million products or more:
//   128->256 3x3 /2, 28x28  0.98  0.93        256->512    1.03  0.87        288->384    0.95
bool has_stride(const Conv2dShape& s) {
  constexpr double least_products = 2e8;
  return s.groups == 1 && s.stride_h > 1 && s.R > 1 && s.C >= 128 && products(s) >= least_products;
}

// forward:
//   64->64 3x3, 56x56, dilation 2    0.90        512->512, 28x28    0.93
bool has_dilation(const Conv2dShape& s) { return s.groups == 1 && s.dilation_h > 1 && s.R > 1 && s.C >= 64; }

// backward_data: the driver of thin groups copies a block of channels. In small images of many channels, its pixels are
// far apart.
//   512 in 32 groups, 14x14          0.56  0.95        672 5x5 /2, 14x14    0.80  0.71
//   768 7x7, 7x7                     0.71  1.43
bool has_many_groups_on_small_images(const Conv2dShape& s) {
  const bool many_taps = s.R * s.S >= 49 && s.N == 1;
  return s.groups > 1 && s.C >= 512 && s.H * s.W <= 196 && (s.group_C() > 1 || s.stride_h > 1 || many_taps);
}

// backward_data, the gradient of an image: 0.04 to 0.84 for all first layers. image_filter computes most with a stride
// of 1.
bool is_first_layer(const Conv2dShape& s) { return s.groups == 1 && s.C <= 4; }

// backward_data: the lanes of a vector are channels of the input, and at most three quarters of them are in use.
// Batches of 8 and 64, one thread:
//   8->16 3x3, 28x28    0.49  0.44        12->24 3x3, 28x28    0.59  0.58        8->16 7x7, 28x28    0.43  0.39
//   8->32 3x3, 28x28    0.65  0.64        8->8 5x5, 28x28      0.31  0.28
//   For comparison: 16->16 3x3, 28x28: 1.46  1.07. 8->64 1x1, 28x28, batch of 64: 1.87
bool has_few_channels(const Conv2dShape& s) { return s.groups == 1 && s.C > 4 && s.C < 16 && s.R * s.S > 1; }

// backward_data:
//   64->256 1x1, 56x56    1.06  0.91        256->1024    0.97  0.89        512->2048     0.97  0.82
//   768->192, 17x17       1.01  0.90        2048->512    0.83  0.89        1024->1024    0.86  0.89
bool is_slow_1x1_data(const Conv2dShape& s) {
  return is_large_1x1(s) && (s.C >= 768 || (s.K >= 256 && s.K >= 4 * s.C));
}

// ---- bfloat16 ----------------------------------------------------------------------------------------------------

// Returns whether PyTorch computes bfloat16 with vdpbf16ps. fastconv widens to float32.
bool has_bfloat16_products() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  return has;
#else
  return false;
#endif
}

// Batch of 8. Geometric means without groups, on Zen 4: forward 0.59 (0.37 to 1.32), backward_data 0.44 (0.04 to 0.97),
// backward_weight 0.70 (0.46 to 1.76). With groups, on Zen 5:
//                              forward          backward_data    backward_weight
//   depthwise 3x3              0.71 to 1.05     0.64 to 1.21     1.03 to 1.60
//   512 3x3, 14x14             0.86             1.09             1.42
//   32 3x3, 112x112            0.91             0.64             1.60
//   depthwise 3x3 /2                            16 to 21
//   depthwise 5x5, 7x7         1.03 to 1.27     1.10 to 1.89     13 to 47
//   96 7x7, 56x56              0.88             1.53             15
//   72 5x5 /2, 56x56           0.76             28               13
//   groups of 4                1.42             1.50             3.91
//   groups of 8 and 16         0.73 to 0.99     0.79 to 1.08     1.01 to 1.75
// Depthwise in NCHW, Zen 5: forward 1.32 to 1.58, backward_data 0.99 to 1.63.
bool has_groups_of_4(const Conv2dShape& s) { return s.group_C() == 4 && s.group_K() == 4; }

bool is_slow_in_bfloat16(const Conv2dShape& s) { return s.groups == 1 || !(is_depthwise(s) || has_groups_of_4(s)); }

bool is_slow_depthwise_forward(const Conv2dShape& s) {
  return is_depthwise(s) && s.H * s.W > (s.R * s.S < 25 ? 200 : 1000);
}

bool is_slow_depthwise_data(const Conv2dShape& s) { return is_depthwise(s) && s.stride_h == 1 && s.R * s.S < 25; }

// First layers: 1.14 to 1.76 for small results, 0.73 to 0.85 for large ones. 1->1 15x15, 224x224: 0.41
bool is_slow_in_bfloat16_weight(const Conv2dShape& s) {
  return s.groups == 1 && (s.C > 4 || s.K == 1 || s.N * s.K * s.P * s.Q >= 1'000'000);
}

// ---- the rules ---------------------------------------------------------------------------------------------------

// The names are those of docs/reference/pytorch_calls.md. For float64 and half, PyTorch has no fast kernels.
struct Rule {
  const char* name;
  ScalarType type;
  Pass pass;
  bool (*matches)(const Conv2dShape&);
  bool fused = false;      // for fused operators, too
  bool nhwc_only = false;  // in NCHW, PyTorch is slower
};
constexpr const char* for_padding = "padding";  // for every type and pass
constexpr Rule rules[] = {
    {"forward_depthwise_stride", ScalarType::Float, Pass::forward, has_stride_on_large_images, false, true},
    {"forward_depthwise_sets", ScalarType::Float, Pass::forward, has_pixels_in_few_sets, false, true},
    {"forward_writes", ScalarType::Float, Pass::forward, only_writes},
    {"forward_1x1", ScalarType::Float, Pass::forward, is_slow_1x1_forward},
    {"forward_one_row", ScalarType::Float, Pass::forward, has_one_row},
    {"forward_stride", ScalarType::Float, Pass::forward, has_stride},
    {"forward_dilation", ScalarType::Float, Pass::forward, has_dilation},
    {"data_groups", ScalarType::Float, Pass::backward_data, has_many_groups_on_small_images},
    {"data_depthwise_sets", ScalarType::Float, Pass::backward_data, has_pixels_in_few_sets, false, true},
    {"data_image", ScalarType::Float, Pass::backward_data, is_first_layer},
    {"data_few_channels", ScalarType::Float, Pass::backward_data, has_few_channels, true},
    {"data_1x1", ScalarType::Float, Pass::backward_data, is_slow_1x1_data},
    {"data_one_row", ScalarType::Float, Pass::backward_data, has_one_row},
    {"weight_depthwise_stride", ScalarType::Float, Pass::backward_weight, has_stride_on_many_values, false, true},
    {"weight_first_layer", ScalarType::Float, Pass::backward_weight, is_first_layer_of_few_outputs},
    {"weight_one_row", ScalarType::Float, Pass::backward_weight, has_one_row},
    {"bfloat16_forward", ScalarType::BFloat16, Pass::forward, is_slow_in_bfloat16},
    {"bfloat16_forward_depthwise", ScalarType::BFloat16, Pass::forward, is_slow_depthwise_forward, false, true},
    {"bfloat16_data", ScalarType::BFloat16, Pass::backward_data, is_slow_in_bfloat16},
    {"bfloat16_data_depthwise", ScalarType::BFloat16, Pass::backward_data, is_slow_depthwise_data, false, true},
    {"bfloat16_weight", ScalarType::BFloat16, Pass::backward_weight, is_slow_in_bfloat16_weight},
};

}  // namespace

// fastconv's kernels read the zeros of the padding like other pixels.
//   DeepLab 256->256 3x3, 28x28, dilation 12      forward 0.55      backward_data 1.03    backward_weight 0.66
//   2->2 3x3, 8x8, dilation and padding 20,000    55 s and 12 GB instead of 0.05 s
bool is_mostly_padding(const Conv2dShape& s) {
  const double padded = static_cast<double>(reach(s.P, s.stride_h, s.R, s.dilation_h)) *
                        static_cast<double>(reach(s.Q, s.stride_w, s.S, s.dilation_w));
  constexpr double least = 1024;  // In smaller images the zeros cost less than the call.
  return padded > least && padded > 3 * static_cast<double>(s.H * s.W);
}

double products(const Conv2dShape& s) {
  return static_cast<double>(s.N * s.P * s.Q * s.K) * static_cast<double>(s.taps());
}

bool torch_can_compute(const Conv2dShape& s) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  return std::min({s.N, s.C, s.K, s.P, s.Q}) > 0 && std::max(s.H + 2 * s.pad_h, s.W + 2 * s.pad_w) <= most &&
         std::max({s.N, s.C, s.K, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w}) <= most;
}

// First layers in pairs, batch of 8, Zen 5:
//                          forward   backward_weight
//   3->32 3x3 /2, 224x224     0.72        1.78
//   3->96 4x4 /4, 224x224     0.88        1.44
//   1->64 3x3, 128x128        0.86        0.74
//   1->1 15x15, 224x224       0.90        0.80
//   3->64 3x3, 224x224        1.02        1.44
//   3->64 11x11 /4, 224x224   1.25        1.29
//   3->16 3x3, 32x32          2.30        2.47
bool is_slow_in_pairs(const Conv2dShape& s, Pass pass) {
  if (is_mostly_padding(s)) return true;
  if (products(s) < least_products) return false;
  if (pass == Pass::forward) return only_writes(s) || (s.C == 1 && s.K == 1);
  return pass == Pass::backward_weight && s.C == 1 && (s.K == 1 || s.N * s.K * s.P * s.Q >= 1'000'000);
}

const char* rule_for_torch(const Conv2dShape& s, Pass pass, ScalarType type, bool nhwc, bool fused) {
  if (!fused && is_mostly_padding(s)) return for_padding;
  if (products(s) < least_products) return nullptr;
  if (type == ScalarType::Float && !fused && chooses_image_filter(s, pass)) return nullptr;
  if (type == ScalarType::BFloat16 && (!has_bfloat16_products() || chooses_image_filter_in_bfloat16(s, pass))) {
    return nullptr;
  }
  for (const Rule& rule : rules) {
    if (rule.type != type || rule.pass != pass || (fused && !rule.fused) || (rule.nhwc_only && !nhwc)) continue;
    if (rule.matches(s)) return rule.name;
  }
  return nullptr;
}

std::vector<const char*> rules_for_torch() {
  std::vector<const char*> names{for_padding};
  for (const Rule& rule : rules) names.push_back(rule.name);
  return names;
}

}  // namespace fastconv::cpu
