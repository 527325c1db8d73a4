// What module.cpp needs of Python's C API: owned references, conversions and errors.
//
// Only the limited API of Python 3.10 is used. So one build of the extension works with Python 3.10 and every later
// version. pybind11 and most of its kind need a build for each version.
#pragma once

// torch's build defines it too, with its own oldest version.
#undef Py_LIMITED_API
#if !defined(Py_GIL_DISABLED)  // free-threaded Python has no limited API before 3.15
#define Py_LIMITED_API 0x030A0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastconv::python {

// Thrown when a function of Python's C API failed and has set the Python error.
struct ErrorIsSet {};

struct Release {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;

// Takes the new reference that a function of the C API returned.
inline Object owned(PyObject* object) {
  if (object == nullptr) throw ErrorIsSet{};
  return Object(object);
}

inline Object to_python(int64_t value) { return owned(PyLong_FromLongLong(value)); }
inline Object to_python(bool value) { return owned(PyBool_FromLong(value)); }
inline Object to_python(const std::string& text) {
  return owned(PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}

template <class T>
Object to_python(const std::vector<T>& values) {
  Object list = owned(PyList_New(0));
  for (const T& value : values) {
    if (PyList_Append(list.get(), to_python(value).get()) != 0) throw ErrorIsSet{};
  }
  return list;
}

template <class T>
void set_item(const Object& dict, const std::string& key, const T& value) {
  if (PyDict_SetItemString(dict.get(), key.c_str(), to_python(value).get()) != 0) throw ErrorIsSet{};
}

template <class T>
Object to_python(const std::map<std::string, T>& values) {
  Object dict = owned(PyDict_New());
  for (const auto& [key, value] : values) set_item(dict, key, value);
  return dict;
}

inline std::string to_string(PyObject* object) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);  // TypeError if it is no str
  if (text == nullptr) throw ErrorIsSet{};
  return {text, static_cast<size_t>(size)};
}

// Calls visit(item) for each item of a sequence. TypeError if `object` is no sequence.
template <class F>
void for_each(PyObject* object, F visit) {
  const Py_ssize_t size = PySequence_Size(object);
  if (size < 0) throw ErrorIsSet{};
  for (Py_ssize_t i = 0; i < size; ++i) visit(owned(PySequence_GetItem(object, i)).get());
}

inline std::vector<int64_t> to_ints(PyObject* object) {
  std::vector<int64_t> numbers;
  for_each(object, [&](PyObject* item) {
    numbers.push_back(PyLong_AsLongLong(item));  // TypeError or OverflowError if it is no int of 64 bits
    if (PyErr_Occurred()) throw ErrorIsSet{};
  });
  return numbers;
}

inline std::map<std::string, std::string> to_map(PyObject* object) {
  std::map<std::string, std::string> result;
  const Object items = owned(PyMapping_Items(object));
  for_each(items.get(), [&](PyObject* item) {
    const Object key = owned(PySequence_GetItem(item, 0)), value = owned(PySequence_GetItem(item, 1));
    result[to_string(key.get())] = to_string(value.get());
  });
  return result;
}

// Runs `body`, which returns an Object, and turns C++ exceptions into Python's.
template <class F>
PyObject* guarded(F body) noexcept {
  try {
    return body().release();
  } catch (const ErrorIsSet&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace fastconv::python
