// avops: bf16, f16 and f32 bit patterns <-> float.
//
// Widening is exact. Narrowing rounds to nearest, ties to even, keeps subnormals, overflows to
// infinity, and turns every NaN into the one positive quiet NaN without payload (bf16 0x7fc0,
// f16 0x7e00, f32 0x7fc00000): processors disagree about the sign and payload of a NaN, so only a
// fixed one is the same on every backend.
// Nothing here branches, so that loops over these functions vectorise. 16-bit patterns travel in
// the low half of a uint32_t, so that all lanes of a loop have one width.
// Reference: avops/kernels/rounding.py.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "avops computes on little-endian arrays in place: it builds for little-endian machines only"
#endif
#if defined(__FAST_MATH__)
#error "avops is bit-exact: build without -ffast-math"
#endif

#define AVOPS_INLINE inline __attribute__((always_inline))

namespace avops {

static_assert(sizeof(float) == 4, "float must be IEEE binary32");

// Storage at any byte alignment, aliasing anything.
typedef uint16_t stored16 __attribute__((aligned(1), may_alias));
typedef uint32_t stored32 __attribute__((aligned(1), may_alias));

AVOPS_INLINE uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

AVOPS_INLINE float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

// The bits of |x|. Signed: baseline x86 has no unsigned comparison of vectors.
AVOPS_INLINE int32_t magnitude_of(float x) { return static_cast<int32_t>(bits_of(x) & 0x7fffffffu); }

AVOPS_INLINE uint32_t select(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

// One type per dtype.
// magnitude: the bits of a pattern without its sign; infinity: those of infinity; nan: the NaN.
// overflow: the magnitude_of() from which on the result is infinite or NaN.
// vanish: the largest magnitude_of() that rounds to zero.
// round() is narrowing for everything but NaN; exact() the same for what was widened from T. dither() rounds up with the probability of what is
// dropped, by the 32 uniform bits r: for one r it is monotone, and it keeps what is exact.

struct F32 {
    static constexpr int64_t size = 4;
    static constexpr uint32_t magnitude = 0x7fffffffu, infinity = 0x7f800000u, nan = 0x7fc00000u;
    static constexpr int32_t overflow = 0x7f800000;
    static constexpr uint32_t vanish = 0;
    typedef stored32 stored;

    static AVOPS_INLINE float widen(uint32_t u) { return float_of(u); }
    static AVOPS_INLINE uint32_t round(float x) { return bits_of(x); }
    static AVOPS_INLINE uint32_t exact(float x) { return bits_of(x); }
    static AVOPS_INLINE uint32_t dither(float x, uint32_t) { return bits_of(x); }
};

struct BF16 {
    static constexpr int64_t size = 2;
    static constexpr uint32_t magnitude = 0x7fffu, infinity = 0x7f80u, nan = 0x7fc0u;
    static constexpr int32_t overflow = 0x7f7f8000;  // half an ulp above the largest finite value
    static constexpr uint32_t vanish = 0x8000u;
    typedef stored16 stored;

    static AVOPS_INLINE float widen(uint32_t h) { return float_of(h << 16); }
    static AVOPS_INLINE uint32_t round(float x) {
        const uint32_t u = bits_of(x);
        // Adding just under half an ulp, plus one when the last kept bit is odd, sends ties to
        // even; a carry out of the significand moves on to the next exponent, or to infinity.
        return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    }
    static AVOPS_INLINE uint32_t exact(float x) { return bits_of(x) >> 16; }
    static AVOPS_INLINE uint32_t dither(float x, uint32_t r) {
        return (bits_of(x) + (r >> 16)) >> 16;
    }
};

struct F16 {
    static constexpr int64_t size = 2;
    static constexpr uint32_t magnitude = 0x7fffu, infinity = 0x7c00u, nan = 0x7e00u;
    static constexpr int32_t overflow = 0x477ff000;  // 65520
    static constexpr uint32_t vanish = 0x33000000u;  // 2^-25
    typedef stored16 stored;

    static AVOPS_INLINE float widen(uint32_t h) {
        const int32_t m = static_cast<int32_t>(h & magnitude);
        // The exponent's bias goes from 15 to 127; infinity and NaN take that step twice, to 255.
        const uint32_t step = 112u << 23;
        const uint32_t normal =
            (static_cast<uint32_t>(m) << 13) + step + select(m >= 0x7c00, step, 0u);
        // A subnormal is less than 2^10 units of 2^-24: conversion and product are exact.
        const uint32_t subnormal = bits_of(static_cast<float>(m) * 0x1p-24f);
        return float_of(((h & 0x8000u) << 16) | select(m < 0x0400, subnormal, normal));
    }
    static AVOPS_INLINE uint32_t round(float x) {
        const int32_t m = magnitude_of(x);
        const uint32_t v = static_cast<uint32_t>(m);
        // As for bf16; 13 bits are dropped, and the exponent's bias goes from 127 to 15.
        const uint32_t normal = (v - (112u << 23) + 0xfffu + ((v >> 13) & 1u)) >> 13;
        // Below 2^-14 results are multiples of 2^-24, the ulp of [0.5, 1): the sum does the
        // rounding and leaves the number of units in its low bits.
        const uint32_t subnormal = bits_of(float_of(v) + 0.5f) - 0x3f000000u;
        const uint32_t finite = select(m < 0x38800000, subnormal, normal);
        return ((bits_of(x) >> 16) & 0x8000u) | select(m >= overflow, infinity, finite);
    }
    static AVOPS_INLINE uint32_t exact(float x) { return round(x); }
    static AVOPS_INLINE uint32_t dither(float x, uint32_t r) {
        const int32_t m = magnitude_of(x);
        const uint32_t u = r >> 19;
        const uint32_t normal = (static_cast<uint32_t>(m) - (112u << 23) + u) >> 13;
        // Units of 2^-37, an ulp of 2^-24 having 2^13 of them; below 2^-14 all are under 2^23.
        const float small = float_of(static_cast<uint32_t>(m < 0x38800000 ? m : 0x38800000));
        const uint32_t units = static_cast<uint32_t>(static_cast<int32_t>(small * 0x1p37f));
        const uint32_t subnormal = (units + u) >> 13;
        const uint32_t finite = select(m < 0x38800000, subnormal, normal);
        return ((bits_of(x) >> 16) & 0x8000u) | select(m >= 0x47800000, infinity, finite);
    }
};

// 32 uniform bits for every index: a mixer of two multiplications, so that it vectorises (constants:
// C. Wellons, "lowbias32"). one, two: the words of the index's stretch of 2^32.
AVOPS_INLINE uint32_t uniform(uint32_t index, uint32_t one, uint32_t two) {
    uint32_t x = index ^ one;
    x = (x ^ (x >> 16)) * 0x7feb352du + two;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// index: the low half of an element's; one, two: the words of the stretch it is in.
struct Stretch {
    uint32_t index, one, two;
};

// The words come from splitmix64's finaliser.
inline Stretch stretch_of(uint64_t key, uint64_t index) {
    uint64_t x = key + ((index >> 32) + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return {static_cast<uint32_t>(index), static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32)};
}

inline int64_t left_in_stretch(uint64_t index) {
    return static_cast<int64_t>((uint64_t{1} << 32) - (index & 0xffffffffu));
}

// The bits of x, with the one NaN for any.
AVOPS_INLINE uint32_t quiet(float x) {
    return select(magnitude_of(x) > 0x7f800000, F32::nan, bits_of(x));
}

template <class T>
AVOPS_INLINE uint32_t narrow(float x) {
    return select(magnitude_of(x) > 0x7f800000, T::nan, T::round(x));
}

}  // namespace avops
