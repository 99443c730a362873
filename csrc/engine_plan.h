// avops: what the engine of engine.h is to do, and what it reports.
#pragma once

#include "avops.h"
#include "digest.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace avops {

// An input file. direct: a descriptor that reads past the page cache, or -1.
struct EngineInput {
    int fd = -1, direct = -1;
    int64_t size = 0;
    // By region: 0 not asked yet, 1 in the page cache, -1 not.
    std::unique_ptr<std::atomic<int8_t>[]> regions;
};

// An output file, the same for every candidate but for what is computed.
struct EngineOutput {
    int64_t size = 0;
    std::string prefix;
    size_t first = 0, last = 0;  // its segments
};

// Where an output file of a candidate goes.
struct EngineTarget {
    int fd = -1, direct = -1;
};

struct EngineRange {
    int32_t input = 0, dtype = 0;
    int64_t offset = 0;
};

// The factors of scale * B@A, or of its transpose; A is [rank][inner], B [outer][rank].
struct EngineFactors {
    EngineRange a, b;
    int64_t rank = 0, inner = 0, outer = 0;
    float scale = 0;
    int32_t transposed = 0;

    int64_t rows() const { return transposed ? inner : outer; }
    int64_t columns() const { return transposed ? outer : inner; }
};

// factors: their number, or -1 where values are stored. lams: one for each candidate.
struct EngineTerm {
    EngineRange values;
    int32_t factors = -1, aligned = 0;
    std::vector<float> lams;

    bool low_rank() const { return factors >= 0; }
};

// combine: base + sum of the terms. copy: the base's bytes. diff: the only term - base. delta: the only
// term, whose elements that become zero are counted as unchanged.
enum EngineOperation { kCombine = 0, kCopy = 1, kDiff = 2, kDelta = 3 };

// Candidates that are computed together: each has a window in memory.
constexpr int64_t kGroup = 8;

// Consecutive elements of one tensor, as in avops/stream/plan.py. A copy counts bytes.
struct EngineSegment {
    int32_t output = 0, dtype = 0;
    int64_t number = 0, offset = 0, count = 0, first = 0;
    int32_t operation = kCombine;
    avops_rounding rounding = {0, 0, 0};
    EngineRange base;
    std::vector<EngineTerm> terms;

    int64_t size() const { return operation == kCopy ? 1 : dtype == AVOPS_F32 ? 4 : 2; }
    int64_t end() const { return offset + count * size(); }
};

// A block of a candidate's that is written, and what was seen in it.
struct EngineBlock {
    int32_t candidate = 0, output = 0;
    int64_t number = 0;
    uint8_t digest[16] = {};
    int64_t elements = 0;
    avops_combine_counts counts = {0, 0, 0, 0};
    std::vector<std::pair<int64_t, int64_t>> nonfinite;             // segment, count
    std::vector<std::pair<int64_t, std::vector<double>>> sums;      // segment, inner products
};

struct EnginePlan {
    std::vector<EngineInput> inputs;
    std::vector<EngineOutput> outputs;
    int32_t candidates = 0;
    std::vector<EngineTarget> targets;    // candidate by candidate, one for each output
    std::vector<EngineFactors> factors;
    std::vector<EngineSegment> segments;  // by output, then by offset; none is empty
    // Output, block and candidate, in order: left as they are.
    std::vector<std::tuple<int32_t, int64_t, int32_t>> done;
    int64_t block = 0;                    // bytes, at least kDigestFrom
    int64_t together = 1;                 // blocks that are read and written at once
    int64_t stride = 0, sample = 0;       // the first `sample` elements of each `stride` are sampled
    int64_t direct_from = 0;              // shorter reads gain nothing from going past the cache
    int threads = 1;
};

}  // namespace avops
