// avops: Python's side of a forward pass's operations.
#include "forward_module.h"

#include "avops.h"

#include <exception>
#include <vector>

namespace avops {

namespace {

// One tuple (multiply, divide, softcap).
bool read_logits(PyObject *tuple, avops_logits *rule) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 3) {
        PyErr_SetString(PyExc_TypeError, "a rule is a tuple (multiply, divide, softcap)");
        return false;
    }
    rule->multiply = static_cast<float>(PyFloat_AsDouble(PyTuple_GetItem(tuple, 0)));
    rule->divide = static_cast<float>(PyFloat_AsDouble(PyTuple_GetItem(tuple, 1)));
    rule->softcap = static_cast<float>(PyFloat_AsDouble(PyTuple_GetItem(tuple, 2)));
    return !PyErr_Occurred();
}

// One tuple (address, head, row).
avops_attention_rows read_rows(PyObject *tuple) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 3) {
        PyErr_SetString(PyExc_TypeError, "rows are a tuple (address, head, row)");
        return {nullptr, 0, 0};
    }
    return {address_of(PyTuple_GetItem(tuple, 0)), PyLong_AsLongLong(PyTuple_GetItem(tuple, 1)),
            PyLong_AsLongLong(PyTuple_GetItem(tuple, 2))};
}

// One tuple (weight, bias or 0, out, outputs).
avops_projection read_projection(PyObject *tuple) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 4) {
        PyErr_SetString(PyExc_TypeError, "a projection is a tuple (weight, bias, out, outputs)");
        return {nullptr, nullptr, nullptr, 0};
    }
    return {address_of(PyTuple_GetItem(tuple, 0)), address_of(PyTuple_GetItem(tuple, 1)),
            address_of(PyTuple_GetItem(tuple, 2)), PyLong_AsLongLong(PyTuple_GetItem(tuple, 3))};
}

}  // namespace

PyObject *logprob(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("logprob", count, 8)) return nullptr;
    const float *logits = static_cast<const float *>(address_of(args[0]));
    const int64_t rows = PyLong_AsLongLong(args[1]);
    const int64_t columns = PyLong_AsLongLong(args[2]);
    const int64_t stride = PyLong_AsLongLong(args[3]);
    const int64_t *targets = static_cast<const int64_t *>(address_of(args[4]));
    avops_logits rule;
    if (!read_logits(args[5], &rule)) return nullptr;
    float *out = static_cast<float *>(address_of(args[6]));
    const int32_t threads = int32_of(args[7]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_logprob(logits, rows, columns, stride, targets, rule, out, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *head_scratch(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("head_scratch", count, 1)) return nullptr;
    const int64_t dim = PyLong_AsLongLong(args[0]);
    if (PyErr_Occurred()) return nullptr;
    return PyLong_FromLongLong(avops_head_scratch(dim));
}

PyObject *head_logprob(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("head_logprob", count, 15)) return nullptr;
    const avops_input hidden = {address_of(args[0]), int32_of(args[1])};
    const int64_t rows = PyLong_AsLongLong(args[2]);
    const avops_input weight = {address_of(args[3]), int32_of(args[4])};
    const avops_input bias = {address_of(args[5]), int32_of(args[6])};
    const int64_t vocabulary = PyLong_AsLongLong(args[7]);
    const int64_t dim = PyLong_AsLongLong(args[8]);
    const int64_t *targets = static_cast<const int64_t *>(address_of(args[9]));
    avops_logits rule;
    if (!read_logits(args[10], &rule)) return nullptr;
    float *out = static_cast<float *>(address_of(args[11]));
    const int32_t path = int32_of(args[12]);
    void *scratch = address_of(args[13]);
    const int32_t threads = int32_of(args[14]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_head_logprob(hidden, rows, weight, bias, vocabulary, dim, targets, rule, out, path, scratch,
                       threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *swiglu(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("swiglu", count, 5)) return nullptr;
    void *gate = address_of(args[0]);
    const void *up = address_of(args[1]);
    const int32_t dtype = int32_of(args[2]);
    const int64_t n = PyLong_AsLongLong(args[3]);
    const int32_t threads = int32_of(args[4]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_swiglu(gate, up, dtype, n, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *rms_norm(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("rms_norm", count, 8)) return nullptr;
    const void *x = address_of(args[0]), *weight = address_of(args[1]);
    const int32_t dtype = int32_of(args[2]);
    const float epsilon = static_cast<float>(PyFloat_AsDouble(args[3]));
    const int64_t rows = PyLong_AsLongLong(args[4]), n = PyLong_AsLongLong(args[5]);
    void *out = address_of(args[6]);
    const int32_t threads = int32_of(args[7]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_rms_norm(x, weight, dtype, epsilon, rows, n, out, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *rope(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("rope", count, 8)) return nullptr;
    void *x = address_of(args[0]);
    const void *cosine = address_of(args[1]), *sine = address_of(args[2]);
    const int32_t dtype = int32_of(args[3]);
    const int64_t rows = PyLong_AsLongLong(args[4]), heads = PyLong_AsLongLong(args[5]);
    const int64_t size = PyLong_AsLongLong(args[6]);
    const int32_t threads = int32_of(args[7]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_rope(x, cosine, sine, dtype, rows, heads, size, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *tree_attention(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("tree_attention", count, 14)) return nullptr;
    const int32_t dtype = int32_of(args[0]);
    avops_attention_rows rows[4];
    for (int k = 0; k < 4; ++k) {
        rows[k] = read_rows(args[1 + k]);
        if (PyErr_Occurred()) return nullptr;
    }
    const avops_attention_shape shape = {
        PyLong_AsLongLong(args[5]), PyLong_AsLongLong(args[6]), PyLong_AsLongLong(args[7]),
        PyLong_AsLongLong(args[8]), PyLong_AsLongLong(args[9]),
        static_cast<float>(PyFloat_AsDouble(args[10]))};
    const avops_attention_node *nodes = static_cast<const avops_attention_node *>(address_of(args[11]));
    const int64_t *spans = static_cast<const int64_t *>(address_of(args[12]));
    const int32_t threads = int32_of(args[13]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_tree_attention(dtype, rows[0], rows[1], rows[2], rows[3], shape, nodes, spans, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *packed_bytes(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("packed_bytes", count, 3)) return nullptr;
    const int32_t dtype = int32_of(args[0]);
    const int64_t rows = PyLong_AsLongLong(args[1]), dim = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return nullptr;
    return PyLong_FromLongLong(avops_packed_bytes(dtype, rows, dim));
}

PyObject *linear(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("linear", count, 7)) return nullptr;
    const int32_t dtype = int32_of(args[0]);
    const void *x = address_of(args[1]);
    const int64_t rows = PyLong_AsLongLong(args[2]), dim = PyLong_AsLongLong(args[3]);
    if (!PyTuple_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "projections must be a tuple");
        return nullptr;
    }
    std::vector<avops_projection> projections;
    try {
        projections.resize(static_cast<size_t>(PyTuple_Size(args[4])));
    } catch (const std::exception &) {
        return PyErr_NoMemory();
    }
    for (size_t k = 0; k < projections.size(); ++k) {
        projections[k] = read_projection(PyTuple_GetItem(args[4], static_cast<Py_ssize_t>(k)));
        if (PyErr_Occurred()) return nullptr;
    }
    void *scratch = address_of(args[5]);
    const int32_t threads = int32_of(args[6]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_linear(dtype, x, rows, dim, projections.data(), static_cast<int64_t>(projections.size()),
                 scratch, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *gated_mlp(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("gated_mlp", count, 9)) return nullptr;
    const int32_t dtype = int32_of(args[0]);
    const void *x = address_of(args[1]);
    const int64_t rows = PyLong_AsLongLong(args[2]), dim = PyLong_AsLongLong(args[3]);
    avops_projection projections[3];
    for (int k = 0; k < 3; ++k) {
        projections[k] = read_projection(args[4 + k]);
        if (PyErr_Occurred()) return nullptr;
    }
    void *scratch = address_of(args[7]);
    const int32_t threads = int32_of(args[8]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_gated_mlp(dtype, x, rows, dim, projections[0], projections[1], projections[2], scratch,
                    threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

}  // namespace avops
