// avops: what the loops over blocks of elements share.
#pragma once

#include "avops.h"
#include "bf16.h"

#include <algorithm>
#include <cstdint>

namespace avops {

typedef unsigned char byte;

// Elements per block: the two f32 buffers take 4 KiB. Shorter blocks overlap the reading of several
// streams better, longer ones spend less on loop ends; 256 to 1024 differ by 10 %.
constexpr int64_t kBlock = 512;
// Blocks per thread, at least: they take about 180 us (three f32 terms on bf16, AVX-512). A further
// thread costs 20 to 100 us, with what it takes to bring the data to another core's cache.
constexpr int64_t kBlocksPerThread = 1024;

template <class T>
AVOPS_INLINE void widen_block(const byte *from, float *__restrict to, int64_t n) {
    const typename T::stored *values = reinterpret_cast<const typename T::stored *>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T::widen(values[i]);
}

AVOPS_INLINE void widen_input(avops_input input, int64_t start, float *__restrict to, int64_t n) {
    const byte *from = static_cast<const byte *>(input.data);
    switch (input.dtype) {
        case AVOPS_F32: widen_block<F32>(from + start * F32::size, to, n); break;
        case AVOPS_F16: widen_block<F16>(from + start * F16::size, to, n); break;
        default: widen_block<BF16>(from + start * BF16::size, to, n); break;
    }
}

// The largest and the smallest magnitude of f32 sums, zeros left out of the smallest. With them a block
// shows whether any of its results can be infinite, NaN, or zero though its sum is not.
struct Extremes {
    int32_t largest = 0;
    // INT32_MIN stands for 1; zero, which is no event, comes last. Signed, as in magnitude_of.
    int32_t smallest = INT32_MAX;

    AVOPS_INLINE void add(uint32_t bits) {
        const uint32_t magnitude = bits & 0x7fffffffu;
        largest = std::max(largest, static_cast<int32_t>(magnitude));
        smallest = std::min(smallest, static_cast<int32_t>(magnitude + 0x7fffffffu));
    }
    // Whether any magnitude is in 1 .. vanish, or is overflow or more.
    AVOPS_INLINE bool event(uint32_t vanish, int32_t overflow) const {
        return largest >= overflow || smallest < INT32_MIN + static_cast<int32_t>(vanish);
    }
};

// A combination, as the native code sees it.
struct Combine {
    avops_input base;
    const avops_term *terms;
    int64_t term_count;
    avops_output out;
    avops_rounding rounding;
};

// Its first n elements, on the calling thread, whose floating-point mode is the default one.
avops_combine_counts combine_part(const Combine &job, int64_t n);

}  // namespace avops
