// avops: the matrix products of a transformer's layer: x @ weight.T + bias, and a gated MLP.
// Contracts: avops/kernels/linear/__init__.py, avops/kernels/gated_mlp/__init__.py.
//
// Rows of x are packed once, in panels of 64 with k outermost (squares.h); weights are read where they
// lie. A task is a block of weights with some panels: the block stays in the cache while they go by.
// Its outputs, [weight][lane], are a piece of such a panel themselves: so the MLP's inner values are
// packed as they are made, and rows are transposed back only when they leave.
#include "avops.h"
#include "blocks.h"
#include "exp.h"
#include "squares.h"
#include "threads.h"
#include "tiles.h"

#include <algorithm>

int32_t avops_is_amd(void) {
#if AVOPS_X86_TILES
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? 1 : 0;
#else
    return 0;
#endif
}

#if AVOPS_X86_TILES

namespace {

using namespace avops;

constexpr int64_t kPanel = 64;
constexpr int64_t kBlockWeights = 8 * kTileWeights;
// Panels of a task.
constexpr int64_t kGroup = 4;
static_assert(kBlockWeights % kLanes == 0, "blocks are transposed in squares");
static_assert(kBlockWeights % 2 == 0 && kPart % 2 == 0, "blocks and parts are whole pairs");
// A thread's share of products, at least: they take longer than starting one.
constexpr int64_t kProductsPerThread = 1 << 22;

typedef float Block[kBlockWeights * kPanel];

// Packed rows: panels one behind the other, of [unit][width] floats or pairs of bf16.
struct Rows {
    int64_t rows;
    int64_t dim;
    bool half;
    uint32_t *packed;

    int64_t size() const { return half ? 2 : 4; }
    int64_t units() const { return half ? (dim + 1) / 2 : dim; }
    int64_t panels() const { return (rows + kPanel - 1) / kPanel; }
    int64_t groups() const { return (panels() + kGroup - 1) / kGroup; }
    int64_t count(int64_t panel) const { return std::min(kPanel, rows - panel * kPanel); }
    int64_t width(int64_t panel) const { return (count(panel) + kLanes - 1) / kLanes * kLanes; }
    uint32_t *at(int64_t panel) const { return packed + panel * kPanel * units(); }
};

template <int kV, int kR>
void tile(const Rows &x, const uint32_t *panel, const byte *weight, int64_t k, float *out) {
    const Strip strip = {kR * kLanes, x.dim, std::min(kPart, x.dim - k), k == 0};
    if (x.half)
        tile_pairs<kV, kR>(panel + k / 2 * strip.width, reinterpret_cast<const uint16_t *>(weight) + k,
                           strip, out);
    else
        tile_avx512<kV, kR>(reinterpret_cast<const float *>(panel) + k * strip.width,
                            reinterpret_cast<const float *>(weight) + k, strip, out);
}

template <int kR>
void multiply_width(const Rows &x, int64_t panel, const byte *weight, int64_t weights, float *out) {
    const int64_t width = kR * kLanes, bytes = x.dim * x.size();
    for (int64_t k = 0; k < x.dim; k += kPart) {
        int64_t v = 0;
        for (; v + kTileWeights <= weights; v += kTileWeights)
            tile<kTileWeights, kR>(x, x.at(panel), weight + v * bytes, k, out + v * width);
        for (; v < weights; ++v) tile<1, kR>(x, x.at(panel), weight + v * bytes, k, out + v * width);
    }
}

AVOPS_CLONES
void add_bias(const void *bias, bool half, int64_t first, int64_t weights, int64_t width,
              float *__restrict out) {
    alignas(64) float values[kBlockWeights];
    widen_input({bias, half ? AVOPS_BF16 : AVOPS_F32}, first, values, weights);
    for (int64_t v = 0; v < weights; ++v)
        for (int64_t l = 0; l < width; ++l) out[v * width + l] += values[v];
}

// out[v][lane] of the weights first .. first + weights - 1 for one panel.
void multiply(const Rows &x, int64_t panel, const avops_projection &to, int64_t first,
              int64_t weights, float *out) {
    const byte *weight = static_cast<const byte *>(to.weight) + first * x.dim * x.size();
    switch (x.width(panel) / kLanes) {
        case 1: multiply_width<1>(x, panel, weight, weights, out); break;
        case 2: multiply_width<2>(x, panel, weight, weights, out); break;
        case 3: multiply_width<3>(x, panel, weight, weights, out); break;
        default: multiply_width<4>(x, panel, weight, weights, out); break;
    }
    if (to.bias) add_bias(to.bias, x.half, first, weights, x.width(panel), out);
}

// narrow<BF16> of sixteen.
__attribute__((target("avx512f"))) AVOPS_INLINE __m512i narrowed(__m512i u) {
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512 x = _mm512_castsi512_ps(u);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan,
                                 _mm512_set1_epi32(static_cast<int>(BF16::nan)));
}

// The first `count` of sixteen f32, rounded to the type. Stores with a mask take far longer.
__attribute__((target("avx512f"))) AVOPS_INLINE void store_some(byte *to, bool half, __m512i values,
                                                                int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << std::min<int64_t>(count, kLanes)) - 1);
    if (half && count >= kLanes)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi32_epi16(narrowed(values)));
    else if (half)
        _mm512_mask_cvtepi32_storeu_epi16(to, mask, narrowed(values));
    else if (count >= kLanes)
        _mm512_storeu_si512(to, values);
    else
        _mm512_mask_storeu_epi32(to, mask, values);
}

// A panel's outputs first .. first + weights - 1 to their rows, rounded to the type.
__attribute__((target("avx512f"))) void store(const Rows &x, int64_t panel, const float *out,
                                              int64_t weights, const avops_projection &to,
                                              int64_t first) {
    const int64_t width = x.width(panel), count = x.count(panel);
    for (int64_t v = 0; v < weights; v += kLanes)
        for (int64_t lane = 0; lane < count; lane += kLanes) {
            __m512i square[16];
            AVOPS_UNROLL
            for (int i = 0; i < 16; ++i)
                square[i] = _mm512_loadu_si512(out + std::min(v + i, weights - 1) * width + lane);
            transpose(square);
            const int64_t rows = std::min(kLanes, count - lane);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t at = (panel * kPanel + lane + i) * to.outputs + first + v;
                store_some(static_cast<byte *>(to.out) + at * x.size(), x.half, square[i], weights - v);
            }
        }
}

// to = silu(gate) * up, [v][lane] as they are.
AVOPS_CLONES
void gate_rows(const float *__restrict gate, const float *__restrict up, int64_t n,
               float *__restrict to) {
    for (int64_t i = 0; i < n; ++i) to[i] = silu(gate[i]) * up[i];
}

// The same of `rows` rows, rounded to bf16, in pairs of rows; an odd last row goes with a zero.
AVOPS_CLONES
void gate_pairs(const float *__restrict gate, const float *__restrict up, int64_t rows, int64_t width,
                uint32_t *__restrict to) {
    for (int64_t v = 0; v < rows; v += 2)
        for (int64_t l = 0; l < width; ++l) {
            const int64_t i = v * width + l;
            to[v / 2 * width + l] = narrow<BF16>(silu(gate[i]) * up[i]);
        }
    for (int64_t v = 1; v < rows; v += 2)
        for (int64_t l = 0; l < width; ++l) {
            const int64_t i = v * width + l;
            to[v / 2 * width + l] |= narrow<BF16>(silu(gate[i]) * up[i]) << 16;
        }
}

void pack(const Rows &to, const void *x, int32_t threads) {
    const int64_t bytes = to.dim * to.size();
    each_task(to.panels(), threads, [&](int64_t panel) {
        pack_panel(static_cast<const byte *>(x) + panel * kPanel * bytes, bytes, bytes,
                   to.count(panel), to.width(panel), to.at(panel));
    });
}

int64_t tasks_of(const Rows &x, int64_t outputs) {
    return (outputs + kBlockWeights - 1) / kBlockWeights * x.groups();
}

// Calls work(panel, first, weights) for each panel of a task, with its block of weights. Tasks have a
// block of weights and kGroup panels each.
template <class Work>
void each_panel(const Rows &x, int64_t outputs, int64_t task, Work work) {
    const int64_t first = task / x.groups() * kBlockWeights, group = task % x.groups();
    const int64_t weights = std::min(kBlockWeights, outputs - first);
    const int64_t end = std::min(x.panels(), (group + 1) * kGroup);
    for (int64_t panel = group * kGroup; panel < end; ++panel) work(panel, first, weights);
}

void project(const Rows &x, const avops_projection *projections, int64_t count, int32_t threads) {
    int64_t tasks = 0;
    for (int64_t i = 0; i < count; ++i) tasks += tasks_of(x, projections[i].outputs);
    each_task(tasks, threads, [&](int64_t task) {
        const avops_projection *to = projections;
        for (int64_t here; task >= (here = tasks_of(x, to->outputs)); ++to) task -= here;
        each_panel(x, to->outputs, task, [&](int64_t panel, int64_t first, int64_t weights) {
            alignas(64) Block out;
            multiply(x, panel, *to, first, weights, out);
            store(x, panel, out, weights, *to, first);
        });
    });
}

int32_t useful(int64_t products, int32_t threads) {
    return static_cast<int32_t>(std::min<int64_t>(threads, 1 + products / kProductsPerThread));
}

}  // namespace

int64_t avops_packed_bytes(int32_t dtype, int64_t rows, int64_t dim) {
    const Rows x = {rows, dim, dtype == AVOPS_BF16, nullptr};
    return x.panels() * kPanel * x.units() * 4;
}

void avops_linear(int32_t dtype, const void *x, int64_t rows, int64_t dim,
                  const avops_projection *projections, int64_t count, void *scratch,
                  int32_t threads) {
    const Rows packed = {rows, dim, dtype == AVOPS_BF16, static_cast<uint32_t *>(scratch)};
    int64_t outputs = 0;
    for (int64_t i = 0; i < count; ++i) outputs += projections[i].outputs;
    const int32_t workers = useful(rows * dim * outputs, threads);
    pack(packed, x, workers);
    project(packed, projections, count, workers);
}

void avops_gated_mlp(int32_t dtype, const void *x, int64_t rows, int64_t dim, avops_projection gate,
                     avops_projection up, avops_projection down, void *scratch, int32_t threads) {
    const Rows packed = {rows, dim, dtype == AVOPS_BF16, static_cast<uint32_t *>(scratch)};
    Rows inner = {rows, gate.outputs, packed.half, nullptr};
    inner.packed = packed.packed + packed.panels() * kPanel * packed.units();
    const int32_t workers = useful(rows * dim * (2 * gate.outputs + down.outputs), threads);
    pack(packed, x, workers);
    const auto gated = [&](int64_t panel, int64_t first, int64_t weights) {
        alignas(64) Block one, two;
        multiply(packed, panel, gate, first, weights, one);
        multiply(packed, panel, up, first, weights, two);
        const int64_t width = packed.width(panel);
        uint32_t *to = inner.at(panel);
        if (inner.half)
            gate_pairs(one, two, weights, width, to + first / 2 * width);
        else
            gate_rows(one, two, weights * width, reinterpret_cast<float *>(to) + first * width);
    };
    each_task(tasks_of(packed, gate.outputs), workers,
              [&](int64_t task) { each_panel(packed, gate.outputs, task, gated); });
    project(inner, &down, 1, workers);
}

#else

// Callers ask avops_head_path() first.
int64_t avops_packed_bytes(int32_t, int64_t, int64_t) { return 0; }
void avops_linear(int32_t, const void *, int64_t, int64_t, const avops_projection *, int64_t, void *,
                  int32_t) {}
void avops_gated_mlp(int32_t, const void *, int64_t, int64_t, avops_projection, avops_projection,
                     avops_projection, void *, int32_t) {}

#endif
