// The functions of fastconv._C that fastconv/tuning.py calls.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

void add_tuning(pybind11::module_& m);

}  // namespace fastconv
