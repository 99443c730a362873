// avops: diff in plain C++ loops that compilers vectorise.
//
// Source of the arithmetic: the contract in avops/kernels/diff/__init__.py.
// Arrays: flat, n elements each, any mix of f32, f16 and bf16, any byte alignment.
#include "avops.h"
#include "bf16.h"
#include "blocks.h"
#include "threads.h"

#include <algorithm>
#include <atomic>

namespace {

using namespace avops;

struct Diff {
    avops_input base;
    avops_input aligned;
    avops_output out;
};

template <class T>
AVOPS_INLINE void store_difference(const Diff &job, int64_t start, const float *__restrict base,
                                   const float *__restrict aligned, int64_t n,
                                   avops_diff_counts &counts) {
    byte *to = static_cast<byte *>(job.out.data) + start * T::size;
    typename T::stored *__restrict out = reinterpret_cast<typename T::stored *>(to);
    uint32_t nonfinite = 0, zeros = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = narrow<T>(aligned[i] - base[i]);
        nonfinite += (bits & T::infinity) == T::infinity;
        zeros += (bits & T::magnitude) == 0;
        out[i] = static_cast<typename T::stored>(bits);
    }
    counts.nonfinite += nonfinite;
    counts.zeros += zeros;
}

AVOPS_CLONES
avops_diff_counts diff_range(const Diff &job, int64_t first, int64_t last) {
    alignas(64) float base[kBlock];
    alignas(64) float aligned[kBlock];
    avops_diff_counts counts = {0, 0};
    for (int64_t start = first; start < last; start += kBlock) {
        const int64_t n = std::min(kBlock, last - start);
        widen_input(job.base, start, base, n);
        widen_input(job.aligned, start, aligned, n);
        switch (job.out.dtype) {
            case AVOPS_F32: store_difference<F32>(job, start, base, aligned, n, counts); break;
            case AVOPS_F16: store_difference<F16>(job, start, base, aligned, n, counts); break;
            default: store_difference<BF16>(job, start, base, aligned, n, counts); break;
        }
    }
    return counts;
}

}  // namespace

avops_diff_counts avops_diff(avops_input base, avops_input aligned, avops_output out, int64_t n,
                             int32_t threads) {
    const Diff job = {base, aligned, out};
    std::atomic<int64_t> nonfinite{0}, zeros{0};
    split(n, kBlock, kBlock * kBlocksPerThread, threads, [&](int64_t first, int64_t last) {
        const DefaultFloatMode mode;
        const avops_diff_counts counts = diff_range(job, first, last);
        nonfinite += counts.nonfinite;
        zeros += counts.zeros;
    });
    return {nonfinite, zeros};
}
