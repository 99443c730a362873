// avops: bf16, f16 and f32 bit patterns <-> float.
//
// Widening is exact. Narrowing rounds to nearest, ties to even, keeps subnormals, overflows to
// infinity, and turns every NaN into the one positive quiet NaN without payload (bf16 0x7fc0,
// f16 0x7e00, f32 0x7fc00000): hardware disagrees about NaN signs and payloads, so only a fixed
// one is the same on every backend.
// Nothing here branches, so that loops over these functions vectorise. 16-bit patterns travel in
// the low half of a uint32_t: all lanes of a loop have one width.
// Reference: avops/kernels/rounding.py.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "avops stores little-endian arrays and computes on them in place: little-endian machines only"
#endif
#if defined(__FAST_MATH__)
#error "avops is bit-exact: build without -ffast-math"
#endif
static_assert(sizeof(float) == 4, "float must be IEEE binary32");

#define AVOPS_INLINE inline __attribute__((always_inline))

namespace avops {

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

AVOPS_INLINE uint32_t select(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

AVOPS_INLINE bool is_nan(float x) {
    return static_cast<int32_t>(bits_of(x) & 0x7fffffffu) > 0x7f800000;
}

// One type per dtype. magnitude: the bits of a pattern without its sign; infinity: those of infinity.
// overflow: the f32 magnitude from which on the rounded value is not finite.
// round() is right below that; narrow() everywhere.

struct F32 {
    static constexpr int64_t size = 4;
    static constexpr uint32_t magnitude = 0x7fffffffu, infinity = 0x7f800000u;
    static constexpr int32_t overflow = 0x7f800000;
    typedef stored32 stored;

    static AVOPS_INLINE float widen(uint32_t u) { return float_of(u); }
    static AVOPS_INLINE uint32_t round(float x) { return bits_of(x); }
    static AVOPS_INLINE uint32_t narrow(float x) {
        return select(is_nan(x), 0x7fc00000u, round(x));
    }
};

struct BF16 {
    static constexpr int64_t size = 2;
    static constexpr uint32_t magnitude = 0x7fffu, infinity = 0x7f80u;
    static constexpr int32_t overflow = 0x7f7f8000;
    typedef stored16 stored;

    static AVOPS_INLINE float widen(uint32_t h) { return float_of(h << 16); }
    static AVOPS_INLINE uint32_t round(float x) {
        const uint32_t u = bits_of(x);
        // Adding just under half an ulp, plus one when the last kept bit is odd: ties go to even,
        // and a carry out of the significand moves on to the next exponent, in the end to infinity.
        return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    }
    static AVOPS_INLINE uint32_t narrow(float x) { return select(is_nan(x), 0x7fc0u, round(x)); }
};

struct F16 {
    static constexpr int64_t size = 2;
    static constexpr uint32_t magnitude = 0x7fffu, infinity = 0x7c00u;
    static constexpr int32_t overflow = 0x477ff000;  // 65520
    typedef stored16 stored;

    static AVOPS_INLINE float widen(uint32_t h) {
        const int32_t m = static_cast<int32_t>(h & magnitude);
        // Exponent bias 15 -> 127; infinity and NaN (exponent 31) -> 255 by the same step again.
        const uint32_t step = 112u << 23;
        const uint32_t normal =
            (static_cast<uint32_t>(m) << 13) + step + select(m >= 0x7c00, step, 0u);
        // A subnormal is a whole number below 2^10 of units 2^-24: conversion and product are exact.
        const uint32_t subnormal = bits_of(static_cast<float>(m) * 0x1p-24f);
        return float_of(((h & 0x8000u) << 16) | select(m < 0x0400, subnormal, normal));
    }
    static AVOPS_INLINE uint32_t round(float x) {
        const uint32_t u = bits_of(x);
        const uint32_t m = u & 0x7fffffffu;
        // As for bf16, with 13 bits dropped and the exponent bias 127 -> 15.
        const uint32_t normal = (m - (112u << 23) + 0xfffu + ((m >> 13) & 1u)) >> 13;
        // Below 2^-14 results are multiples of 2^-24, the ulp of [0.5, 1): the f32 sum does the
        // rounding, and the count of units is left in its low bits.
        const uint32_t subnormal = bits_of(float_of(m) + 0.5f) - 0x3f000000u;
        const bool is_subnormal = static_cast<int32_t>(m) < 0x38800000;
        return ((u >> 16) & 0x8000u) | select(is_subnormal, subnormal, normal);
    }
    static AVOPS_INLINE uint32_t narrow(float x) {
        const uint32_t u = bits_of(x);
        const bool infinite = static_cast<int32_t>(u & 0x7fffffffu) >= overflow;
        const uint32_t h = select(infinite, ((u >> 16) & 0x8000u) | infinity, round(x));
        return select(is_nan(x), 0x7e00u, h);
    }
};

}  // namespace avops
