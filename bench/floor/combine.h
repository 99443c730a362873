// The arithmetic of docs/arithmetic.md for bf16: base + sum of lam * (aligned - base), in float32 and
// in order, each product and sum rounded (-ffp-contract=off), then one rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

constexpr int MAX_TERMS = 8;

inline float widen(uint16_t h) {
    const uint32_t u = static_cast<uint32_t>(h) << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

inline uint16_t narrow(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// in[0] is the base, in[1 + k] the checkpoint of term k.
template <int TERMS>
void combine_n(const uint16_t *const *in, const float *lams, uint16_t *__restrict out, int64_t n) {
    const uint16_t *const base = in[0];
    for (int64_t i = 0; i < n; ++i) {
        const float origin = widen(base[i]);
        float sum = lams[0] * (widen(in[1][i]) - origin);
#pragma GCC unroll 8
        for (int k = 1; k < TERMS; ++k) sum += lams[k] * (widen(in[1 + k][i]) - origin);
        out[i] = narrow(origin + sum);
    }
}

using Combine = void (*)(const uint16_t *const *, const float *, uint16_t *, int64_t);

template <int... TERMS>
Combine combine_for(int terms, std::integer_sequence<int, TERMS...>) {
    static constexpr Combine table[] = {combine_n<TERMS + 1>...};
    return table[terms - 1];
}

// The loop for 1 to MAX_TERMS terms.
inline Combine combine_for(int terms) {
    return combine_for(terms, std::make_integer_sequence<int, MAX_TERMS>());
}
