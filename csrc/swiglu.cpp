// avops: gate = silu(gate) * up, in place. Contract: avops/kernels/swiglu/__init__.py.
#include "avops.h"
#include "blocks.h"
#include "exp.h"
#include "threads.h"

#include <algorithm>

namespace {

using namespace avops;

// Elements of a task: they take longer than handing it out.
constexpr int64_t kTask = 1 << 15;

AVOPS_CLONES
void run_f32(byte *gate, const byte *up, int64_t n) {
    stored32 *g = reinterpret_cast<stored32 *>(gate);
    const stored32 *u = reinterpret_cast<const stored32 *>(up);
    for (int64_t i = 0; i < n; ++i) g[i] = bits_of(silu(float_of(g[i])) * float_of(u[i]));
}

AVOPS_CLONES
void run_bf16(byte *gate, const byte *up, int64_t n) {
    alignas(64) float one[kBlock], two[kBlock];
    for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t count = std::min(kBlock, n - i);
        widen_block<BF16>(gate + i * 2, one, count);
        widen_block<BF16>(up + i * 2, two, count);
        for (int64_t j = 0; j < count; ++j) one[j] = silu(one[j]) * two[j];
        stored16 *to = reinterpret_cast<stored16 *>(gate) + i;
        for (int64_t j = 0; j < count; ++j) to[j] = static_cast<uint16_t>(narrow<BF16>(one[j]));
    }
}

}  // namespace

void avops_swiglu(void *gate, const void *up, int32_t dtype, int64_t n, int32_t threads) {
    const int64_t size = dtype == AVOPS_F32 ? 4 : 2;
    each_task((n + kTask - 1) / kTask, threads, [=](int64_t task) {
        byte *first = static_cast<byte *>(gate) + task * kTask * size;
        const byte *second = static_cast<const byte *>(up) + task * kTask * size;
        const int64_t count = std::min(kTask, n - task * kTask);
        dtype == AVOPS_F32 ? run_f32(first, second, count) : run_bf16(first, second, count);
    });
}
