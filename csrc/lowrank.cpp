// avops: elements of scale * (left @ right), the difference that a LoRA adapter stands for.
//
// Source of the arithmetic: the contract in avops/kernels/lowrank/__init__.py.
// Arrays: row-major f32; left is [rows, rank], right is [rank, columns].
//
// Each element is a sum over j = 0, 1, ... in that order, every product and sum rounded: so a tile
// of rows and columns keeps its sums in registers while j runs, and no order depends on the tiling.
#include "avops.h"
#include "bf16.h"
#include "threads.h"

#include <algorithm>

namespace {

using namespace avops;

// Columns of a tile: four vectors of AVX-512. Rows: as many as leave registers for the loads.
constexpr int64_t kColumns = 64;
constexpr int64_t kRows = 4;
// A thread's share, at least: it takes more than starting one.
constexpr int64_t kProductsPerThread = 1 << 21;

struct Job {
    const float *left;
    const float *right;
    int64_t rank;
    int64_t columns;
    float scale;
};

// Rows row .. row + kR - 1 of columns column .. column + width - 1; out has `stride` between rows.
template <int64_t kR>
AVOPS_INLINE void tile(const Job &job, int64_t row, int64_t column, int64_t width, float *out,
                       int64_t stride) {
    float sums[kR][kColumns];
    const float *left = job.left + row * job.rank;
    const float *right = job.right + column;
    if (width == kColumns) {
        for (int64_t r = 0; r < kR; ++r)
            for (int64_t c = 0; c < kColumns; ++c) sums[r][c] = left[r * job.rank] * right[c];
        for (int64_t j = 1; j < job.rank; ++j)
            for (int64_t r = 0; r < kR; ++r) {
                const float factor = left[r * job.rank + j];
                for (int64_t c = 0; c < kColumns; ++c)
                    sums[r][c] = sums[r][c] + factor * right[j * job.columns + c];
            }
    } else {
        for (int64_t r = 0; r < kR; ++r)
            for (int64_t c = 0; c < width; ++c) sums[r][c] = left[r * job.rank] * right[c];
        for (int64_t j = 1; j < job.rank; ++j)
            for (int64_t r = 0; r < kR; ++r) {
                const float factor = left[r * job.rank + j];
                for (int64_t c = 0; c < width; ++c)
                    sums[r][c] = sums[r][c] + factor * right[j * job.columns + c];
            }
    }
    for (int64_t r = 0; r < kR; ++r)
        for (int64_t c = 0; c < width; ++c)
            out[r * stride + c] = float_of(quiet(job.scale * sums[r][c]));
}

// Columns first .. last - 1 of one row.
AVOPS_INLINE void part_of_row(const Job &job, int64_t row, int64_t first, int64_t last, float *out) {
    for (int64_t column = first; column < last; column += kColumns)
        tile<1>(job, row, column, std::min(kColumns, last - column), out + (column - first),
                job.columns);
}

// Flat elements first .. last - 1 into out.
AVOPS_CLONES
void lowrank_range(const Job &job, int64_t first, int64_t last, float *out) {
    int64_t row = first / job.columns;
    if (first % job.columns || last < (row + 1) * job.columns) {
        const int64_t end = std::min(last, (row + 1) * job.columns);
        part_of_row(job, row, first % job.columns, end - row * job.columns, out);
        out += end - first;
        first = end;
        ++row;
    }
    const int64_t whole = std::max(row, last / job.columns);
    // Column tiles outermost: their part of `right` stays in the cache while rows pass.
    for (int64_t column = 0; column < job.columns && row < whole; column += kColumns) {
        const int64_t width = std::min(kColumns, job.columns - column);
        int64_t r = row;
        for (; r + kRows <= whole; r += kRows)
            tile<kRows>(job, r, column, width, out + (r - row) * job.columns + column, job.columns);
        for (; r < whole; ++r)
            tile<1>(job, r, column, width, out + (r - row) * job.columns + column, job.columns);
    }
    out += (whole - row) * job.columns;
    if (whole * job.columns < last && first < last)
        part_of_row(job, whole, 0, last - whole * job.columns, out);
}

}  // namespace

void avops_lowrank(const float *left, const float *right, int64_t rank, int64_t columns, float scale,
                   int64_t start, float *out, int64_t n, int32_t threads) {
    const Job job = {left, right, rank, columns, scale};
    const int64_t share = std::max<int64_t>(1, kProductsPerThread / rank);
    split(n, 1, share, threads, [&](int64_t first, int64_t last) {
        const DefaultFloatMode mode;
        lowrank_range(job, start + first, start + last, out + first);
    });
}
