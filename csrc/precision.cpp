#include "precision.h"

#include <pybind11/pybind11.h>

#include <string>

namespace fastconv {

bool allows_tf32() {
  namespace py = pybind11;
  const py::gil_scoped_acquire gil;
  // allow_tf32 of torch.backends.cudnn sets this value. Reading allow_tf32 raises an error if both are set.
  const py::object precision = py::module_::import("torch._C").attr("_get_fp32_precision_getter")("cuda", "conv");
  return precision.cast<std::string>() == "tf32";
}

}  // namespace fastconv
