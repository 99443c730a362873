// avops: combine in plain C++ loops that compilers vectorise.
//
// Source of the arithmetic: the contract in avops/kernels/combine/__init__.py.
// Arrays: flat, n elements each, any mix of f32, f16 and bf16, any byte alignment.
//
// The general path goes in blocks that stay in the L1 cache: widen the base to f32, add term after
// term to an f32 accumulator, then add base and accumulator, round and store. Any mix of dtypes and
// kinds runs through a few dozen short loops instead of one loop per mix, and an output block may
// replace the base block it came from, which has been read by then. Common mixes: fused.h.
#include "avops.h"
#include "bf16.h"
#include "blocks.h"
#include "fused.h"
#include "threads.h"

#include <algorithm>
#include <atomic>

namespace {

using namespace avops;

template <class T, bool kAligned, bool kFirst>
AVOPS_INLINE void add_block(const byte *from, const float *__restrict base, float lam,
                            float *__restrict acc, int64_t n) {
    const typename T::stored *values = reinterpret_cast<const typename T::stored *>(from);
    for (int64_t i = 0; i < n; ++i) {
        const float value = T::widen(values[i]);
        const float delta = kAligned ? value - base[i] : value;
        const float product = lam * delta;
        acc[i] = kFirst ? product : acc[i] + product;
    }
}

template <class T>
AVOPS_INLINE void add_term(const avops_term &term, int64_t start, bool first,
                           const float *__restrict base, float *__restrict acc, int64_t n) {
    const byte *from = static_cast<const byte *>(term.values.data) + start * T::size;
    if (term.aligned) {
        if (first) add_block<T, true, true>(from, base, term.lam, acc, n);
        else add_block<T, true, false>(from, base, term.lam, acc, n);
    } else {
        if (first) add_block<T, false, true>(from, base, term.lam, acc, n);
        else add_block<T, false, false>(from, base, term.lam, acc, n);
    }
}

// Rounds base + acc as if no result overflowed, vanished or were NaN; returns whether that was so.
// Counts inside a block stay in 32 bits, the width of the other lanes. kSame: base is of T too.
template <class T, bool kSame>
AVOPS_INLINE bool store_plain(const float *__restrict base, const float *__restrict acc,
                              byte *__restrict to, int64_t n, avops_combine_counts &counts) {
    typename T::stored *out = reinterpret_cast<typename T::stored *>(to);
    Extremes extremes;
    uint32_t unchanged = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float sum = base[i] + acc[i];
        const uint32_t bits = T::round(sum);
        extremes.add(bits_of(sum));
        unchanged += bits == (kSame ? T::exact(base[i]) : T::round(base[i]));
        out[i] = static_cast<typename T::stored>(bits);
    }
    if (extremes.event(T::vanish, T::overflow)) return false;
    counts.unchanged += unchanged;
    return true;
}

// One element, counted.
template <class T>
struct Tally {
    uint32_t nonfinite = 0, unchanged = 0, overflowed = 0, flushed = 0;

    AVOPS_INLINE void add(float base, float sum, uint32_t bits) {
        const bool infinite = (bits & T::infinity) == T::infinity;
        nonfinite += infinite;
        unchanged += bits == narrow<T>(base);
        overflowed += infinite & (magnitude_of(sum) < 0x7f800000);
        flushed += ((bits & T::magnitude) == 0) & (magnitude_of(sum) != 0);
    }
    AVOPS_INLINE void into(avops_combine_counts &counts) const {
        counts.nonfinite += nonfinite;
        counts.unchanged += unchanged;
        counts.overflowed += overflowed;
        counts.flushed += flushed;
    }
};

template <class T>
AVOPS_INLINE void store_counted(const float *__restrict base, const float *__restrict acc,
                                byte *__restrict to, int64_t n, avops_combine_counts &counts) {
    typename T::stored *out = reinterpret_cast<typename T::stored *>(to);
    Tally<T> tally;
    for (int64_t i = 0; i < n; ++i) {
        const float sum = base[i] + acc[i];
        const uint32_t bits = narrow<T>(sum);
        tally.add(base[i], sum, bits);
        out[i] = static_cast<typename T::stored>(bits);
    }
    tally.into(counts);
}

// n elements of one stretch.
template <class T>
AVOPS_INLINE void store_dithered(const float *__restrict base, const float *__restrict sums,
                                 byte *__restrict to, int64_t n, Stretch stretch,
                                 avops_combine_counts &counts) {
    typename T::stored *out = reinterpret_cast<typename T::stored *>(to);
    Tally<T> tally;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t index = stretch.index + static_cast<uint32_t>(i);
        const uint32_t r = uniform(index, stretch.one, stretch.two);
        const bool nan = magnitude_of(sums[i]) > 0x7f800000;
        const uint32_t bits = select(nan, T::nan, T::dither(sums[i], r));
        tally.add(base[i], sums[i], bits);
        out[i] = static_cast<typename T::stored>(bits);
    }
    tally.into(counts);
}

template <class T>
AVOPS_INLINE void dither(const Combine &job, int64_t start, const float *__restrict base,
                         float *__restrict acc, int64_t n, avops_combine_counts &counts) {
    for (int64_t i = 0; i < n; ++i) acc[i] = job.term_count ? base[i] + acc[i] : base[i];
    byte *to = static_cast<byte *>(job.out.data) + start * T::size;
    for (int64_t done = 0; done < n;) {
        const uint64_t index = static_cast<uint64_t>(job.rounding.start + start + done);
        const int64_t part = std::min(n - done, left_in_stretch(index));
        store_dithered<T>(base + done, acc + done, to + done * T::size, part,
                          stretch_of(job.rounding.key, index), counts);
        done += part;
    }
}

template <class T>
AVOPS_INLINE void store_base(const float *__restrict base, byte *__restrict to, int64_t n,
                             avops_combine_counts &counts) {
    typename T::stored *out = reinterpret_cast<typename T::stored *>(to);
    Tally<T> tally;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = narrow<T>(base[i]);
        tally.add(base[i], base[i], bits);
        out[i] = static_cast<typename T::stored>(bits);
    }
    tally.into(counts);
}

template <class T>
AVOPS_INLINE void store(const Combine &job, int64_t start, const float *__restrict base,
                        float *__restrict acc, int64_t n, avops_combine_counts &counts) {
    byte *to = static_cast<byte *>(job.out.data) + start * T::size;
    if (job.rounding.dither) return dither<T>(job, start, base, acc, n, counts);
    if (job.term_count == 0) return store_base<T>(base, to, n, counts);
    const bool plain = job.base.dtype == job.out.dtype
                           ? store_plain<T, true>(base, acc, to, n, counts)
                           : store_plain<T, false>(base, acc, to, n, counts);
    if (!plain) store_counted<T>(base, acc, to, n, counts);
}

// The general path, for n <= kBlock elements.
AVOPS_INLINE void combine_block(const Combine &job, int64_t start, int64_t n,
                                avops_combine_counts &counts) {
    alignas(64) float base[kBlock];
    alignas(64) float acc[kBlock];
    widen_input(job.base, start, base, n);
    for (int64_t k = 0; k < job.term_count; ++k) {
        const avops_term &term = job.terms[k];
        switch (term.values.dtype) {
            case AVOPS_F32: add_term<F32>(term, start, k == 0, base, acc, n); break;
            case AVOPS_F16: add_term<F16>(term, start, k == 0, base, acc, n); break;
            default: add_term<BF16>(term, start, k == 0, base, acc, n); break;
        }
    }
    switch (job.out.dtype) {
        case AVOPS_F32: store<F32>(job, start, base, acc, n, counts); break;
        case AVOPS_F16: store<F16>(job, start, base, acc, n, counts); break;
        default: store<BF16>(job, start, base, acc, n, counts); break;
    }
}

AVOPS_CLONES
avops_combine_counts combine_range(const Combine &job, int64_t first, int64_t last) {
    avops_combine_counts counts = {0, 0, 0, 0};
    const int64_t step = fused_step(job);
    for (int64_t start = first; start < last;) {
        const int64_t end = step ? std::min(start + kFused, last) : last;
        if (step) start += combine_fused(job, step, start, end - start, counts);
        for (; start < end; start += kBlock)
            combine_block(job, start, std::min(kBlock, end - start), counts);
        start = end;
    }
    return counts;
}

}  // namespace

namespace avops {

avops_combine_counts combine_part(const Combine &job, int64_t n) { return combine_range(job, 0, n); }

}  // namespace avops

avops_combine_counts avops_combine(avops_input base, const avops_term *terms, int64_t term_count,
                                   avops_output out, int64_t n, avops_rounding rounding,
                                   int32_t threads) {
    const Combine job = {base, terms, term_count, out, rounding};
    std::atomic<int64_t> nonfinite{0}, unchanged{0}, overflowed{0}, flushed{0};
    split(n, kBlock, kBlock * kBlocksPerThread, threads, [&](int64_t first, int64_t last) {
        const DefaultFloatMode mode;
        const avops_combine_counts counts = combine_range(job, first, last);
        nonfinite += counts.nonfinite;
        unchanged += counts.unchanged;
        overflowed += counts.overflowed;
        flushed += counts.flushed;
    });
    return {nonfinite, unchanged, overflowed, flushed};
}

const char *avops_variant(void) {
#if defined(AVOPS_HAS_CLONES)
    // Features stand for the levels: not every compiler that clones knows the levels' names here.
    if (__builtin_cpu_supports("avx512bw")) return "AVX-512";
    if (__builtin_cpu_supports("avx2")) return "AVX2";
    return "SSE2";
#else
    return "generic";
#endif
}
