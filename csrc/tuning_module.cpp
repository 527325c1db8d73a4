#include "tuning_module.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "checks.h"
#include "cpu/tuning.h"
#include "names.h"
#include "sizes.h"

namespace fastconv {
namespace {

namespace py = pybind11;
using cpu::candidate_named;
using cpu::Choice;
using cpu::Order;
using cpu::TunedCall;

constexpr Names<Order, 4> orders{
    {{"nchw", Order::nchw}, {"nhwc", Order::nhwc}, {"either", Order::either}, {"strided", Order::strided}}};

Pool2dShape pool_of(const Conv2dShape& s, const py::sequence& pool) {
  if (pool.size() != 5) throw std::invalid_argument("expected a pool of 5 entries");
  return check_max_pool2d_sizes({s.N, s.K, s.P, s.Q}, pool[0].cast<Ints>(), pool[1].cast<Ints>(), pool[2].cast<Ints>(),
                                pool[3].cast<Ints>(), pool[4].cast<bool>());
}

// (kernel_size, stride, padding, dilation, ceil_mode), or None for windows of one pixel.
py::object as_python(const FusedShape& f) {
  const Pool2dShape& p = f.pool;
  const Conv2dShape& s = f.conv;
  const Pool2dShape none = without_pool(s).pool;
  if (p.P == none.P && p.Q == none.Q && p.R == 1 && p.S == 1) return py::none();
  const Ints kernel{p.R, p.S}, stride{p.stride_h, p.stride_w}, padding{p.pad_h, p.pad_w};
  const Ints dilation{p.dilation_h, p.dilation_w};
  // With ceil_mode, there may be a window where there would be none without.
  const bool ceil_mode = output_size(s.P, p.R, p.pad_h, p.stride_h, p.dilation_h) != p.P ||
                         output_size(s.Q, p.S, p.pad_w, p.stride_w, p.dilation_w) != p.Q;
  return py::make_tuple(kernel, stride, padding, dilation, ceil_mode);
}

py::dict as_python(const Choice& choice) {
  const TunedCall& call = choice.call;
  const Conv2dShape& s = call.shape.conv;
  py::dict result, times;
  result["pass"] = name_in(passes, call.pass);
  result["input"] = Ints{s.N, s.C, s.H, s.W};
  result["weight"] = Ints{s.K, s.group_C(), s.R, s.S};
  result["stride"] = Ints{s.stride_h, s.stride_w};
  result["padding"] = Ints{s.pad_h, s.pad_w};
  result["dilation"] = Ints{s.dilation_h, s.dilation_w};
  result["groups"] = s.groups;
  result["relu"] = call.fused;
  result["pool"] = call.fused ? as_python(call.shape) : py::none();
  result["dtype"] = name_in(types, call.type);
  result["operands"] = py::make_tuple(name_in(orders, call.operands[0]), name_in(orders, call.operands[1]));
  result["result"] = name_in(orders, call.result);
  result["threads"] = call.threads;
  result["eighths"] = choice.eighths == cpu::any_share ? py::object(py::none()) : py::int_(choice.eighths);
  result["chosen"] = cpu::name_of(choice.chosen);
  result["planned"] = cpu::name_of(choice.planned);
  for (const auto& [candidate, time] : choice.microseconds) times[cpu::name_of(candidate)] = time;
  result["microseconds"] = times;
  return result;
}

Choice from_python(const py::dict& d) {
  const auto ints = [&](const char* name) { return d[name].cast<Ints>(); };
  FusedShape f = without_pool(check_conv2d_sizes(ints("input"), ints("weight"), ints("stride"), ints("padding"),
                                                 ints("dilation"), d["groups"].cast<int64_t>()));
  if (!d["pool"].is_none()) f.pool = pool_of(f.conv, d["pool"].cast<py::sequence>());
  const auto named = [&](const auto& names, const py::handle& name, const char* what) {
    return value_in(names, name.cast<std::string>(), what);
  };
  const auto operands = d["operands"].cast<py::sequence>();
  if (operands.size() != 2) throw std::invalid_argument("expected two operands");
  Choice choice{{named(passes, d["pass"], "pass"),
                 f,
                 d["relu"].cast<bool>(),
                 named(types, d["dtype"], "dtype"),
                 {named(orders, operands[0], "operands"), named(orders, operands[1], "operands")},
                 named(orders, d["result"], "result"),
                 d["threads"].cast<int>()},
                d["eighths"].is_none() ? cpu::any_share : d["eighths"].cast<int>(),
                candidate_named(d["chosen"].cast<std::string>()),
                candidate_named(d["planned"].cast<std::string>()),
                {}};
  if (choice.eighths < cpu::any_share || choice.eighths > 8)
    throw std::invalid_argument("expected eighths from 0 to 8");
  for (const auto& [name, time] : d["microseconds"].cast<py::dict>()) {
    choice.microseconds.emplace_back(candidate_named(name.cast<std::string>()), time.cast<double>());
  }
  return choice;
}

py::list choices() {
  py::list result;
  for (const Choice& choice : cpu::tuning::choices()) result.append(as_python(choice));
  return result;
}

// Restores all or, if one is invalid, none.
void restore(const std::vector<py::dict>& dicts) {
  std::vector<Choice> choices;
  choices.reserve(dicts.size());
  for (const py::dict& dict : dicts) choices.push_back(from_python(dict));
  cpu::tuning::restore(choices);
}

}  // namespace

void add_tuning(py::module_& m) {
  m.def("tuning_begin", &cpu::tuning::begin, "Begin to time convolutions, in all threads. Calls nest.");
  m.def("tuning_end", &cpu::tuning::end, "End one tuning_begin().");
  m.def("tuned_choices", &choices, "The choices of fastconv.tune(), each as a dict of plain types.");
  m.def("restore_tuned_choices", &restore, py::arg("choices"),
        "Add choices, or replace those for the same calls. ValueError or RuntimeError if one is invalid.");
  m.def("forget_tuned_choices", &cpu::tuning::forget, "Forget all choices.");
}

}  // namespace fastconv
