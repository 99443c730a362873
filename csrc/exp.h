// avops: exp, log, tanh and silu in plain C++, so that loops over them vectorise and give the same bits on
// every machine: each product and sum is rounded once, no FMA (the build says -ffp-contract=off).
//
// Arguments are cut to |r| <= ln 2 / 2 with ln 2 in two parts, the first short enough that n * kLn2High
// is exact (Cody and Waite). Errors are measured by tests/kernels/test_exp.py, over dense sweeps.
#pragma once

#include "bf16.h"

#include <cstdint>
#include <cstring>
#include <limits>

namespace avops {

constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
// Added to |x| < 2^22 it leaves the nearest whole number, ties to even, in the low bits.
constexpr float kWhole = 0x1.8p+23f;
// e^x below this is 0 here: results stay normal.
constexpr float kLeastExponent = -87.0f;

// e^r - 1 for |r| <= 0.3472: r + r^2 * q(r), q minimax to 2^-28 of e^r (Remez).
AVOPS_INLINE float exp_minus_one_near_zero(float r) {
    float q = 0x1.6a2286p-10f;
    q = q * r + 0x1.123ae6p-7f;
    q = q * r + 0x1.5558f8p-5f;
    q = q * r + 0x1.55549p-3f;
    q = q * r + 0x1.fffffcp-2f;
    return r + (r * r) * q;
}

// The nearest whole n to x / ln 2, |x| <= 2^21; power is 2^n, wrong where n is not in -126 .. 127.
AVOPS_INLINE float reduce(float x, float *power) {
    const float shifted = x * kLog2E + kWhole;
    const float n = shifted - kWhole;
    *power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
    return (x - n * kLn2High) - n * kLn2Low;
}

// e^x for x <= 0: within 1 ulp, 1 for 0, 0 below kLeastExponent, NaN for NaN.
AVOPS_INLINE float exp_of_negative(float x) {
    float power;
    const float r = reduce(x, &power);
    const float value = (1.0f + exp_minus_one_near_zero(r)) * power;
    return x < kLeastExponent ? 0.0f : value;
}

// x / (1 + e^-x), with e = e^-|x|: as x * (1 / (1 + e)), or below 0 as x * (e / (1 + e)). Within 6
// roundings for x >= -87, 0 below; NaN for NaN and -infinity.
AVOPS_INLINE float silu(float x) {
    const float e = exp_of_negative(-float_of(bits_of(x) & 0x7fffffffu));
    const float above = x < 0.0f ? e : 1.0f;
    return x * (above / (1.0f + e));
}

// tanh x: within 3 ulp, odd, NaN for NaN. With m = e^(2|x|) - 1, tanh |x| = m / (m + 2).
AVOPS_INLINE float tanh_of(float x) {
    const float twice = 2.0f * float_of(bits_of(x) & 0x7fffffffu);
    const float y = twice > 20.0f ? 20.0f : twice;  // NaN stays
    float power;
    const float r = reduce(y, &power);
    const float m = power * exp_minus_one_near_zero(r) + (power - 1.0f);
    return float_of(bits_of(m / (m + 2.0f)) | (bits_of(x) & 0x80000000u));
}

AVOPS_INLINE double double_of(uint64_t u) {
    double x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

// e^x for x <= 0 in f64: within 2 ulp, 1 for 0, 0 below -700, NaN for NaN.
AVOPS_INLINE double exp_of_negative(double x) {
    const double whole = 0x1.8p+52;
    const double shifted = x * 0x1.71547652b82fep+0 + whole;
    const double n = shifted - whole;
    const double r = (x - n * 0x1.62e42fep-1) - n * 0x1.f473de6af278fp-30;
    // Taylor: the first term left out is under 2^-61.
    double q = 1.0 / 6227020800;
    q = q * r + 1.0 / 479001600;
    q = q * r + 1.0 / 39916800;
    q = q * r + 1.0 / 3628800;
    q = q * r + 1.0 / 362880;
    q = q * r + 1.0 / 40320;
    q = q * r + 1.0 / 5040;
    q = q * r + 1.0 / 720;
    q = q * r + 1.0 / 120;
    q = q * r + 1.0 / 24;
    q = q * r + 1.0 / 6;
    q = q * r + 0.5;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const double power = double_of((bits << 52) + 0x3ff0000000000000u);
    const double value = (1.0 + (r + (r * r) * q)) * power;
    return x < -700.0 ? 0.0 : value;
}

// log x for finite x >= 1 in f64: within 2 ulp, 0 for 1, never negative. NaN for what is not positive.
inline double log_of(double x) {
    if (!(x > 0)) return std::numeric_limits<double>::quiet_NaN();
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // x = m * 2^k with m from sqrt(1/2) on.
    const uint64_t root_half = 0x3fe6a09e667f3bcdu;
    const int64_t k = static_cast<int64_t>(bits - root_half) >> 52;
    const double m = double_of(bits - (static_cast<uint64_t>(k) << 52));
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double sum = 1.0 / 23;  // atanh's series; the first term left out is under 2^-65
    for (int odd = 21; odd >= 3; odd -= 2) sum = sum * z + 1.0 / odd;
    const double small = 2.0 * s + 2.0 * s * (z * sum);
    return static_cast<double>(k) * 0x1.62e42fe000000p-1 +
           (static_cast<double>(k) * 0x1.f473de6af278fp-30 + small);
}

}  // namespace avops
