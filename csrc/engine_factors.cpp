// avops: the factors of engine_factors.h.
#include "engine_factors.h"

#include "blocks.h"
#include "files.h"
#include "threads.h"

#include <algorithm>

namespace avops {

namespace {

// Bytes kept at least. Elements of a factor that are read at a time.
constexpr int64_t kKept = 32 << 20, kPart = 1 << 14;

// Reads a [rows][columns] matrix and calls place(row, column, values, n) for parts of its rows, in f32.
template <class Place>
bool read_matrix(int fd, const EngineRange &range, int64_t rows, int64_t columns, Place place) {
    std::vector<uint8_t> raw(static_cast<size_t>(kPart * 4));
    std::vector<float> wide(static_cast<size_t>(kPart));
    const int64_t size = size_of(range.dtype), total = rows * columns;
    for (int64_t start = 0; start < total; start += kPart) {
        const int64_t count = std::min(kPart, total - start);
        if (!read_all(fd, raw.data(), count * size, range.offset + start * size)) return false;
        widen_input({raw.data(), range.dtype}, 0, wide.data(), count);
        for (int64_t at = 0; at < count;) {
            const int64_t column = (start + at) % columns, n = std::min(columns - column, count - at);
            place((start + at) / columns, column, wide.data() + at, n);
            at += n;
        }
    }
    return true;
}

bool load(const EnginePlan &plan, const EngineFactors &from, Factors &to) {
    const int64_t rank = from.rank, rows = from.rows(), columns = from.columns();
    to.left.resize(static_cast<size_t>(rows * rank));
    to.panels.resize(static_cast<size_t>(panel_floats(rank, columns)));
    to.of = {to.left.data(), to.panels.data(), rank, columns, from.scale};
    float *left = to.left.data(), *panels = to.panels.data();
    // right[j][c]
    const auto place_of_right = [=](int64_t j, int64_t c) {
        return panels + c / kPanel * kPanel * rank + j * kPanel + c % kPanel;
    };
    const auto a = [&](int64_t j, int64_t first, const float *values, int64_t n) {
        if (from.transposed)
            for (int64_t i = 0; i < n; ++i) left[(first + i) * rank + j] = values[i];
        else
            for (int64_t i = 0; i < n; ++i) *place_of_right(j, first + i) = values[i];
    };
    const auto b = [&](int64_t row, int64_t first, const float *values, int64_t n) {
        if (from.transposed)
            for (int64_t i = 0; i < n; ++i) *place_of_right(first + i, row) = values[i];
        else
            std::copy(values, values + n, left + row * rank + first);
    };
    const auto fd = [&](const EngineRange &range) { return plan.inputs[static_cast<size_t>(range.input)].fd; };
    return read_matrix(fd(from.a), from.a, rank, from.inner, a) &&
           read_matrix(fd(from.b), from.b, from.outer, rank, b);
}

}  // namespace

FactorPool::FactorPool(const EnginePlan &plan) : plan_(plan), limit_(kKept) {
    places_.assign(plan.factors.size(), kept_.end());
    for (const EngineSegment &segment : plan.segments) {
        int64_t nbytes = 0;
        for (const EngineTerm &term : segment.terms)
            if (term.low_rank()) {
                const EngineFactors &one = plan.factors[static_cast<size_t>(term.factors)];
                nbytes += 4 * (one.rows() * one.rank + panel_floats(one.rank, one.columns()));
            }
        limit_ = std::max(limit_, 2 * nbytes);
    }
}

std::shared_ptr<const Factors> FactorPool::get(int32_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Kept::iterator &place = places_[static_cast<size_t>(number)];
    if (place == kept_.end()) {
        auto made = std::make_shared<Factors>();
        if (!load(plan_, plan_.factors[static_cast<size_t>(number)], *made)) return nullptr;
        nbytes_ += made->nbytes();
        place = kept_.emplace(kept_.end(), number, std::move(made));
        for (; kept_.size() > 1 && nbytes_ > limit_; kept_.pop_front()) {
            nbytes_ -= kept_.front().second->nbytes();
            places_[static_cast<size_t>(kept_.front().first)] = kept_.end();
        }
    }
    kept_.splice(kept_.end(), kept_, place);
    return kept_.back().second;
}

}  // namespace avops
