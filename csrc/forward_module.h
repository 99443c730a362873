// avops: a forward pass's functions of avops._native, for module.cpp.
#pragma once

#include "arguments.h"

namespace avops {

PyObject *logprob(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *head_scratch(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *head_logprob(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *swiglu(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *rms_norm(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *rope(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *packed_bytes(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *linear(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *gated_mlp(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *tree_attention(PyObject *module, PyObject *const *args, Py_ssize_t count);

}  // namespace avops
