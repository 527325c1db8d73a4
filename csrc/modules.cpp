#include "modules.h"

#include <array>

namespace fastconv {
namespace {

namespace py = pybind11;

template <size_t count>
std::array<PyObject*, count> interned(const std::array<const char*, count>& texts) {
  std::array<PyObject*, count> names;
  for (size_t i = 0; i < count; ++i) {
    names[i] = PyUnicode_InternFromString(texts[i]);
    if (names[i] == nullptr) throw py::error_already_set();
  }
  return names;
}

// The value of a key of a dictionary: a borrowed reference, or null. Keys that are not strings may run Python code.
PyObject* value_of(PyObject* dictionary, PyObject* name) {
  PyObject* value = PyDict_GetItemWithError(dictionary, name);
  if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// Returns whether the instance has a hook, a method or a tensor of its own. fastconv._layer.is_observed is the same in
// Python.
bool is_observed(PyObject* attributes) {
  static const auto hooks =
      interned<4>({"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"});
  static const auto own = interned<9>({"forward", "_conv_forward", "_call_impl", "_wrapped_call_impl",
                                       "_check_input_dim", "weight", "bias", "running_mean", "running_var"});
  static const auto compiled = interned<1>({"_compiled_call_impl"});
  for (PyObject* name : hooks) {
    PyObject* value = value_of(attributes, name);
    if (value == nullptr || !PyDict_Check(value) || PyDict_Size(value) != 0) return true;
  }
  for (PyObject* name : own) {
    if (value_of(attributes, name) != nullptr) return true;
  }
  PyObject* value = value_of(attributes, compiled[0]);
  return value != nullptr && value != Py_None;
}

// Returns whether the class still has its methods. `methods` has the name, the function and its code object of each.
bool has_methods(PyTypeObject* cls, PyObject* methods) {
  const Py_ssize_t count = PyTuple_GET_SIZE(methods);
  for (Py_ssize_t i = 0; i + 2 < count; i += 3) {
    PyObject* function = PyTuple_GET_ITEM(methods, i + 1);
    if (_PyType_Lookup(cls, PyTuple_GET_ITEM(methods, i)) != function) return false;
    if (PyFunction_Check(function) && PyFunction_GET_CODE(function) != PyTuple_GET_ITEM(methods, i + 2)) return false;
  }
  return true;
}

// pybind11's own functions take 0.3 us longer to call, which is more than the whole check takes.
PyObject* is_stock(PyObject* /*self*/, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyTuple_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "is_stock() takes a module and a tuple");
    return nullptr;
  }
  try {
    if (!has_methods(Py_TYPE(arguments[0]), arguments[1])) Py_RETURN_FALSE;
    const py::object attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(arguments[0], nullptr));
    if (!attributes) return nullptr;
    return PyBool_FromLong(!is_observed(attributes.ptr()));
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

// Appends the members of a list or a dictionary, or the attributes of another object, to `found`.
void add_members(PyObject* container, PyObject* found) {
  const auto add = [&](PyObject* value) {
    if (PyList_Append(found, value) != 0) throw py::error_already_set();
  };
  if (PyList_Check(container)) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(container); ++i) add(PyList_GET_ITEM(container, i));
    return;
  }
  py::object dictionary = py::reinterpret_borrow<py::object>(container);
  if (!PyDict_Check(container)) {
    dictionary = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(container, nullptr));
    if (!dictionary) throw py::error_already_set();
  }
  PyObject* value = nullptr;
  for (Py_ssize_t place = 0; PyDict_Next(dictionary.ptr(), &place, nullptr, &value) != 0;) add(value);
}

PyObject* members(PyObject* /*self*/, PyObject* containers) {
  if (!PyList_Check(containers)) {
    PyErr_SetString(PyExc_TypeError, "members() takes a list");
    return nullptr;
  }
  try {
    py::list found;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(containers); ++i) {
      add_members(PyList_GET_ITEM(containers, i), found.ptr());
    }
    return found.release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"is_stock", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&is_stock)), METH_FASTCALL,
     "is_stock(module, methods): whether the class of a torch.nn.Module finds these methods, a tuple of a name, a "
     "function and its code for each, and the instance has no hook, method, weight, bias or running statistics of its "
     "own."},
    {"members", &members, METH_O,
     "members(containers): what these lists and dictionaries contain, and the attributes of other objects in the "
     "list."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_module_inspection(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fastconv
