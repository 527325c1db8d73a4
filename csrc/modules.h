// The functions of fastconv._C that inspect instances of torch.nn.Module, for fastconv/_ahead and fastconv/_frozen.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv {

void add_module_inspection(pybind11::module_& m);

}  // namespace fastconv
