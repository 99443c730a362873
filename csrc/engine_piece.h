// avops: elements of a segment, computed for every candidate of a group. For engine_work.h alone.
#pragma once

#include "blocks.h"
#include "engine_factors.h"
#include "engine_plan.h"
#include "files.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace avops {

// Low-rank differences are computed in strips of so many columns, which are combined while they are in
// the core's own cache: floats for all terms, and for each of many.
constexpr int64_t kStrip = 512, kDeltas = 1 << 15, kDeltasOfOne = 4 * kStrip;

inline int64_t deltas_of_one(int64_t terms) { return std::max(kDeltasOfOne, kDeltas / terms / kStrip * kStrip); }

// Where a stretch's operands are: the base, and the terms' values. Null: low-rank, computed on the way.
struct Operands {
    const uint8_t *base = nullptr;
    std::vector<const uint8_t *> values;
};

// What a candidate makes of the segment at hand. copied: bit for bit the base. terms: those that it has;
// from: which of the segment's each is.
struct Share {
    bool copied = false;
    std::vector<avops_term> terms;
    std::vector<size_t> from;
    avops_combine_counts counts = {0, 0, 0, 0};
};

class Pieces {
  public:
    // memory: floats for low-rank differences, as many as the terms of any segment need.
    explicit Pieces(float *memory) : memory_(memory) {}

    // Turns to a segment, for candidates first .. last - 1 of `wanted`. False: factors cannot be read.
    bool begin(const EngineSegment &segment, const std::vector<int32_t> &wanted, size_t first, size_t last,
               FactorPool &pool) {
        segment_ = &segment;
        const size_t count = segment.terms.size();
        factors_.assign(count, nullptr);
        deltas_.assign(count, nullptr);
        shares_.resize(last - first);
        std::vector<bool> used(count, segment.operation != kCombine);
        for (size_t i = first; i < last; ++i) share(shares_[i - first], wanted[i], used);
        int64_t low_rank = 0;
        for (const EngineTerm &term : segment.terms) low_rank += term.low_rank();
        each_ = low_rank == 0 ? 0 : deltas_of_one(low_rank);
        low_rank_ = false;
        float *at = memory_;
        for (size_t k = 0; k < count; ++k) {
            if (!segment.terms[k].low_rank() || !used[k]) continue;
            factors_[k] = pool.get(segment.terms[k].factors);
            if (factors_[k] == nullptr) return false;
            columns_ = factors_[k]->of.columns, low_rank_ = true;
            deltas_[k] = at, at += each_;
        }
        return true;
    }

    std::vector<Share> &shares() { return shares_; }

    // `count` elements from `first` of the segment on, for share i to out + i * apart; added to its counts.
    void compute(int64_t first, int64_t count, const Operands &operands, uint8_t *out, int64_t apart) {
        here_ = {&operands, segment_->first + first, out, apart};
        if (!low_rank_) return stretch(0, count, 0);
        for (int64_t at = 0; at < count;) {
            const int64_t row = (here_.flat + at) / columns_, column = (here_.flat + at) % columns_;
            const bool whole = column == 0 && count - at >= columns_;
            const int64_t rows = whole ? (count - at) / columns_ : 1;
            const int64_t width = whole ? columns_ : std::min(columns_ - column, count - at);
            rectangle(row, rows, column, width, at);
            at += rows * width;
        }
    }

    // Inner products of `count` elements, for share i of the results at out + i * apart; operands are all
    // there. May throw std::bad_alloc; false: no memory.
    bool sums(int64_t count, const Operands &operands, const uint8_t *out, int64_t apart, size_t i,
              std::vector<double> &found) {
        Share &mine = shares_[i];
        for (size_t k = 0; k < mine.terms.size(); ++k) {
            const size_t from = mine.from[k];
            mine.terms[k].values = {operands.values[from], dtype_of(from)};
        }
        const int64_t rows = static_cast<int64_t>(mine.terms.size()) + 1;
        found.resize(static_cast<size_t>(rows * (rows + 1) / 2));
        return avops_gram({operands.base, segment_->base.dtype}, mine.terms.data(), rows - 1,
                          {out + static_cast<int64_t>(i) * apart, segment_->dtype}, count, found.data());
    }

    // Differences of the low-rank term k, `count` from `first` of the segment on.
    void delta(size_t k, int64_t first, int64_t count, float *out) const {
        if (factors_[k] != nullptr) lowrank_flat(factors_[k]->of, segment_->first + first, count, out);
    }

  private:
    struct Here {
        const Operands *operands;
        int64_t flat;
        uint8_t *out;
        int64_t apart;
    };

    int32_t dtype_of(size_t k) const {
        const EngineTerm &term = segment_->terms[k];
        return term.low_rank() ? AVOPS_F32 : term.values.dtype;
    }

    void share(Share &to, int32_t candidate, std::vector<bool> &used) const {
        to.terms.clear(), to.from.clear();
        for (size_t k = 0; k < segment_->terms.size() && segment_->operation == kCombine; ++k) {
            const EngineTerm &term = segment_->terms[k];
            const float lam = term.lams[static_cast<size_t>(candidate)];
            if (lam == 0) continue;
            to.terms.push_back({{nullptr, 0}, lam, term.aligned});
            to.from.push_back(k);
            used[k] = true;
        }
        to.copied = segment_->operation == kCombine && to.terms.empty() && segment_->dtype == segment_->base.dtype;
    }

    // Columns column .. column + width - 1 of some rows, `at` elements from where the operands begin.
    void rectangle(int64_t row, int64_t rows, int64_t column, int64_t width, int64_t at) {
        for (int64_t c = 0; c < width;) {
            const int64_t wide = std::min(kStrip - (column + c) % kStrip, width - c);
            const int64_t step = each_ / wide;
            for (int64_t r = 0; r < rows; r += step) {
                const int64_t count = std::min(step, rows - r);
                for (size_t k = 0; k < deltas_.size(); ++k)
                    if (deltas_[k] != nullptr)
                        lowrank_block(factors_[k]->of, row + r, count, column + c, wide, deltas_[k], wide);
                if (wide == width) stretch(at + r * width, count * width, 0);
                else
                    for (int64_t i = 0; i < count; ++i) stretch(at + (r + i) * width + c, wide, i * wide);
            }
            c += wide;
        }
    }

    // n elements, `at` from where the operands begin, low-rank ones from `delta` on in their memory.
    void stretch(int64_t at, int64_t n, int64_t delta) {
        const EngineSegment &segment = *segment_;
        const auto value = [&](size_t k) -> avops_input {
            if (deltas_[k] != nullptr) return {deltas_[k] + delta, AVOPS_F32};
            return {here_.operands->values[k] + at * size_of(dtype_of(k)), dtype_of(k)};
        };
        avops_input base = {nullptr, segment.base.dtype};
        if (segment.operation == kDelta) base = value(0);
        else base.data = here_.operands->base + at * size_of(segment.base.dtype);
        uint8_t *to = here_.out + at * size_of(segment.dtype);
        for (Share &mine : shares_) {
            const avops_output out = {to, segment.dtype};
            to += here_.apart;
            if (mine.copied) {
                std::memcpy(out.data, base.data, static_cast<size_t>(n * size_of(segment.dtype)));
                continue;
            }
            if (segment.operation == kDiff) {
                const avops_diff_counts found = avops_diff(base, value(0), out, n, 1);
                mine.counts.nonfinite += found.nonfinite, mine.counts.unchanged += found.zeros;
                continue;
            }
            for (size_t k = 0; k < mine.terms.size(); ++k) mine.terms[k].values = value(mine.from[k]);
            avops_rounding rounding = segment.rounding;
            rounding.start = here_.flat + at;
            const int64_t terms = static_cast<int64_t>(mine.terms.size());
            const avops_combine_counts found = combine_part({base, mine.terms.data(), terms, out, rounding}, n);
            mine.counts.nonfinite += found.nonfinite;
            if (segment.operation == kDelta) {
                mine.counts.unchanged += zeros(out, n);
                continue;
            }
            mine.counts.unchanged += found.unchanged;
            mine.counts.overflowed += found.overflowed;
            mine.counts.flushed += found.flushed;
        }
    }

    template <class T>
    static int64_t zeros_of(const void *data, int64_t n) {
        const typename T::stored *values = static_cast<const typename T::stored *>(data);
        int64_t found = 0;
        for (int64_t i = 0; i < n; ++i) found += (values[i] & T::magnitude) == 0;
        return found;
    }

    static int64_t zeros(const avops_output &of, int64_t n) {
        switch (of.dtype) {
            case AVOPS_F32: return zeros_of<F32>(of.data, n);
            case AVOPS_F16: return zeros_of<F16>(of.data, n);
            default: return zeros_of<BF16>(of.data, n);
        }
    }

    float *memory_;
    const EngineSegment *segment_ = nullptr;
    std::vector<Share> shares_;
    std::vector<std::shared_ptr<const Factors>> factors_;
    std::vector<float *> deltas_;
    int64_t each_ = 0, columns_ = 1;
    bool low_rank_ = false;
    Here here_ = {nullptr, 0, nullptr, 0};
};

}  // namespace avops
