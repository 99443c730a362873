// avops: Python's side of the engine. Plans come as tuples that avops/stream/engine.py makes.
#include "engine_module.h"

#include "engine.h"

#include <exception>
#include <memory>
#include <new>

namespace avops {

namespace {

constexpr const char *kName = "avops._native.engine";

// Reads the items of a tuple one after the other. After a Python error it gives zeros.
class Reader {
  public:
    Reader(PyObject *tuple, const char *what)
        : tuple_(tuple), size_(PyTuple_Check(tuple) ? PyTuple_Size(tuple) : -1) {
        if (size_ < 0 && !PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "%s must be a tuple", what);
    }
    Py_ssize_t size() const { return size_ < 0 ? 0 : size_; }
    bool more() const { return at_ < size_ && !PyErr_Occurred(); }
    PyObject *next() {
        if (PyErr_Occurred()) return Py_None;
        PyObject *item = at_ < size_ ? PyTuple_GetItem(tuple_, at_++) : nullptr;
        if (item == nullptr) PyErr_SetString(PyExc_TypeError, "a tuple of the engine's plan is too short");
        return item == nullptr ? Py_None : item;
    }
    int64_t integer() {
        PyObject *item = next();
        return PyErr_Occurred() ? 0 : PyLong_AsLongLong(item);
    }
    int32_t small() { return static_cast<int32_t>(integer()); }
    float real() {
        PyObject *item = next();
        return PyErr_Occurred() ? 0 : static_cast<float>(PyFloat_AsDouble(item));
    }

  private:
    PyObject *tuple_;
    Py_ssize_t size_, at_ = 0;
};

EngineRange read_range(Reader &from) {
    EngineRange range;
    range.input = from.small(), range.offset = from.integer(), range.dtype = from.small();
    return range;
}

EngineInput read_input(PyObject *tuple) {
    Reader from(tuple, "an input");
    EngineInput input;
    input.fd = from.small(), input.direct = from.small(), input.size = from.integer();
    return input;
}

EngineOutput read_output(PyObject *tuple) {
    Reader from(tuple, "an output");
    EngineOutput output;
    output.size = from.integer();
    PyObject *prefix = from.next();
    char *data;
    Py_ssize_t size;
    if (!PyErr_Occurred() && PyBytes_AsStringAndSize(prefix, &data, &size) == 0)
        output.prefix.assign(data, static_cast<size_t>(size));
    return output;
}

EngineRange read_range_in(Reader &from, const char *what) {
    Reader range(from.next(), what);
    return read_range(range);
}

// (a, b, rank, inner, outer, scale, transposed)
EngineFactors read_factors(PyObject *tuple) {
    Reader from(tuple, "factors");
    EngineFactors factors;
    factors.a = read_range_in(from, "a factor"), factors.b = read_range_in(from, "a factor");
    factors.rank = from.integer(), factors.inner = from.integer(), factors.outer = from.integer();
    factors.scale = from.real(), factors.transposed = from.small();
    return factors;
}

// (values or the factors' number, lams, aligned)
EngineTerm read_term(PyObject *tuple) {
    Reader from(tuple, "a term");
    EngineTerm term;
    PyObject *values = from.next();
    if (!PyErr_Occurred() && PyLong_Check(values)) {
        term.factors = static_cast<int32_t>(PyLong_AsLong(values));
        if (term.factors < 0 && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "factors have a negative number");
    } else {
        Reader range(values, "a range");
        term.values = read_range(range);
    }
    for (Reader lams(from.next(), "lams"); lams.more();) term.lams.push_back(lams.real());
    term.aligned = from.small();
    return term;
}

// (output, offset, count, operation, dtype, first, key or None, base, terms)
EngineSegment read_segment(PyObject *tuple, int64_t number) {
    Reader from(tuple, "a segment");
    EngineSegment segment;
    segment.number = number;
    segment.output = from.small(), segment.offset = from.integer(), segment.count = from.integer();
    segment.operation = from.small(), segment.dtype = from.small(), segment.first = from.integer();
    PyObject *key = from.next();
    if (!PyErr_Occurred() && key != Py_None) {
        segment.rounding.dither = 1;
        segment.rounding.key = PyLong_AsUnsignedLongLong(key);
    }
    segment.base = read_range_in(from, "a base");
    for (Reader terms(from.next(), "terms"); terms.more();) segment.terms.push_back(read_term(terms.next()));
    return segment;
}

bool known(int32_t dtype) { return dtype >= AVOPS_F32 && dtype <= AVOPS_BF16; }

// Whether `count` elements of `size` bytes are in their file.
bool fits(const EnginePlan &plan, const EngineRange &range, int64_t count, int64_t size) {
    if (range.input < 0 || range.input >= static_cast<int32_t>(plan.inputs.size()) || range.offset < 0) return false;
    return count <= (plan.inputs[static_cast<size_t>(range.input)].size - range.offset) / size;
}

bool fits(const EnginePlan &plan, const EngineRange &range, int64_t count) {
    return known(range.dtype) && fits(plan, range, count, range.dtype == AVOPS_F32 ? 4 : 2);
}

// Whether rows * columns of that many elements are `count` at most; neither is more than a file has.
bool holds(const EnginePlan &plan, const EngineFactors &factors) {
    constexpr int64_t most = int64_t{1} << 31;
    if (factors.rank < 1 || factors.rank > most || factors.inner < 1 || factors.inner > most ||
        factors.outer < 1 || factors.outer > most)
        return false;
    return fits(plan, factors.a, factors.rank * factors.inner) && fits(plan, factors.b, factors.rank * factors.outer);
}

bool sound(const EnginePlan &plan, const EngineSegment &segment, const EngineTerm &term, int64_t *columns) {
    if (term.lams.size() != static_cast<size_t>(plan.candidates)) return false;
    if (!term.low_rank()) return fits(plan, term.values, segment.count);
    if (term.factors >= static_cast<int32_t>(plan.factors.size()) || term.aligned) return false;
    const EngineFactors &factors = plan.factors[static_cast<size_t>(term.factors)];
    // Of one segment all have the same columns.
    if (*columns != 0 && *columns != factors.columns()) return false;
    *columns = factors.columns();
    return segment.count <= factors.rows() * factors.columns() - segment.first &&
           (segment.operation == kCombine || segment.operation == kDelta);
}

bool sound(const EnginePlan &plan, const EngineSegment &segment) {
    const int32_t operation = segment.operation;
    if (segment.output < 0 || segment.output >= static_cast<int32_t>(plan.outputs.size())) return false;
    if (segment.count <= 0 || segment.offset < 0 || segment.first < 0) return false;
    if (operation < kCombine || operation > kDelta) return false;
    if ((operation == kDiff || operation == kDelta) && segment.terms.size() != 1) return false;
    if (operation == kCopy ? !segment.terms.empty() || !fits(plan, segment.base, segment.count, 1)
                           : !known(segment.dtype))
        return false;
    if ((operation == kCombine || operation == kDiff) && !fits(plan, segment.base, segment.count)) return false;
    int64_t columns = 0;
    for (const EngineTerm &term : segment.terms)
        if (!sound(plan, segment, term, &columns)) return false;
    return segment.end() <= plan.outputs[static_cast<size_t>(segment.output)].size;
}

bool in_order(const EnginePlan &plan) {
    if (plan.targets.size() != static_cast<size_t>(plan.candidates) * plan.outputs.size()) return false;
    for (const EngineFactors &factors : plan.factors)
        if (!holds(plan, factors)) return false;
    const EngineSegment *before = nullptr;
    for (const EngineSegment &segment : plan.segments) {
        if (!sound(plan, segment)) return false;
        if (before != nullptr && (before->output > segment.output ||
                                  (before->output == segment.output && before->end() > segment.offset)))
            return false;
        before = &segment;
    }
    return plan.block >= kDigestFrom && plan.together > 0 && plan.threads > 0 && plan.stride > 0 &&
           plan.sample > 0 && plan.sample <= plan.stride;
}

// One tuple of descriptors for each candidate, in it one pair for each output.
void read_targets(PyObject *tuple, EnginePlan &plan) {
    for (Reader candidates(tuple, "targets"); candidates.more(); ++plan.candidates)
        for (Reader one(candidates.next(), "a candidate's targets"); one.more();) {
            Reader pair(one.next(), "a target");
            EngineTarget target;
            target.fd = pair.small(), target.direct = pair.small();
            plan.targets.push_back(target);
        }
}

EnginePlan read_plan(PyObject *const *args) {
    EnginePlan plan;
    for (Reader from(args[0], "inputs"); from.more();) plan.inputs.push_back(read_input(from.next()));
    for (Reader from(args[1], "outputs"); from.more();) plan.outputs.push_back(read_output(from.next()));
    read_targets(args[2], plan);
    for (Reader from(args[3], "factors"); from.more();) plan.factors.push_back(read_factors(from.next()));
    for (Reader from(args[4], "segments"); from.more();) {
        Reader pair(from.next(), "a numbered segment");
        const int64_t number = pair.integer();
        plan.segments.push_back(read_segment(pair.next(), number));
    }
    for (Reader from(args[5], "done"); from.more();) {
        Reader one(from.next(), "a block");
        const int32_t output = one.small();
        const int64_t block = one.integer();
        plan.done.emplace_back(output, block, one.small());
    }
    plan.block = PyLong_AsLongLong(args[6]);
    plan.together = PyLong_AsLongLong(args[7]);
    plan.stride = PyLong_AsLongLong(args[8]);
    plan.sample = PyLong_AsLongLong(args[9]);
    plan.direct_from = PyLong_AsLongLong(args[10]);
    plan.threads = static_cast<int>(PyLong_AsLong(args[11]));
    if (PyErr_Occurred()) return plan;
    if (!in_order(plan)) {
        PyErr_SetString(PyExc_ValueError, "the engine's plan is out of order");
        return plan;
    }
    for (size_t i = 0; i < plan.segments.size(); ++i) {
        EngineOutput &output = plan.outputs[static_cast<size_t>(plan.segments[i].output)];
        if (output.last == 0) output.first = i;
        output.last = i + 1;
    }
    return plan;
}

Engine *engine_in(PyObject *capsule) {
    return static_cast<Engine *>(PyCapsule_GetPointer(capsule, kName));
}

void discard(PyObject *capsule) {
    Engine *engine = engine_in(capsule);
    Py_BEGIN_ALLOW_THREADS
    delete engine;
    Py_END_ALLOW_THREADS
}

bool expect(const char *name, Py_ssize_t got, Py_ssize_t expected) {
    if (got == expected) return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, got %zd", name, expected, got);
    return false;
}

// A new reference to a list of (segment, value of an item), or null.
template <class Items, class Make>
PyObject *pairs(const Items &items, Make make) {
    PyObject *list = PyList_New(static_cast<Py_ssize_t>(items.size()));
    for (size_t i = 0; list != nullptr && i < items.size(); ++i) {
        PyObject *pair = Py_BuildValue("(LN)", static_cast<long long>(items[i].first), make(items[i].second));
        if (pair == nullptr || PyList_SetItem(list, static_cast<Py_ssize_t>(i), pair) < 0) {
            Py_DECREF(list);
            return nullptr;
        }
    }
    return list;
}

PyObject *shown(const EngineBlock &block) {
    PyObject *nonfinite =
        pairs(block.nonfinite, [](int64_t count) { return PyLong_FromLongLong(count); });
    PyObject *sums = nonfinite == nullptr ? nullptr : pairs(block.sums, [](const std::vector<double> &gram) {
        const char *data = reinterpret_cast<const char *>(gram.data());
        return PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(gram.size() * sizeof(double)));
    });
    if (sums == nullptr) {
        Py_XDECREF(nonfinite);
        return nullptr;
    }
    return Py_BuildValue("(iiLy#LLLLNN)", block.candidate, block.output, static_cast<long long>(block.number),
                         reinterpret_cast<const char *>(block.digest), Py_ssize_t{16},
                         static_cast<long long>(block.elements),
                         static_cast<long long>(block.counts.unchanged),
                         static_cast<long long>(block.counts.overflowed),
                         static_cast<long long>(block.counts.flushed), nonfinite, sums);
}

}  // namespace

PyObject *engine_start(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect("engine_start", count, 12)) return nullptr;
    try {
        EnginePlan plan = read_plan(args);
        if (PyErr_Occurred()) return nullptr;
        auto engine = std::make_unique<Engine>(std::move(plan));
        PyObject *capsule = PyCapsule_New(engine.get(), kName, discard);
        if (capsule != nullptr) engine.release()->start();
        return capsule;
    } catch (const std::bad_alloc &) {
        return PyErr_NoMemory();
    }
}

PyObject *engine_poll(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect("engine_poll", count, 2)) return nullptr;
    Engine *engine = engine_in(args[0]);
    const double seconds = PyFloat_AsDouble(args[1]);
    if (PyErr_Occurred()) return nullptr;
    std::vector<EngineBlock> blocks;
    bool ended = false;
    int64_t bytes_read = 0;
    Py_BEGIN_ALLOW_THREADS
    blocks = engine->poll(seconds, &ended, &bytes_read);
    Py_END_ALLOW_THREADS
    PyObject *list = PyList_New(static_cast<Py_ssize_t>(blocks.size()));
    for (size_t i = 0; list != nullptr && i < blocks.size(); ++i) {
        PyObject *one = shown(blocks[i]);
        if (one == nullptr || PyList_SetItem(list, static_cast<Py_ssize_t>(i), one) < 0) {
            Py_DECREF(list);
            return nullptr;
        }
    }
    if (list == nullptr) return nullptr;
    return Py_BuildValue("(NOL)", list, ended ? Py_True : Py_False, static_cast<long long>(bytes_read));
}

PyObject *engine_stop(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect("engine_stop", count, 1)) return nullptr;
    Engine *engine = engine_in(args[0]);
    if (engine == nullptr) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    engine->stop();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *digest_of(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (!expect("digest", count, 1)) return nullptr;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0) return nullptr;
    if (size < kDigestFrom) {
        PyErr_Format(PyExc_ValueError, "digest() of %zd bytes, expected %d or more", size,
                     static_cast<int>(kDigestFrom));
        return nullptr;
    }
    uint8_t out[16];
    digest(reinterpret_cast<const uint8_t *>(data), size, out);
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(out), sizeof out);
}

}  // namespace avops
