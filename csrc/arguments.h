// avops: arguments of avops._native's functions: numbers, and addresses as numbers.
#pragma once

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

namespace avops {

inline void *address_of(PyObject *number) { return PyLong_AsVoidPtr(number); }

inline int32_t int32_of(PyObject *number) { return static_cast<int32_t>(PyLong_AsLong(number)); }

inline bool expect_arguments(const char *name, Py_ssize_t got, Py_ssize_t expected) {
    if (got == expected) return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, got %zd", name, expected, got);
    return false;
}

}  // namespace avops
