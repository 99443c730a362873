// avops: the engine's functions of avops._native, for module.cpp.
#pragma once

#include "arguments.h"

namespace avops {

PyObject *engine_start(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *engine_poll(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *engine_stop(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *digest_of(PyObject *module, PyObject *const *args, Py_ssize_t count);

}  // namespace avops
