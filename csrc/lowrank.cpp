// avops: elements of scale * (left @ right), the difference that a LoRA adapter stands for.
//
// Source of the arithmetic: the contract in avops/kernels/lowrank/__init__.py.
// Arrays: row-major f32; left is [rows, rank], right is [rank, columns], or in panels (lowrank.h).
//
// Each element is a sum over j = 0, 1, ... in that order, every product and sum rounded: so a tile
// of rows and columns keeps its sums in registers while j runs, and no order depends on the tiling.
// A long j is cut: between its parts the sums wait in out, where f32 loses nothing.
#include "lowrank.h"

#include "avops.h"
#include "bf16.h"
#include "threads.h"
#include "tiles.h"

#include <algorithm>
#include <cstring>

namespace {

using namespace avops;

// Rows of a tile: as many as leave registers for the loads. j of a part: its panel is half an L1 cache.
constexpr int64_t kRows = 4, kDepth = 64;
// Fewer rows than that do not repay packing a panel.
constexpr int64_t kPackFrom = 8;
// A thread's share, at least: it takes more than starting one.
constexpr int64_t kProductsPerThread = 1 << 21;

constexpr int64_t kLanes = 16;
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t marks __attribute__((vector_size(64)));

struct Job {
    const float *left;
    const float *right;
    int64_t rank;
    int64_t columns;
    float scale;
    bool packed;
};

// Columns of right from some j on: `step` floats from one j to the next.
struct Panel {
    const float *data;
    int64_t step;
};

// How far a tile goes: `count` of the j, whether they are the first and the last.
struct Part {
    int64_t count;
    bool first, last;
};

AVOPS_INLINE void finish(lanes &sum, float scale) {
    sum = scale * sum;
    const marks nan = sum != sum;
    marks bits;
    std::memcpy(&bits, &sum, sizeof bits);
    bits = (bits & ~nan) | (nan & static_cast<int32_t>(F32::nan));
    std::memcpy(&sum, &bits, sizeof bits);
}

// kR rows of kV vectors; left has `rank` between rows, out `stride`.
template <int kR, int kV>
AVOPS_INLINE void tile(const float *left, int64_t rank, Panel panel, Part part, float scale, float *out,
                       int64_t stride) {
    lanes sums[kR][kV];
    int64_t j = 0;
    if (part.first) {
        AVOPS_UNROLL
        for (int v = 0; v < kV; ++v) {
            lanes right;
            std::memcpy(&right, panel.data + v * kLanes, sizeof right);
            AVOPS_UNROLL
            for (int r = 0; r < kR; ++r) sums[r][v] = left[r * rank] * right;
        }
        j = 1;
    } else {
        AVOPS_UNROLL
        for (int r = 0; r < kR; ++r)
            AVOPS_UNROLL
            for (int v = 0; v < kV; ++v)
                std::memcpy(&sums[r][v], out + r * stride + v * kLanes, sizeof(lanes));
    }
    for (; j < part.count; ++j) {
        lanes right[kV];
        AVOPS_UNROLL
        for (int v = 0; v < kV; ++v)
            std::memcpy(&right[v], panel.data + j * panel.step + v * kLanes, sizeof(lanes));
        AVOPS_UNROLL
        for (int r = 0; r < kR; ++r) {
            const float factor = left[r * rank + j];
            AVOPS_UNROLL
            for (int v = 0; v < kV; ++v) sums[r][v] = sums[r][v] + factor * right[v];
        }
    }
    AVOPS_UNROLL
    for (int r = 0; r < kR; ++r)
        AVOPS_UNROLL
        for (int v = 0; v < kV; ++v) {
            if (part.last) finish(sums[r][v], scale);
            std::memcpy(out + r * stride + v * kLanes, &sums[r][v], sizeof(lanes));
        }
}

// As tile, for `width` columns, which may end within a vector: sums are kept aside then.
template <int kR>
AVOPS_INLINE void tile_of(const float *left, int64_t rank, Panel panel, Part part, float scale,
                          int64_t width, float *out, int64_t stride) {
    if (width == kPanel) return tile<kR, 4>(left, rank, panel, part, scale, out, stride);
    float aside[kR * kPanel];
    const size_t bytes = static_cast<size_t>(width) * sizeof(float);
    for (int r = 0; r < kR && !part.first; ++r) std::memcpy(aside + r * kPanel, out + r * stride, bytes);
    switch ((width + kLanes - 1) / kLanes) {
        case 1: tile<kR, 1>(left, rank, panel, part, scale, aside, kPanel); break;
        case 2: tile<kR, 2>(left, rank, panel, part, scale, aside, kPanel); break;
        case 3: tile<kR, 3>(left, rank, panel, part, scale, aside, kPanel); break;
        default: tile<kR, 4>(left, rank, panel, part, scale, aside, kPanel); break;
    }
    for (int r = 0; r < kR; ++r) std::memcpy(out + r * stride, aside + r * kPanel, bytes);
}

// `width` columns from `column` on, for `count` of the j: where they are, or packed into `memory`.
AVOPS_INLINE Panel panel_at(const Job &job, int64_t column, int64_t width, int64_t j, int64_t count,
                            int64_t rows, float *memory) {
    if (job.packed)
        return {job.right + column / kPanel * kPanel * job.rank + j * kPanel + column % kPanel, kPanel};
    const float *from = job.right + j * job.columns + column;
    const int64_t read = (width + kLanes - 1) / kLanes * kLanes;
    if (rows < kPackFrom && column + read <= job.columns) return {from, job.columns};
    for (int64_t i = 0; i < count; ++i) {
        std::memcpy(memory + i * kPanel, from + i * job.columns, static_cast<size_t>(width) * sizeof(float));
        for (int64_t c = width; c < read; ++c) memory[i * kPanel + c] = 0;
    }
    return {memory, kPanel};
}

AVOPS_CLONES
void block(const Job &job, int64_t row, int64_t rows, int64_t column, int64_t width, float *out,
           int64_t stride) {
    alignas(64) float memory[kDepth * kPanel];
    for (int64_t c = column; c < column + width;) {
        const int64_t wide = std::min(kPanel - c % kPanel, column + width - c);
        for (int64_t j = 0; j < job.rank; j += kDepth) {
            const int64_t count = std::min(kDepth, job.rank - j);
            const Part part = {count, j == 0, j + count == job.rank};
            const Panel panel = panel_at(job, c, wide, j, count, rows, memory);
            const float *left = job.left + row * job.rank + j;
            float *to = out + (c - column);
            int64_t r = 0;
            for (; r + kRows <= rows; r += kRows)
                tile_of<kRows>(left + r * job.rank, job.rank, panel, part, job.scale, wide,
                               to + r * stride, stride);
            for (; r < rows; ++r)
                tile_of<1>(left + r * job.rank, job.rank, panel, part, job.scale, wide, to + r * stride,
                           stride);
        }
        c += wide;
    }
}

// Flat elements first .. last - 1 into out.
void range(const Job &job, int64_t first, int64_t last, float *out) {
    while (first < last) {
        const int64_t row = first / job.columns, column = first % job.columns;
        const bool whole = column == 0 && last - first >= job.columns;
        const int64_t rows = whole ? (last - first) / job.columns : 1;
        const int64_t width = whole ? job.columns : std::min(job.columns - column, last - first);
        block(job, row, rows, column, width, out, job.columns);
        out += rows * width, first += rows * width;
    }
}

Job job_of(const LowRank &of) { return {of.left, of.panels, of.rank, of.columns, of.scale, true}; }

}  // namespace

namespace avops {

void lowrank_block(const LowRank &of, int64_t row, int64_t rows, int64_t column, int64_t width, float *out,
                   int64_t stride) {
    block(job_of(of), row, rows, column, width, out, stride);
}

void lowrank_flat(const LowRank &of, int64_t start, int64_t n, float *out) {
    range(job_of(of), start, start + n, out);
}

}  // namespace avops

void avops_lowrank(const float *left, const float *right, int64_t rank, int64_t columns, float scale,
                   int64_t start, float *out, int64_t n, int32_t threads) {
    const Job job = {left, right, rank, columns, scale, false};
    const int64_t share = std::max<int64_t>(1, kProductsPerThread / rank);
    split(n, 1, share, threads, [&](int64_t first, int64_t last) {
        const DefaultFloatMode mode;
        range(job, start + first, start + last, out + first);
    });
}
