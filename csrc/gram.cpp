// avops: inner products of terms and change, in f64. Contract: avops/kernels/gram/__init__.py.
//
// Eight sums for each pair, one for every eighth element, so that loops vectorise and every level
// of every CPU adds in the same order.
#include "avops.h"
#include "blocks.h"
#include "threads.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

namespace {

using namespace avops;

constexpr int64_t kLanes = 8, kStep = 256;

// One row of f64: λ·Δ of a term, or the change.
AVOPS_INLINE void fill_row(const float *__restrict values, const float *__restrict base, double lam,
                           bool aligned, double *__restrict row, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const float delta = aligned ? values[i] - base[i] : values[i];
        row[i] = lam * static_cast<double>(delta);
    }
}

AVOPS_INLINE void fill_change(const float *__restrict out, const float *__restrict base,
                              double *__restrict row, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        row[i] = static_cast<double>(out[i]) - static_cast<double>(base[i]);
}

// Elements where any row is not finite are 0 in all: x - x is 0 for finite x only.
AVOPS_INLINE void clean(double *rows, int64_t count, int64_t n) {
    alignas(64) double spoilt[kStep];
    for (int64_t i = 0; i < n; ++i) spoilt[i] = 0;
    for (int64_t k = 0; k < count; ++k)
        for (int64_t i = 0; i < n; ++i) spoilt[i] += rows[k * kStep + i] - rows[k * kStep + i];
    for (int64_t k = 0; k < count; ++k)
        for (int64_t i = 0; i < n; ++i)
            rows[k * kStep + i] = spoilt[i] == 0 ? rows[k * kStep + i] : 0;
}

AVOPS_INLINE void add_products(const double *__restrict one, const double *__restrict two,
                               double *__restrict sums, int64_t n) {
    double local[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) local[l] = sums[l];
    for (int64_t i = 0; i < n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) local[l] += one[i + l] * two[i + l];
    for (int64_t l = 0; l < kLanes; ++l) sums[l] = local[l];
}

struct Job {
    avops_input base;
    const avops_term *terms;
    int64_t term_count;
    avops_input out;
};

AVOPS_CLONES
void add_step(const Job &job, int64_t start, int64_t n, double *rows, double *lanes) {
    alignas(64) float base[kStep];
    alignas(64) float values[kStep];
    widen_input(job.base, start, base, n);
    for (int64_t k = 0; k < job.term_count; ++k) {
        const avops_term &term = job.terms[k];
        widen_input(term.values, start, values, n);
        fill_row(values, base, static_cast<double>(term.lam), term.aligned, rows + k * kStep, n);
    }
    widen_input(job.out, start, values, n);
    const int64_t count = job.term_count + 1;
    fill_change(values, base, rows + job.term_count * kStep, n);
    clean(rows, count, n);
    const int64_t whole = (n + kLanes - 1) / kLanes * kLanes;
    for (int64_t k = 0; k < count; ++k)
        for (int64_t i = n; i < whole; ++i) rows[k * kStep + i] = 0;
    for (int64_t one = 0; one < count; ++one)
        for (int64_t two = one; two < count; ++two, lanes += kLanes)
            add_products(rows + one * kStep, rows + two * kStep, lanes, whole);
}

}  // namespace

int32_t avops_gram(avops_input base, const avops_term *terms, int64_t term_count, avops_input out,
                   int64_t n, double *sums) {
    const int64_t rows = term_count + 1, pairs = rows * (rows + 1) / 2;
    std::vector<double> memory;
    try {
        memory.resize(static_cast<size_t>(rows * kStep + pairs * kLanes));
    } catch (const std::bad_alloc &) {
        return 0;
    }
    const DefaultFloatMode mode;
    double *lanes = memory.data() + rows * kStep;
    const Job job = {base, terms, term_count, out};
    for (int64_t start = 0; start < n; start += kStep)
        add_step(job, start, std::min(kStep, n - start), memory.data(), lanes);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        double total = 0;
        for (int64_t l = 0; l < kLanes; ++l) total += lanes[pair * kLanes + l];
        sums[pair] = total;
    }
    return 1;
}
