// avops: combine in one pass, for base, terms and output of one 16-bit dtype, the common case.
//
// Source of the arithmetic: the contract in avops/kernels/combine/__init__.py.
// Nothing but the result goes to memory, and outputs are not examined one by one: the block's extreme
// magnitude tells whether any of them can be infinite, NaN, or zero though its sum is not. Then the
// general path (combine.cpp) computes the block again, and counts.
#pragma once

#include "avops.h"
#include "bf16.h"
#include "blocks.h"

#include <algorithm>
#include <cstring>

// The CPU's own conversions of f16, where the compiler can use them in one function and ask for them.
#if defined(__x86_64__) && (defined(__F16C__) || !defined(AVOPS_NO_CLONES)) && \
    (defined(__clang__) || __GNUC__ >= 11)
#include <immintrin.h>
#define AVOPS_F16C 1
#endif

namespace avops {

// Elements per pass: long enough for loop ends not to show.
constexpr int64_t kFused = 2048;
// Terms of one kind, at most; more take the general path.
constexpr int64_t kFusedTerms = 4;

// ------------------------------------------------------------------------------- bf16
//
// Two neighbours share a 32-bit word: the upper one is a float once the lower half is cleared, the
// lower one once it is shifted up. So lanes are never widened, packed or permuted.

struct Pair {
    float lower, upper;
};

AVOPS_INLINE Pair unpaired(uint32_t word) {
    return {float_of(word << 16), float_of(word & 0xffff0000u)};
}

template <bool kAligned>
AVOPS_INLINE Pair product(uint32_t word, Pair base, float lam) {
    const Pair value = unpaired(word);
    if (!kAligned) return {lam * value.lower, lam * value.upper};
    return {lam * (value.lower - base.lower), lam * (value.upper - base.upper)};
}

AVOPS_INLINE Pair sum(Pair a, Pair b) { return {a.lower + b.lower, a.upper + b.upper}; }

// Dither flushes what is under one ulp of 2^-133, and makes infinite what is above the largest value.
constexpr uint32_t kDitherVanish = 0xffffu;
constexpr int32_t kDitherOverflow = 0x7f7f0001;

// Rounded, but for the lower half, which is dropped afterwards.
template <bool kDither>
AVOPS_INLINE uint32_t raised(uint32_t bits, const Stretch &stretch, uint32_t offset) {
    if (kDither) return bits + (uniform(stretch.index + offset, stretch.one, stretch.two) >> 16);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// Combines n elements, an even number. Returns how many outputs have the bits of the base, or -1 after
// an event: out is then undefined.
template <bool kAligned, bool kDither, int64_t kTerms>
AVOPS_INLINE int64_t fuse_bf16(const avops_term *terms, int64_t start, const byte *from, byte *to,
                               int64_t n, const Stretch &stretch) {
    const stored32 *__restrict origin = reinterpret_cast<const stored32 *>(from);
    stored32 *__restrict out = reinterpret_cast<stored32 *>(to);
    const stored32 *__restrict values[kTerms];
    float lams[kTerms];
    for (int64_t k = 0; k < kTerms; ++k) {
        const byte *data = static_cast<const byte *>(terms[k].values.data);
        values[k] = reinterpret_cast<const stored32 *>(data + start * BF16::size);
        lams[k] = terms[k].lam;
    }
    Extremes extremes;
    uint32_t changed = 0;
    for (int64_t i = 0; i < n / 2; ++i) {
        const uint32_t word = origin[i];
        const Pair base = unpaired(word);
        Pair acc = product<kAligned>(values[0][i], base, lams[0]);
        for (int64_t k = 1; k < kTerms; ++k)
            acc = sum(acc, product<kAligned>(values[k][i], base, lams[k]));
        const Pair total = sum(base, acc);
        const uint32_t lower = bits_of(total.lower), upper = bits_of(total.upper);
        const uint32_t offset = 2 * static_cast<uint32_t>(i);
        const uint32_t result = (raised<kDither>(lower, stretch, offset) >> 16) |
                                (raised<kDither>(upper, stretch, offset + 1) & 0xffff0000u);
        const uint32_t differs = result ^ word;
        changed += (differs & 0xffffu) != 0;
        changed += (differs & 0xffff0000u) != 0;
        extremes.add(lower);
        extremes.add(upper);
        out[i] = result;
    }
    const bool event = kDither ? extremes.event(kDitherVanish, kDitherOverflow)
                               : extremes.event(BF16::vanish, BF16::overflow);
    return event ? -1 : n - static_cast<int64_t>(changed);
}

template <bool kAligned, bool kDither>
AVOPS_INLINE int64_t fuse_bf16(const avops_term *terms, int64_t count, int64_t start,
                               const byte *from, byte *to, int64_t n, const Stretch &stretch) {
    switch (count) {
        case 1: return fuse_bf16<kAligned, kDither, 1>(terms, start, from, to, n, stretch);
        case 2: return fuse_bf16<kAligned, kDither, 2>(terms, start, from, to, n, stretch);
        case 3: return fuse_bf16<kAligned, kDither, 3>(terms, start, from, to, n, stretch);
        default: return fuse_bf16<kAligned, kDither, 4>(terms, start, from, to, n, stretch);
    }
}

// -------------------------------------------------------------------------------- f16

#if defined(AVOPS_F16C)

// As fuse_bf16, for a multiple of 8 elements.
template <bool kAligned, int64_t kTerms>
__attribute__((target("avx2,f16c"))) int64_t fuse_f16(const avops_term *terms, int64_t start,
                                                      const byte *from, byte *to, int64_t n) {
    const byte *values[kTerms];
    __m256 lams[kTerms];
    for (int64_t k = 0; k < kTerms; ++k) {
        values[k] = static_cast<const byte *>(terms[k].values.data) + start * F16::size;
        lams[k] = _mm256_set1_ps(terms[k].lam);
    }
    const __m256i mask = _mm256_set1_epi32(INT32_MAX);
    __m256i largest = _mm256_setzero_si256(), smallest = mask;
    __m128i unchanged = _mm_setzero_si128();
    for (int64_t at = 0; at < n * F16::size; at += 16) {
        const __m128i origin = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + at));
        const __m256 base = _mm256_cvtph_ps(origin);
        __m256 acc = base;
        for (int64_t k = 0; k < kTerms; ++k) {
            __m256 delta = _mm256_cvtph_ps(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(values[k] + at)));
            if (kAligned) delta = _mm256_sub_ps(delta, base);
            const __m256 product = _mm256_mul_ps(lams[k], delta);
            acc = k == 0 ? product : _mm256_add_ps(acc, product);
        }
        const __m256 total = _mm256_add_ps(base, acc);
        const __m128i result = _mm256_cvtps_ph(total, _MM_FROUND_TO_NEAREST_INT);
        const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(total), mask);
        largest = _mm256_max_epi32(largest, magnitude);
        smallest = _mm256_min_epi32(smallest, _mm256_add_epi32(magnitude, mask));
        unchanged = _mm_sub_epi16(unchanged, _mm_cmpeq_epi16(result, origin));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + at), result);
    }
    Extremes extremes;
    alignas(32) int32_t high[8], low[8];
    alignas(16) uint16_t counts[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(high), largest);
    _mm256_store_si256(reinterpret_cast<__m256i *>(low), smallest);
    _mm_store_si128(reinterpret_cast<__m128i *>(counts), unchanged);
    int64_t count = 0;
    for (int i = 0; i < 8; ++i) {
        extremes.largest = std::max(extremes.largest, high[i]);
        extremes.smallest = std::min(extremes.smallest, low[i]);
        count += counts[i];
    }
    return extremes.event(F16::vanish, F16::overflow) ? -1 : count;
}

template <bool kAligned>
int64_t fuse_f16(const avops_term *terms, int64_t count, int64_t start, const byte *from, byte *to,
                 int64_t n) {
    switch (count) {
        case 1: return fuse_f16<kAligned, 1>(terms, start, from, to, n);
        case 2: return fuse_f16<kAligned, 2>(terms, start, from, to, n);
        case 3: return fuse_f16<kAligned, 3>(terms, start, from, to, n);
        default: return fuse_f16<kAligned, 4>(terms, start, from, to, n);
    }
}

inline bool converts_f16() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

#else

template <bool kAligned>
int64_t fuse_f16(const avops_term *, int64_t, int64_t, const byte *, byte *, int64_t) {
    return -1;
}

inline bool converts_f16() { return false; }

#endif

// ------------------------------------------------------------------------------ choice

// Elements that a pass takes at a time; 0 where the general path has to serve.
inline int64_t fused_step(const Combine &job) {
    const int32_t dtype = job.base.dtype;
    bool fits = job.out.dtype == dtype && job.term_count > 0 && job.term_count <= kFusedTerms;
    for (int64_t k = 0; fits && k < job.term_count; ++k)
        fits = job.terms[k].values.dtype == dtype && !job.terms[k].aligned == !job.terms[0].aligned;
    if (!fits) return 0;
    if (dtype == AVOPS_BF16) return 2;
    return dtype == AVOPS_F16 && !job.rounding.dither && converts_f16() ? 8 : 0;
}

AVOPS_INLINE int64_t fuse(const Combine &job, int64_t start, const byte *from, byte *to, int64_t n,
                          const Stretch &stretch) {
    const avops_term *terms = job.terms;
    const int64_t count = job.term_count;
    const bool aligned = terms[0].aligned != 0;
    if (job.base.dtype == AVOPS_F16)
        return aligned ? fuse_f16<true>(terms, count, start, from, to, n)
                       : fuse_f16<false>(terms, count, start, from, to, n);
    if (job.rounding.dither)
        return aligned ? fuse_bf16<true, true>(terms, count, start, from, to, n, stretch)
                       : fuse_bf16<false, true>(terms, count, start, from, to, n, stretch);
    return aligned ? fuse_bf16<true, false>(terms, count, start, from, to, n, stretch)
                   : fuse_bf16<false, false>(terms, count, start, from, to, n, stretch);
}

// Combines as many of n <= kFused elements as make whole steps, and returns how many these are; or 0,
// with nothing changed, where the general path has to count or the hash changes its words.
AVOPS_INLINE int64_t combine_fused(const Combine &job, int64_t step, int64_t start, int64_t n,
                                   avops_combine_counts &counts) {
    const int64_t whole = n - n % step;
    Stretch stretch = {0, 0, 0};
    if (job.rounding.dither) {
        const uint64_t index = static_cast<uint64_t>(job.rounding.start + start);
        if (left_in_stretch(index) < whole) return 0;
        stretch = stretch_of(job.rounding.key, index);
    }
    const byte *from = static_cast<const byte *>(job.base.data) + start * 2;
    byte *to = static_cast<byte *>(job.out.data) + start * 2;
    alignas(64) byte copy[kFused * 2];
    const bool in_place = from == to;
    if (in_place) from = static_cast<byte *>(std::memcpy(copy, from, static_cast<size_t>(whole) * 2));
    const int64_t unchanged = fuse(job, start, from, to, whole, stretch);
    if (unchanged < 0) {
        if (in_place) std::memcpy(to, copy, static_cast<size_t>(whole) * 2);
        return 0;
    }
    counts.unchanged += unchanged;
    return whole;
}

}  // namespace avops
