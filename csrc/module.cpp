// The Python module fastconv._C. Importing it also registers the operators (ops.cpp).
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/capability.h"
#include "cpu/memory/packed_weights.h"
#include "cpu/plan.h"
#include "environment.h"
#include "python.h"

#if !defined(FASTCONV_CUDA)
#define FASTCONV_CUDA no
#endif
#define FASTCONV_STRING_OF(text) #text
#define FASTCONV_STRING(macro) FASTCONV_STRING_OF(macro)

namespace {

namespace py = fastconv::python;

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

// mh, mw, rows and columns of each kind of tile.
std::vector<std::vector<int64_t>> tiles_of(const fastconv::cpu::WinogradCut& cut) {
  std::vector<std::vector<int64_t>> tiles;
  for (const fastconv::WinogradTileKind& kind : cut.kinds) {
    if (kind.per_image() > 0) tiles.push_back({kind.mh, kind.mw, kind.rows, kind.columns});
  }
  return tiles;
}

template <class T>
py::Object plan_as_dict(const std::string& pass, const fastconv::FusedShape& f, bool fused, bool channels_last,
                        double nonzero, bool finite) {
  using namespace fastconv::cpu;
  py::Object result = py::owned(PyDict_New());
  const auto describe = [&](Algorithm algorithm, const WinogradCut& cut) {
    py::set_item(result, "algorithm", std::string(name_of(algorithm)));
    if (algorithm == Algorithm::winograd) py::set_item(result, "tiles", tiles_of(cut));
  };
  if (pass == "forward") {
    const ForwardPlan plan = plan_forward<T>(f, channels_last);
    describe(plan.algorithm, plan.cut);
    if (fused) py::set_item(result, "pool_in_registers", plan.pool_in_registers);
    return result;
  }
  if (pass != "backward_data" && pass != "backward_weight") {
    throw std::invalid_argument("expected pass_ to be forward, backward_data or backward_weight, but got '" + pass +
                                "'");
  }
  const GradientFacts gradient{fused, [=](double) { return nonzero; }, [=] { return finite; }};
  const BackwardPlan plan =
      pass == "backward_data" ? plan_backward_data<T>(f, gradient) : plan_backward_weight<T>(f, gradient);
  describe(plan.algorithm, plan.cut);
  py::set_item(result, "unpool", plan.unpool);
  if (pass == "backward_data") py::set_item(result, "weight_as_patches", plan.weight_as_patches);
  return result;
}

// Options of plan(). The objects are borrowed from the arguments. Null: not given.
struct PlanOptions {
  const char* dtype = "float32";
  PyObject *stride = nullptr, *padding = nullptr, *dilation = nullptr, *pool = nullptr;
  long long groups = 1;
  int relu = 0, channels_last = 1, finite = 1;
  double nonzero = 1;

  fastconv::Ints pair(PyObject* given, int64_t otherwise) const {
    return given == nullptr ? fastconv::Ints{otherwise, otherwise} : py::to_ints(given);
  }
};

py::Object plan_of(const std::string& pass, PyObject* input_size, PyObject* weight_size, const PlanOptions& o) {
  using namespace fastconv;
  FusedShape f = without_pool(check_conv2d_sizes(py::to_ints(input_size), py::to_ints(weight_size), o.pair(o.stride, 1),
                                                 o.pair(o.padding, 0), o.pair(o.dilation, 1), o.groups));
  const bool pooled = o.pool != nullptr && o.pool != Py_None;
  if (pooled) {
    std::vector<Ints> pool;
    py::for_each(o.pool, [&](PyObject* item) { pool.push_back(py::to_ints(item)); });
    if (pool.size() != 4) {
      throw std::invalid_argument("expected pool to be (kernel_size, stride, padding, dilation), but got " +
                                  std::to_string(pool.size()) + " items");
    }
    const Conv2dShape& s = f.conv;
    f.pool = check_max_pool2d_sizes({s.N, s.K, s.P, s.Q}, pool[0], pool[1], pool[2], pool[3], false);
  }
  const std::string dtype = o.dtype;
  const bool narrow = dtype == "float32" || dtype == "bfloat16" || dtype == "float16";
  if (!narrow && dtype != "float64") {
    throw std::invalid_argument("expected dtype to be float32, float64, bfloat16 or float16, but got '" + dtype + "'");
  }
  if (!(o.nonzero >= 0 && o.nonzero <= 1)) throw std::invalid_argument("expected nonzero to be between 0 and 1");
  const auto run = narrow ? plan_as_dict<float> : plan_as_dict<double>;
  return run(pass, f, o.relu || pooled, o.channels_last, o.nonzero, o.finite);
}

PyObject* plan(PyObject*, PyObject* arguments, PyObject* keywords) {
  // Python 3.10 declares the names without const.
  static const char* names[] = {"pass_", "input_size", "weight_size", "stride",        "padding", "dilation", "groups",
                                "relu",  "pool",       "dtype",       "channels_last", "nonzero", "finite",   nullptr};
  return py::guarded([&] {
    const char* pass = nullptr;
    PyObject *input_size = nullptr, *weight_size = nullptr;
    PlanOptions o;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "sOO|OOOL$pOspdp:plan", const_cast<char**>(names), &pass,
                                     &input_size, &weight_size, &o.stride, &o.padding, &o.dilation, &o.groups, &o.relu,
                                     &o.pool, &o.dtype, &o.channels_last, &o.nonzero, &o.finite)) {
      throw py::ErrorIsSet{};
    }
    return plan_of(pass, input_size, weight_size, o);
  });
}

PyObject* set_algorithms(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"choices", "winograd", "band", nullptr};
  return py::guarded([&] {
    PyObject* choices = nullptr;
    int winograd = -1;
    long long band = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|iL:set_algorithms", const_cast<char**>(names), &choices,
                                     &winograd, &band)) {
      throw py::ErrorIsSet{};
    }
    fastconv::cpu::set_algorithms(py::to_map(choices), winograd, band);
    return py::owned(Py_NewRef(Py_None));
  });
}

PyObject* set_cpu_capability(PyObject*, PyObject* name) {
  return py::guarded([&] {
    fastconv::set_cpu_capability(py::to_string(name));
    return py::owned(Py_NewRef(Py_None));
  });
}

std::map<std::string, int64_t> packed_weights() {
  const fastconv::cpu::WeightCache::State state = fastconv::cpu::packed_weights();
  return {{"bytes", state.bytes}, {"hits", state.hits}};
}

std::map<std::string, std::string> environment() {
  const fastconv::Environment& e = fastconv::environment();
  const bool unlimited = e.cache_bytes == std::numeric_limits<int64_t>::max();
  return {{"FASTCONV_CPU_CAPABILITY", e.cpu_capability},
          {"FASTCONV_WINOGRAD", std::to_string(e.winograd)},
          {"FASTCONV_CACHE_MB", unlimited ? "unlimited" : std::to_string(e.cache_bytes >> 20)}};
}

// The Python function of a C++ function without arguments.
template <auto function>
PyObject* getter(PyObject*, PyObject*) {
  return py::guarded([] { return py::to_python(function()); });
}

using WithKeywords = PyObject* (*)(PyObject*, PyObject*, PyObject*);

// The table below has one type for all methods. Python reads the real one from the flags.
PyCFunction as_method(WithKeywords function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"cpu_capability", getter<fastconv::cpu_capability>, METH_NOARGS, "The ISA level in use: default, avx2 or avx512."},
    {"cpu_capabilities", getter<fastconv::cpu_capabilities>, METH_NOARGS,
     "The ISA levels of this machine, lowest first."},
    {"set_cpu_capability", set_cpu_capability, METH_O,
     "Choose the ISA level of this process, while no operator runs. ValueError if the machine lacks the level."},
    {"plan", as_method(plan), METH_VARARGS | METH_KEYWORDS,
     "How the CPU computes a convolution: a dict with the 'algorithm' and the decisions that belong to it. `pass_` "
     "is forward, backward_data or backward_weight. `relu` fuses a ReLU. `pool`, a (kernel_size, stride, padding, "
     "dilation), fuses a ReLU and max-pooling. 16-bit dtypes are computed in float32. `channels_last` says that the "
     "weight is channels_last. In backward, `nonzero` is the share of the convolution's results that the gradient "
     "reaches, and `finite` says that the other factor (weight or input) has no infinity and no NaN."},
    {"set_algorithms", as_method(set_algorithms), METH_VARARGS | METH_KEYWORDS,
     "For tests: force or forbid algorithms of the CPU in this process, while no operator runs. `choices` maps any "
     "of winograd, small_output, sparse_gradient, few_channels, pool_in_registers and weight_as_patches to 'always' "
     "(for every shape that it can compute) or 'never'. The plan decides on the others. `winograd` replaces "
     "FASTCONV_WINOGRAD, unless it is -1. `band` replaces the size of a band of a large call, in elements of input "
     "and output, unless it is 0."},
    {"packed_weights", getter<packed_weights>, METH_NOARGS,
     "The cache of packed weights: 'bytes', its size now, and 'hits', the number of calls that found their weight."},
    {"environment", getter<environment>, METH_NOARGS,
     "The settings of the environment variables at import. ValueError if one has a value that is not accepted."},
    {"build_info", getter<build_info>, METH_NOARGS, "How the extension was built."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_C",
                      "The compiled part of fastconv. Importing it registers the operators torch.ops.fastconv.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

#if defined(__GLIBC__)
// libstdc++ reads this variable of glibc 2.32 before it counts references. A copy in the extension says "not single
// threaded", which is always correct. So a wheel that is built with a newer glibc works with glibc 2.28.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
