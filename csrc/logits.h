// avops: what the two operations over logits share: how logits come from the head's outputs, and a
// row's running log-sum-exp. Contract: avops/kernels/logprob/__init__.py.
#pragma once

#include "avops.h"
#include "exp.h"

#include <cstdint>
#include <limits>

namespace avops {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The larger of the two; x when y is NaN, so a row's maximum is that of its numbers.
AVOPS_INLINE float larger(float x, float y) { return y > x ? y : x; }

AVOPS_INLINE bool changes(avops_logits rule) {
    return rule.multiply != 1.0f || rule.divide != 1.0f || rule.softcap != 0.0f;
}

// The model's own order: scale, then cap. n outputs of the head, in place.
AVOPS_INLINE void apply(avops_logits rule, float *__restrict x, int64_t n) {
    if (rule.multiply != 1.0f)
        for (int64_t i = 0; i < n; ++i) x[i] = x[i] * rule.multiply;
    if (rule.divide != 1.0f)
        for (int64_t i = 0; i < n; ++i) x[i] = x[i] / rule.divide;
    if (rule.softcap != 0.0f)
        for (int64_t i = 0; i < n; ++i) x[i] = tanh_of(x[i] / rule.softcap) * rule.softcap;
}

// What exponents are taken relative to: the maximum, or 0 while there is none.
AVOPS_INLINE float reference(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

// The factor that brings a sum relative to `before` to one relative to `now`, before <= now.
AVOPS_INLINE double rescale(float before, float now) {
    const double gap = static_cast<double>(before) - static_cast<double>(reference(now));
    return exp_of_negative(gap);
}

// log P of a target: at most 0, since sum >= 1 and target <= maximum. NaN where the row has NaN,
// +infinity, or nothing but -infinity.
inline float log_prob(float target, float maximum, double sum) {
    const double below = static_cast<double>(target) - static_cast<double>(maximum);
    return float_of(quiet(static_cast<float>(below - log_of(sum))));
}

}  // namespace avops
