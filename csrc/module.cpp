// avops: the Python module avops._native, in the limited API of CPython 3.10 (abi3).
//
// Arrays come as addresses and element counts, because that API has no buffer protocol yet; the
// caller (avops/kernels/*/native.py) keeps them alive and has checked them. The GIL is released
// while an operation runs.
#include "arguments.h"
#include "avops.h"
#include "engine_module.h"
#include "forward_module.h"

#include <cstdint>
#include <new>
#include <vector>

namespace {

using namespace avops;

// One tuple (address, dtype, lam, aligned).
bool read_term(PyObject *tuple, avops_term *term) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 4) {
        PyErr_SetString(PyExc_TypeError, "a term is a tuple (address, dtype, lam, aligned)");
        return false;
    }
    term->values.data = address_of(PyTuple_GetItem(tuple, 0));
    term->values.dtype = int32_of(PyTuple_GetItem(tuple, 1));
    term->lam = static_cast<float>(PyFloat_AsDouble(PyTuple_GetItem(tuple, 2)));
    term->aligned = PyObject_IsTrue(PyTuple_GetItem(tuple, 3));
    return !PyErr_Occurred();
}

bool read_terms(PyObject *tuple, std::vector<avops_term> *terms) {
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "terms must be a tuple");
        return false;
    }
    try {
        terms->resize(static_cast<size_t>(PyTuple_Size(tuple)));
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t k = 0; k < terms->size(); ++k)
        if (!read_term(PyTuple_GetItem(tuple, static_cast<Py_ssize_t>(k)), &(*terms)[k]))
            return false;
    return true;
}

// None, or a tuple (key, start).
bool read_rounding(PyObject *given, avops_rounding *rounding) {
    if (given == Py_None) return true;
    if (!PyTuple_Check(given) || PyTuple_Size(given) != 2) {
        PyErr_SetString(PyExc_TypeError, "rounding is None or a tuple (key, start)");
        return false;
    }
    rounding->dither = 1;
    rounding->key = PyLong_AsUnsignedLongLong(PyTuple_GetItem(given, 0));
    rounding->start = PyLong_AsLongLong(PyTuple_GetItem(given, 1));
    return !PyErr_Occurred();
}

PyObject *combine(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("combine", count, 8)) return nullptr;
    const avops_input base = {address_of(args[0]), int32_of(args[1])};
    std::vector<avops_term> terms;
    if (!read_terms(args[2], &terms)) return nullptr;
    const avops_output out = {address_of(args[3]), int32_of(args[4])};
    const int64_t n = PyLong_AsLongLong(args[5]);
    avops_rounding rounding = {0, 0, 0};
    if (!read_rounding(args[6], &rounding)) return nullptr;
    const int32_t threads = int32_of(args[7]);
    if (PyErr_Occurred()) return nullptr;
    avops_combine_counts counts;
    Py_BEGIN_ALLOW_THREADS
    counts = avops_combine(base, terms.data(), static_cast<int64_t>(terms.size()), out, n, rounding,
                           threads);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(LLLL)", static_cast<long long>(counts.nonfinite),
                         static_cast<long long>(counts.unchanged),
                         static_cast<long long>(counts.overflowed),
                         static_cast<long long>(counts.flushed));
}

PyObject *gram(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("gram", count, 7)) return nullptr;
    const avops_input base = {address_of(args[0]), int32_of(args[1])};
    std::vector<avops_term> terms;
    if (!read_terms(args[2], &terms)) return nullptr;
    const avops_input out = {address_of(args[3]), int32_of(args[4])};
    const int64_t n = PyLong_AsLongLong(args[5]);
    double *sums = static_cast<double *>(address_of(args[6]));
    if (PyErr_Occurred()) return nullptr;
    int32_t whole;
    Py_BEGIN_ALLOW_THREADS
    whole = avops_gram(base, terms.data(), static_cast<int64_t>(terms.size()), out, n, sums);
    Py_END_ALLOW_THREADS
    if (!whole) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject *lowrank(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("lowrank", count, 9)) return nullptr;
    const float *left = static_cast<const float *>(address_of(args[0]));
    const float *right = static_cast<const float *>(address_of(args[1]));
    const int64_t rank = PyLong_AsLongLong(args[2]);
    const int64_t columns = PyLong_AsLongLong(args[3]);
    const float scale = static_cast<float>(PyFloat_AsDouble(args[4]));
    const int64_t start = PyLong_AsLongLong(args[5]);
    float *out = static_cast<float *>(address_of(args[6]));
    const int64_t n = PyLong_AsLongLong(args[7]);
    const int32_t threads = int32_of(args[8]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    avops_lowrank(left, right, rank, columns, scale, start, out, n, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *diff(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect_arguments("diff", count, 8)) return nullptr;
    const avops_input base = {address_of(args[0]), int32_of(args[1])};
    const avops_input aligned = {address_of(args[2]), int32_of(args[3])};
    const avops_output out = {address_of(args[4]), int32_of(args[5])};
    const int64_t n = PyLong_AsLongLong(args[6]);
    const int32_t threads = int32_of(args[7]);
    if (PyErr_Occurred()) return nullptr;
    avops_diff_counts counts;
    Py_BEGIN_ALLOW_THREADS
    counts = avops_diff(base, aligned, out, n, threads);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(LL)", static_cast<long long>(counts.nonfinite),
                         static_cast<long long>(counts.zeros));
}

template <class Function>
PyCFunction method(Function function) {
    // Python's own cast: the table stores one function type, the flags say which one it is.
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(function));
}

PyMethodDef methods[] = {
    {"combine", method(combine), METH_FASTCALL,
     "combine(base, dtype, terms, out, dtype, n, rounding, threads) -> "
     "(nonfinite, unchanged, overflowed, flushed)"},
    {"diff", method(diff), METH_FASTCALL,
     "diff(base, dtype, aligned, dtype, out, dtype, n, threads) -> (nonfinite, zeros)"},
    {"gram", method(gram), METH_FASTCALL,
     "gram(base, dtype, terms, out, dtype, n, sums): writes the upper triangle to sums"},
    {"lowrank", method(lowrank), METH_FASTCALL,
     "lowrank(left, right, rank, columns, scale, start, out, n, threads)"},
    {"logprob", method(logprob), METH_FASTCALL,
     "logprob(logits, rows, columns, stride, targets, (multiply, divide, softcap), out, threads)"},
    {"head_scratch", method(head_scratch), METH_FASTCALL, "head_scratch(dim) -> bytes of a thread"},
    {"head_logprob", method(head_logprob), METH_FASTCALL,
     "head_logprob(hidden, dtype, rows, weight, dtype, bias, dtype, vocabulary, dim, targets, "
     "(multiply, divide, softcap), out, path, scratch, threads)"},
    {"swiglu", method(swiglu), METH_FASTCALL, "swiglu(gate, up, dtype, n, threads)"},
    {"packed_bytes", method(packed_bytes), METH_FASTCALL, "packed_bytes(dtype, rows, dim) -> bytes"},
    {"linear", method(linear), METH_FASTCALL,
     "linear(dtype, x, rows, dim, projections, scratch, threads)"},
    {"gated_mlp", method(gated_mlp), METH_FASTCALL,
     "gated_mlp(dtype, x, rows, dim, gate, up, down, scratch, threads)"},
    {"rms_norm", method(rms_norm), METH_FASTCALL,
     "rms_norm(x, weight, dtype, epsilon, rows, n, out, threads)"},
    {"rope", method(rope), METH_FASTCALL, "rope(x, cosine, sine, dtype, rows, heads, size, threads)"},
    {"tree_attention", method(tree_attention), METH_FASTCALL,
     "tree_attention(dtype, query, key, value, out, nodes, heads, group, size, window, scale, nodes, "
     "spans, threads); rows are (address, head, row)"},
    {"engine_start", method(engine_start), METH_FASTCALL,
     "engine_start(inputs, outputs, targets, factors, segments, done, block, together, stride, sample, "
     "direct_from, threads) -> engine, at work"},
    {"engine_poll", method(engine_poll), METH_FASTCALL,
     "engine_poll(engine, seconds) -> (blocks, ended, bytes read): what is written since the last call"},
    {"engine_stop", method(engine_stop), METH_FASTCALL,
     "engine_stop(engine): ends its threads, and waits for them"},
    {"digest", method(digest_of), METH_FASTCALL,
     "digest(bytes) -> the canonical XXH3-128 of 241 bytes or more"},
    {nullptr, nullptr, 0, nullptr},
};

int fill(PyObject *module) {
    if (PyModule_AddIntConstant(module, "ABI", AVOPS_ABI) < 0) return -1;
    if (PyModule_AddIntConstant(module, "HEAD_PATH", avops_head_path()) < 0) return -1;
    if (PyModule_AddIntConstant(module, "AMD", avops_is_amd()) < 0) return -1;
    return PyModule_AddStringConstant(module, "VARIANT", avops_variant());
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void *>(fill)}, {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "avops._native", "avops' native operations; use avops.kernels.", 0,
    methods, slots, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
