// The function of fastconv._C that asks what a call of a torch.nn.Module runs. fastconv/_ahead/layers.py calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

void add_modules(pybind11::module_& m);

}  // namespace fastconv
