// avops: low-rank differences with the right factor laid out for their tiles, for the engine.
#pragma once

#include <cstdint>

namespace avops {

// Columns of a panel: four vectors of AVX-512.
constexpr int64_t kPanel = 64;

// scale * left @ right. left: [rows][rank]. panels: of every 64 columns of right [rank][64], one after
// the other; columns that the last one lacks hold anything.
struct LowRank {
    const float *left = nullptr;
    const float *panels = nullptr;
    int64_t rank = 0, columns = 0;
    float scale = 0;
};

// Floats for all panels: vectors may be read past the last one.
inline int64_t panel_floats(int64_t rank, int64_t columns) {
    return (columns + kPanel - 1) / kPanel * kPanel * rank + kPanel;
}

// Columns column .. column + width - 1 of rows row .. row + rows - 1 into out, which has `stride` between
// rows. The floating-point mode is the default one.
void lowrank_block(const LowRank &of, int64_t row, int64_t rows, int64_t column, int64_t width, float *out,
                   int64_t stride);

// Flat elements start .. start + n - 1, otherwise as lowrank_block.
void lowrank_flat(const LowRank &of, int64_t start, int64_t n, float *out);

}  // namespace avops
