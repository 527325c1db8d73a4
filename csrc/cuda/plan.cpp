#include "plan.h"

#include "../cpu/forced_choices.h"
#include "../cpu/slower_calls.h"

// On a GPU, PyTorch is the default: a call is fastconv's only where a measurement says so, for the dtype, the
// architecture, and problems of about the measured size. All figures are microseconds of device time, PyTorch's /
// fastconv's, on an NVIDIA H200 (sm_90). They are those of docs/explanation/cuda.md, for 3 x 3 convolutions with ReLU
// and a 2 x 2 pool. PyTorch's are for its faster memory format, in float32 without TF32 unless TF32 is named. "Both" is
// forward + backward.
//
// No rule keeps forward of 64->64, 56x56 without a pool, 264 / 247 in float32. It is the only layer without a pool that
// was faster, by 7 %. 64->128, 5x5 and 256->256, 14x14 take 1.0 to 1.6 times PyTorch's time. bfloat16 was not measured.
namespace fastconv::cuda {
namespace {

// Returns whether a problem is at least half and at most twice as large as those that were measured.
bool is_near(const Conv2dShape& s, double smallest, double largest) {
  return cpu::products(s) >= smallest / 2 && cpu::products(s) <= largest * 2;
}

bool is_block(const FusedShape& f) {
  const Conv2dShape& s = f.conv;
  return s.groups == 1 && s.R == 3 && s.S == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1 && f.pool.R == 2 && f.pool.S == 2 && f.windows_touch();
}

// 1->32, 28x28, batch of 64: forward 21.4 / 12.8, both 82 / 77. With TF32: 21.4 / 12.8, both 82 / 77.
// In half: 20.2 / 20.6, both 77 / 86.
// The gradient of the input was not measured.
bool is_first_block(const Call& call) {
  const Conv2dShape& s = call.shape.conv;
  return is_block(call.shape) && s.C == 1 && s.K >= 16 && s.K <= 64 && is_near(s, 12.5e6, 12.5e6);
}

// About as many channels as the measured 32->64 has: less than twice as many.
bool is_second_block(const Call& call) {
  const Conv2dShape& s = call.shape.conv;
  return call.channels_last && is_block(call.shape) && s.C >= 32 && s.C < 64 && s.K >= 32 && s.K <= 64;
}

// 32->64, 13x13:   batch of 64     forward 23.9 / 19.8     in half 18.4 / 12.4
//                  batch of 1024   forward  188 / 145      in half   78 / 63
// With TF32, PyTorch computes it: 20.6 / 19.8 and 113 / 145.
bool is_second_block_forward(const Call& call) {
  return is_second_block(call) && is_near(call.shape.conv, 143e6, 2283e6);
}

// 32->64, 13x13:   batch of 64     both 121 / 103          in half   60 / 69
//                  batch of 1024   both 829 / 968          in half  267 / 378
// With TF32: 79 / 103 and 429 / 968.
bool is_second_block_backward(const Call& call) {
  return is_second_block(call) && is_near(call.shape.conv, 143e6, 143e6);
}

// The names are those of docs/reference/pytorch_calls.md.
struct Rule {
  const char* name;
  ScalarType type;
  Pass pass;
  bool (*matches)(const Call&);
  bool also_with_tf32 = false;
};
constexpr int measured_capability = 90;
constexpr Rule rules[] = {
    {"cuda_forward_first", ScalarType::Float, Pass::forward, is_first_block, true},
    {"cuda_forward", ScalarType::Float, Pass::forward, is_second_block_forward},
    {"cuda_forward_half", ScalarType::Half, Pass::forward, is_second_block_forward},
    {"cuda_data", ScalarType::Float, Pass::backward_data, is_second_block_backward},
    {"cuda_weight_first", ScalarType::Float, Pass::backward_weight, is_first_block, true},
    {"cuda_weight", ScalarType::Float, Pass::backward_weight, is_second_block_backward},
};

}  // namespace

const char* rule_for_fastconv(const Call& call) {
  if (!call.fused || call.capability != measured_capability) return nullptr;
  for (const Rule& rule : rules) {
    const bool precision = rule.also_with_tf32 || !call.tf32 || call.type != ScalarType::Float;
    if (rule.type == call.type && rule.pass == call.pass && precision && rule.matches(call)) return rule.name;
  }
  return nullptr;
}

bool torch_is_faster(const Call& call) {
  if (!cpu::torch_is_allowed()) return false;
  return cpu::always(cpu::torch_itself) || rule_for_fastconv(call) == nullptr;
}

std::vector<const char*> rules_for_fastconv() {
  std::vector<const char*> names;
  for (const Rule& rule : rules) names.push_back(rule.name);
  return names;
}

}  // namespace fastconv::cuda
