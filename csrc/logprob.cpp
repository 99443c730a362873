// avops: log P of one target for each row of logits. Contract: avops/kernels/logprob/__init__.py.
//
// A row goes in blocks that stay in the L1 cache: maximum, then the sum of exp(x - maximum), which
// is added to the row's running sum in f64. Rows are independent, so threads take rows.
#include "avops.h"
#include "logits.h"
#include "threads.h"

#include <algorithm>
#include <cstring>

namespace {

using namespace avops;

// Columns of a block, and the f32 sums that share them: the loops are as wide as four AVX-512
// vectors, and eight terms stand behind a sum.
constexpr int64_t kColumns = 512, kLanes = 64;
// Logits per thread, at least: they take more than starting one.
constexpr int64_t kPerThread = 1 << 17;

struct Job {
    const float *logits;
    int64_t columns;
    int64_t stride;
    const int64_t *targets;
    avops_logits rule;
    float *out;
};

AVOPS_INLINE float block_maximum(const float *__restrict x) {
    float lanes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = -kInfinity;
    for (int64_t i = 0; i < kColumns; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] = larger(lanes[l], x[i + l]);
    float found = -kInfinity;
    for (int64_t l = 0; l < kLanes; ++l) found = larger(found, lanes[l]);
    return found;
}

AVOPS_INLINE double block_sum(const float *__restrict x, float maximum) {
    float lanes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = 0;
    for (int64_t i = 0; i < kColumns; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += exp_of_negative(x[i + l] - maximum);
    double eight[8];
    for (int64_t e = 0; e < 8; ++e) eight[e] = 0;
    for (int64_t l = 0; l < kLanes; l += 8)
        for (int64_t e = 0; e < 8; ++e) eight[e] += static_cast<double>(lanes[l + e]);
    double total = 0;
    for (int64_t e = 0; e < 8; ++e) total += eight[e];
    return total;
}

AVOPS_INLINE float row_log_prob(const Job &job, int64_t row) {
    alignas(64) float block[kColumns];
    const float *logits = job.logits + row * job.stride;
    const int64_t target = job.targets[row];
    const bool copied = changes(job.rule);
    float maximum = -kInfinity, picked = std::numeric_limits<float>::quiet_NaN();
    double sum = 0;
    for (int64_t first = 0; first < job.columns; first += kColumns) {
        const int64_t n = std::min(kColumns, job.columns - first);
        const float *x = logits + first;
        if (copied || n < kColumns) {
            std::memcpy(block, x, static_cast<size_t>(n) * sizeof *block);
            if (copied) apply(job.rule, block, n);
            for (int64_t i = n; i < kColumns; ++i) block[i] = -kInfinity;
            x = block;
        }
        if (target >= first && target < first + n) picked = x[target - first];
        const float now = larger(maximum, block_maximum(x));
        if (now != maximum) sum *= rescale(maximum, now);
        sum += block_sum(x, reference(now));
        maximum = now;
    }
    return log_prob(picked, maximum, sum);
}

AVOPS_CLONES
void log_prob_rows(const Job &job, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) job.out[row] = row_log_prob(job, row);
}

}  // namespace

void avops_logprob(const float *logits, int64_t rows, int64_t columns, int64_t stride,
                   const int64_t *targets, avops_logits rule, float *out, int32_t threads) {
    const Job job = {logits, columns, stride, targets, rule, out};
    const int64_t share = std::max<int64_t>(1, kPerThread / std::max<int64_t>(1, columns));
    split(rows, 1, share, threads, [&](int64_t first, int64_t last) {
        const DefaultFloatMode mode;
        log_prob_rows(job, first, last);
    });
}
