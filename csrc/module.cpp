// The Python module fastconv._C: what is not an operator. Importing it registers the operators too (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <map>
#include <sstream>
#include <string>

#include "cpu/capability.h"
#include "cpu/choices.h"
#include "cpu/packed_weights.h"
#include "environment.h"

#if !defined(FASTCONV_CUDA)
#define FASTCONV_CUDA no
#endif
#define FASTCONV_STRING_OF(text) #text
#define FASTCONV_STRING(macro) FASTCONV_STRING_OF(macro)

namespace {

std::map<std::string, std::string> build_info() {
  std::ostringstream target;
  // 0x020a... is torch 2.10: the oldest release whose stable ABI serves this build.
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastconv's compiled part: operators (torch.ops.fastconv) and the CPU level that serves them.";
  m.def("cpu_capability", &fastconv::cpu_capability, "The ISA level in use: default, avx2 or avx512.");
  m.def("cpu_capabilities", &fastconv::cpu_capabilities, "The ISA levels of this machine, lowest first.");
  m.def("set_cpu_capability", &fastconv::set_cpu_capability, pybind11::arg("name"),
        "Choose the ISA level for this process, while nothing computes. ValueError if the machine lacks it.");
  m.def("set_algorithms", &fastconv::cpu::set_algorithms, pybind11::arg("choices"), pybind11::arg("winograd") = -1,
        "For tests, while nothing computes: force or forbid algorithms of the CPU for this process. `choices` gives "
        "'always' (wherever it can compute the shape) or 'never' to any of dot, winograd, window, live, patch and "
        "narrow; the rest are chosen as measured. `winograd` replaces FASTCONV_WINOGRAD.");
  m.def(
      "packed_weights",
      [] {
        const fastconv::cpu::WeightCache::State state = fastconv::cpu::packed_weights();
        return std::map<std::string, int64_t>{{"bytes", state.bytes}, {"hits", state.hits}};
      },
      "The packed weights that are kept: their bytes now, and the calls so far that found theirs.");
  m.def(
      "environment",
      [] {
        const fastconv::Environment& e = fastconv::environment();
        const bool unlimited = e.cache_bytes == std::numeric_limits<int64_t>::max();
        return std::map<std::string, std::string>{
            {"FASTCONV_CPU_CAPABILITY", e.cpu_capability},
            {"FASTCONV_WINOGRAD", std::to_string(e.winograd)},
            {"FASTCONV_CACHE_MB", unlimited ? "unlimited" : std::to_string(e.cache_bytes >> 20)}};
      },
      "The settings that the environment variables chose at import. ValueError if one has a value that is not "
      "accepted.");
  m.def("build_info", &build_info, "How the extension was built.");
}
