// The Python module fastconv._C. Importing it also registers the operators (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/forced_choices.h"
#include "cpu/memory/packed_weights.h"
#include "cpu/ops.h"
#include "cpu/plan.h"
#include "cpu/slower_calls.h"
#include "cpu/tuning.h"
#include "cuda/plan.h"
#include "environment.h"
#include "modules.h"
#include "names.h"
#include "precision.h"
#include "tuning_module.h"

#if !defined(FASTCONV_CUDA)
#define FASTCONV_CUDA no
#endif
#define FASTCONV_STRING_OF(text) #text
#define FASTCONV_STRING(macro) FASTCONV_STRING_OF(macro)

namespace {

std::map<std::string, std::string> build_info() {
  std::ostringstream target;
  // 0x020a... is torch 2.10, the oldest release that this build runs with.
  target << ((TORCH_TARGET_VERSION >> 56) & 0xff) << '.' << ((TORCH_TARGET_VERSION >> 48) & 0xff);
  return {{"compiler",
#if defined(__clang__)
           "clang " __clang_version__
#else
           "g++ " __VERSION__
#endif
          },
          {"torch_target_version", target.str()},
          {"cuda", FASTCONV_STRING(FASTCONV_CUDA)}};
}

// kernel_size, stride, padding and dilation of the fused max-pooling.
using PoolArguments = std::array<fastconv::Ints, 4>;

pybind11::list tiles_of(const fastconv::cpu::WinogradCut& cut) {
  pybind11::list tiles;
  for (const fastconv::WinogradTileKind& kind : cut.kinds) {
    if (kind.per_image() > 0) tiles.append(pybind11::make_tuple(kind.mh, kind.mw, kind.rows, kind.columns));
  }
  return tiles;
}

// The choice of fastconv.tune() for a call whose tensors all have one memory format.
fastconv::cpu::Candidate tuned_for(fastconv::cpu::Pass pass, const fastconv::FusedShape& f, bool fused,
                                   fastconv::ScalarType type, bool channels_last, double nonzero) {
  using namespace fastconv::cpu;
  const fastconv::Conv2dShape& s = f.conv;
  const auto order = [=](int64_t channels, int64_t pixels) {
    return channels == 1 || pixels == 1 ? Order::either : channels_last ? Order::nhwc : Order::nchw;
  };
  const Order input = order(s.C, s.H * s.W), weight = order(s.group_C(), s.R * s.S);
  const Order gradient = order(s.K, f.pool.P * f.pool.Q);
  const Order result = pass == Pass::forward ? gradient : pass == Pass::backward_data ? input : weight;
  const TunedCall call{pass,
                       f,
                       fused,
                       type,
                       {pass == Pass::forward ? input : gradient, pass == Pass::backward_weight ? input : weight},
                       result == Order::nhwc ? Order::nhwc : Order::nchw,
                       static_cast<int>(torch::stable::get_num_threads())};
  return tuning::find(call, static_cast<int>(std::ceil(nonzero * 8)));
}

pybind11::dict gpu_plan_as_dict(const fastconv::cuda::Call& call) {
  pybind11::dict result;
  const bool torch = fastconv::cuda::torch_is_faster(call);
  result["algorithm"] = torch ? "torch" : "own";
  if (!torch) result["rule"] = fastconv::cuda::rule_for_fastconv(call);
  return result;
}

template <class T>
pybind11::dict plan_as_dict(fastconv::cpu::Pass pass, const fastconv::FusedShape& f, bool fused,
                            fastconv::ScalarType type, bool channels_last, double nonzero, bool finite) {
  using namespace fastconv::cpu;
  pybind11::dict result;
  const auto describe = [&](Algorithm algorithm, const WinogradCut& cut) {
    result["algorithm"] = name_of(algorithm);
    if (algorithm == Algorithm::winograd) result["tiles"] = tiles_of(cut);
  };
  const tuning::Following tuned(pass, tuned_for(pass, f, fused, type, channels_last, nonzero));
  if (!fused && multiplies_pairs(f.conv, pass, type, channels_last)) {
    result["algorithm"] = name_of(Algorithm::pairs);
    return result;
  }
  if (!fused && torch_is_faster(f.conv, pass, type, channels_last)) {
    result["algorithm"] = "torch";
    result["rule"] = rule_for_torch(f.conv, pass, type, channels_last);
    return result;
  }
  if (pass == Pass::forward) {
    const ForwardPlan plan = plan_forward<T>(f, channels_last, fused);
    describe(plan.algorithm, plan.cut);
    if (fused) result["pool_in_registers"] = plan.pool_in_registers;
    return result;
  }
  const GradientFacts gradient{fused, [=](double) { return nonzero; }, [=] { return finite; }};
  const BackwardPlan plan = plan_backward<T>(pass, f, gradient);
  describe(plan.algorithm, plan.cut);
  if (plan.algorithm == Algorithm::torch)
    result["rule"] = rule_for_torch(f.conv, pass, fastconv::ScalarType::Float, channels_last, true);
  result["unpool"] = plan.unpool;
  if (pass == Pass::backward_data) result["weight_as_patches"] = plan.weight_as_patches;
  return result;
}

pybind11::dict plan(const std::string& pass, const fastconv::Ints& input_size, const fastconv::Ints& weight_size,
                    const fastconv::Ints& stride, const fastconv::Ints& padding, const fastconv::Ints& dilation,
                    int64_t groups, bool relu, const std::optional<PoolArguments>& pool, const std::string& dtype,
                    bool channels_last, double nonzero, bool finite, const std::optional<int>& cuda_capability,
                    bool tf32) {
  using namespace fastconv;
  const cpu::Pass which = value_in(passes, pass, "pass_");
  FusedShape f = without_pool(check_conv2d_sizes(input_size, weight_size, stride, padding, dilation, groups));
  if (pool) {
    const auto& [kernel, pool_stride, pool_padding, pool_dilation] = *pool;
    const Conv2dShape& s = f.conv;
    f.pool = check_max_pool2d_sizes({s.N, s.K, s.P, s.Q}, kernel, pool_stride, pool_padding, pool_dilation, false);
  }
  const ScalarType type = value_in(types, dtype, "dtype");
  if (!(nonzero >= 0 && nonzero <= 1)) throw std::invalid_argument("expected nonzero to be between 0 and 1");
  const bool fused = relu || pool.has_value();
  if (cuda_capability) return gpu_plan_as_dict({which, f, fused, type, channels_last, tf32, *cuda_capability});
  const auto run = type == ScalarType::Double ? plan_as_dict<double> : plan_as_dict<float>;
  return run(which, f, fused, type, channels_last, nonzero, finite);
}

}  // namespace

#if defined(__GLIBC__)
// libstdc++ reads this variable of glibc 2.32 before it counts references. A copy in the extension says "not single
// threaded", which is always correct. So a wheel that is built with a newer glibc works with glibc 2.28.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of fastconv. Importing it registers the operators torch.ops.fastconv.";
  m.def("cpu_capability", &fastconv::cpu_capability, "The ISA level in use: default, avx2 or avx512.");
  m.def("cpu_capabilities", &fastconv::cpu_capabilities, "The ISA levels of this machine, lowest first.");
  m.def("set_cpu_capability", &fastconv::set_cpu_capability, pybind11::arg("name"),
        "Choose the ISA level of this process, while no operator runs. ValueError if the machine lacks the level.");
  namespace py = pybind11;
  m.def(
      "plan", &plan, py::arg("pass_"), py::arg("input_size"), py::arg("weight_size"),
      py::arg("stride") = fastconv::Ints{1, 1}, py::arg("padding") = fastconv::Ints{0, 0},
      py::arg("dilation") = fastconv::Ints{1, 1}, py::arg("groups") = 1, py::kw_only(), py::arg("relu") = false,
      py::arg("pool") = py::none(), py::arg("dtype") = "float32", py::arg("channels_last") = true,
      py::arg("nonzero") = 1.0, py::arg("finite") = true, py::arg("cuda_capability") = py::none(),
      py::arg("tf32") = true,
      "How the CPU computes a convolution: a dict with the 'algorithm' and its decisions. The plan follows the choices "
      "of fastconv.tune(). `pass_` is forward, backward_data or backward_weight. `relu` fuses a ReLU. `pool`, a "
      "(kernel_size, stride, padding, "
      "dilation), fuses a ReLU and max-pooling. `channels_last` says that all tensors are "
      "channels_last. In backward, `nonzero` is the share of the convolution's results that the gradient "
      "reaches, and `finite` says that the other factor (weight or input) has no infinity and no NaN. With "
      "`cuda_capability`, such as 90, the answer is for a GPU of that compute capability: the 'algorithm' is own or "
      "torch. For own, 'rule' is the rule that chose it, or None with FASTCONV_ALGORITHM=own. `tf32` says that PyTorch "
      "may compute float32 in TF32.");
  using fastconv::Ints;
  m.def(
      "check_geometry",
      [](const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, const Ints& kernel_size) {
        fastconv::check_geometry(stride, padding, dilation, groups, &kernel_size);
      },
      "Check a convolution's numbers. RuntimeError with PyTorch's text.");
  m.def("check_pool", &fastconv::check_max_pool2d_parameters, "Check a max-pool's numbers.");
  m.def(
      "conv2d_size",
      [](const Ints& input, const Ints& weight, const std::optional<Ints>& bias, const Ints& stride,
         const Ints& padding, const Ints& dilation, int64_t groups) {
        const auto of_bias = bias ? std::optional<fastconv::Sizes>(*bias) : std::nullopt;
        const auto s = fastconv::check_conv2d_sizes(input, weight, stride, padding, dilation, groups, of_bias);
        return Ints{s.N, s.K, s.P, s.Q};
      },
      "Check the sizes of a convolution's arguments, and return the size of its output.");
  m.def(
      "pooled_size",
      [](const Ints& input, const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation,
         const std::optional<bool>& ceil_mode, const Ints& given) {
        fastconv::check(input.size() == 4 && (ceil_mode || given.size() == 2), "expected (N, C, H, W) and (P, Q)");
        const auto s = fastconv::check_max_pool2d_sizes(input, kernel_size, stride, padding, dilation,
                                                        ceil_mode.value_or(false), false, ceil_mode ? nullptr : &given);
        return Ints{s.N, s.C, s.P, s.Q};
      },
      "Check the sizes of a max-pool's arguments, and return the size of its output. Backward passes no ceil_mode, but "
      "the (P, Q) of the gradient.");
  m.def("linear_is_faster", &fastconv::cpu::linear_is_faster, py::arg("rows"), py::arg("C"), py::arg("K"),
        "Whether the plan chooses fastconv for a linear layer with C inputs and K outputs, in float32.");
  m.def("rules_for_torch", &fastconv::cpu::rules_for_torch,
        "The names of the rules that leave calls to PyTorch, as in docs/reference/pytorch_calls.md. plan() names the "
        "'rule'.");
  m.def("rules_for_fastconv", &fastconv::cuda::rules_for_fastconv,
        "The names of the rules that keep calls on a GPU for fastconv, as in docs/reference/pytorch_calls.md.");
  m.def("torch_is_allowed", &fastconv::cpu::torch_is_allowed,
        "Whether PyTorch's own operators may compute a call. FASTCONV_ALGORITHM=own and set_algorithms can forbid it.");
  m.def(
      "set_algorithms", &fastconv::cpu::set_algorithms, pybind11::arg("choices"), pybind11::arg("winograd") = -1,
      pybind11::arg("band") = 0,
      "For tests: force or forbid algorithms of the CPU in this process, while no operator runs. `choices` maps any "
      "of torch, winograd, small_output, sparse_gradient, few_channels, pool_in_registers, weight_as_patches, "
      "thin_groups, gemm and pairs to 'always' (for every shape that it can compute), 'never' or 'measured' (the plan "
      "decides; the default). `winograd` replaces FASTCONV_WINOGRAD, unless it is -1. `band` replaces the size of a "
      "band of a large call, "
      "in elements of input and output, unless it is 0.");
  m.def(
      "packed_weights",
      [] {
        const fastconv::cpu::WeightCache::State state = fastconv::cpu::packed_weights();
        return std::map<std::string, int64_t>{{"bytes", state.bytes}, {"hits", state.hits}};
      },
      "The cache of packed weights: 'bytes', its size now, and 'hits', the number of calls that found their weight.");
  const auto address = [](int64_t data) { return reinterpret_cast<const void*>(data); };
  m.def(
      "freeze_weight", [=](int64_t data) { fastconv::cpu::freeze_weight(address(data)); }, pybind11::arg("data_ptr"),
      "Pack the weight at this address once and never compare it again. It must not change or be freed until "
      "release_weight. fastconv.freeze uses it.");
  m.def(
      "release_weight", [=](int64_t data) { fastconv::cpu::release_weight(address(data)); }, pybind11::arg("data_ptr"),
      "Undo freeze_weight.");
  m.def(
      "environment",
      [] {
        const fastconv::Environment& e = fastconv::environment();
        const auto megabytes = [](int64_t bytes) {
          return bytes == std::numeric_limits<int64_t>::max() ? "unlimited" : std::to_string(bytes >> 20);
        };
        return std::map<std::string, std::string>{{"FASTCONV_CPU_CAPABILITY", e.cpu_capability},
                                                  {"FASTCONV_ALGORITHM", e.own_algorithms ? "own" : "auto"},
                                                  {"FASTCONV_WINOGRAD", std::to_string(e.winograd)},
                                                  {"FASTCONV_CACHE_MB", megabytes(e.cache_bytes)},
                                                  {"FASTCONV_KEEP_MB", megabytes(e.keep_bytes)},
                                                  {"FASTCONV_TENSOR_CORES", e.tensor_cores ? "1" : "0"}};
      },
      "The settings of the environment variables at import. ValueError if one has a value that is not accepted.");
  m.def("allows_tf32", &fastconv::allows_tf32, "Whether PyTorch lets convolutions of float32 use TF32 on a GPU.");
  fastconv::add_tuning(m);
  fastconv::add_module_inspection(m);
  m.def("build_info", &build_info, "How the extension was built.");
}
