// avops: what a thread of the engine does with a window. For engine.cpp alone.
#pragma once

#include "engine.h"
#include "engine_piece.h"
#include "files.h"
#include "threads.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace avops {

// For the pieces of cached inputs: half of a usual core's own cache. Pieces are whole passes of the kernel
// (kFused in fused.h): their offsets in a file differ by pages.
constexpr int64_t kScratch = 1 << 19, kPiece = 2048;

class EngineWorker {
  public:
    explicit EngineWorker(Engine &engine)
        : engine_(engine), plan_(engine.plan_), window_(up(plan_.together * plan_.block)), pieces_(take()) {}

    // Fills, digests and writes the blocks of a window. False: something failed, nothing is reported.
    bool process(const Engine::Window &window) {
        const EngineOutput &output = plan_.outputs[static_cast<size_t>(window.output)];
        wanted_ = &engine_.wanted_[window.wanted];
        start_ = window.block * plan_.block;
        end_ = std::min(start_ + window.count * plan_.block, output.size);
        blocks_.assign(wanted_->size() * static_cast<size_t>(window.count), EngineBlock());
        bytes_read_ = 0;
        for (first_ = 0; first_ < wanted_->size(); first_ = last_) {
            // Many candidates take long: what is finished is reported, the others are left.
            if (first_ > 0 && engine_.stop_) {
                blocks_.resize(first_ * static_cast<size_t>(window.count));
                break;
            }
            last_ = std::min(first_ + static_cast<size_t>(kGroup), wanted_->size());
            if (!fill(output)) return false;
            for (size_t i = first_; i < last_; ++i)
                if (!finish(window, i)) return false;
        }
        return true;
    }

    std::vector<EngineBlock> &blocks() { return blocks_; }
    int64_t bytes_read() const { return bytes_read_; }

  private:
    // In one piece, since large pages are dear to share: the windows of a group, memory for low-rank
    // differences, scratch, and the arena, which is touched only where inputs are not in the page cache.
    float *take() {
        const int64_t windows = window_ * std::min<int64_t>(kGroup, plan_.candidates), deltas = deltas_size();
        memory_ = pages_.take(windows + deltas + kScratch + arena_size());
        if (memory_ == nullptr) throw std::bad_alloc();
        scratch_ = memory_ + windows + deltas;
        arena_ = scratch_ + kScratch;
        return reinterpret_cast<float *>(memory_ + windows);
    }

    // The group's windows.
    bool fill(const EngineOutput &output) {
        const int64_t head = std::min<int64_t>(end_, static_cast<int64_t>(output.prefix.size()));
        for (size_t i = first_; i < last_ && start_ < head; ++i)
            std::memcpy(memory_ + static_cast<int64_t>(i - first_) * window_, output.prefix.data() + start_,
                        static_cast<size_t>(head - start_));
        const auto segments = plan_.segments.begin();
        auto segment = std::upper_bound(
            segments + static_cast<std::ptrdiff_t>(output.first),
            segments + static_cast<std::ptrdiff_t>(output.last), start_,
            [](int64_t start, const EngineSegment &one) { return start < one.end(); });
        for (; segment != segments + static_cast<std::ptrdiff_t>(output.last) && segment->offset < end_;
             ++segment)
            if (!(segment->operation == kCopy ? copy(*segment) : combine(*segment))) return false;
        return true;
    }

    // Digests and writes the window of the wanted candidate i.
    bool finish(const Engine::Window &window, size_t i) {
        const int32_t candidate = (*wanted_)[i];
        uint8_t *memory = memory_ + static_cast<int64_t>(i - first_) * window_;
        for (int64_t k = 0; k < window.count; ++k) {
            EngineBlock &block = block_of(i, k);
            block.candidate = candidate, block.output = window.output, block.number = window.block + k;
            const int64_t at = k * plan_.block;
            digest(memory + at, std::min(plan_.block, end_ - start_ - at), block.digest);
        }
        const size_t outputs = plan_.outputs.size();
        return write(plan_.targets[static_cast<size_t>(candidate) * outputs + static_cast<size_t>(window.output)],
                     memory);
    }

    EngineBlock &block_of(size_t i, int64_t number) {
        return blocks_[i * (blocks_.size() / wanted_->size()) + static_cast<size_t>(number)];
    }

    bool copy(const EngineSegment &segment) {
        const int64_t first = std::max(start_, segment.offset), last = std::min(end_, segment.end());
        uint8_t *to = memory_ + (first - start_);
        const int64_t offset = segment.base.offset + (first - segment.offset), nbytes = last - first;
        count_read(nbytes);
        if (all_cached(segment.base.input, offset, nbytes)) {
            if (!read_all(input(segment.base).fd, to, nbytes, offset)) return false;
        } else {
            const uint8_t *found = fetch(segment.base.input, arena_, offset, nbytes);
            if (found == nullptr) return false;
            std::memcpy(to, found, static_cast<size_t>(nbytes));
        }
        for (size_t i = first_ + 1; i < last_; ++i)
            std::memcpy(to + static_cast<int64_t>(i - first_) * window_, to, static_cast<size_t>(nbytes));
        return true;
    }

    // The segment's bytes in this window, cut at blocks, and there at elements that straddle.
    bool combine(const EngineSegment &segment) {
        const int64_t first = std::max(start_, segment.offset), last = std::min(end_, segment.end());
        const int64_t size = segment.size();
        from_ = (first - segment.offset) / size;
        to_ = (last - segment.offset + size - 1) / size;
        if (!pieces_.begin(segment, *wanted_, first_, last_, engine_.factors_) || !gather(segment)) return false;
        for (int64_t begin = first; begin < last;) {
            const int64_t number = (begin - start_) / plan_.block;
            const int64_t stop = std::min(last, start_ + (number + 1) * plan_.block);
            if (!part(segment, begin - segment.offset, stop - segment.offset, number)) return false;
            begin = stop;
        }
        return true;
    }

    // Bytes begin … stop of the segment, within one block. An element that straddles two blocks is
    // computed for both, and counted where it begins.
    bool part(const EngineSegment &segment, int64_t begin, int64_t stop, int64_t number) {
        const int64_t size = segment.size();
        const int64_t head = (size - begin % size) % size;
        if (head != 0) {
            const int64_t nbytes = std::min(head, stop - begin);
            if (!straddling(segment, begin, size - head, nbytes, -1)) return false;
            begin += nbytes;
        }
        const int64_t count = (stop - begin) / size;
        if (count > 0) {
            uint8_t *to = memory_ + (segment.offset + begin - start_);
            if (!piece(segment, begin / size, count, to, window_, number)) return false;
            begin += count * size;
        }
        return begin == stop || straddling(segment, begin, 0, stop - begin, number);
    }

    bool straddling(const EngineSegment &segment, int64_t begin, int64_t skip, int64_t nbytes, int64_t number) {
        alignas(8) uint8_t whole[8 * kGroup];
        if (!piece(segment, begin / segment.size(), 1, whole, 8, number)) return false;
        uint8_t *to = memory_ + (segment.offset + begin - start_);
        for (size_t i = 0; i < last_ - first_; ++i)
            std::memcpy(to + static_cast<int64_t>(i) * window_, whole + 8 * i + skip, static_cast<size_t>(nbytes));
        return true;
    }

    // count elements from `first` of the segment on, to `to` and further on by `apart` for every candidate;
    // counted in the blocks with that number unless it is negative.
    bool piece(const EngineSegment &segment, int64_t first, int64_t count, uint8_t *to, int64_t apart,
               int64_t number) {
        for (Share &share : pieces_.shares()) share.counts = {0, 0, 0, 0};
        if (gathered_) {
            operands(segment, first);
            pieces_.compute(first, count, operands_, to, apart);
        } else {
            const int64_t room = room_of(segment);
            for (int64_t start = 0; start < count; start += room) {
                const int64_t some = std::min(room, count - start);
                if (!read_piece(segment, first + start, some)) return false;
                pieces_.compute(first + start, some, operands_, to + start * segment.size(), apart);
            }
        }
        if (number < 0) return true;
        count_read(count * element_bytes(segment));
        for (size_t i = first_; i < last_; ++i) {
            const Share &share = pieces_.shares()[i - first_];
            if (share.copied) continue;
            EngineBlock &block = block_of(i, number);
            block.elements += count;
            block.counts.unchanged += share.counts.unchanged;
            block.counts.overflowed += share.counts.overflowed;
            block.counts.flushed += share.counts.flushed;
            if (share.counts.nonfinite) block.nonfinite.emplace_back(segment.number, share.counts.nonfinite);
        }
        return segment.operation != kCombine || sample(segment, first, count, to, apart, number);
    }

    // Elements of a piece of cached inputs.
    static int64_t room_of(const EngineSegment &segment) {
        int64_t inputs = 0;
        each_range(segment, [&](const EngineRange &) { ++inputs; return true; });
        const int64_t size = std::max<int64_t>(element_bytes(segment), 1);
        return std::max(kPiece, (kScratch - inputs * 2 * kAlign) / size / kPiece * kPiece);
    }

    // What is read element by element: the base, then the stored terms. False once use() is.
    template <class Use>
    static bool each_range(const EngineSegment &segment, Use use) {
        if (segment.operation != kDelta && !use(segment.base)) return false;
        for (const EngineTerm &term : segment.terms)
            if (!term.low_rank() && !use(term.values)) return false;
        return true;
    }

    // Has operands_ point to what next() gives for each range, in order; null where terms are low-rank.
    template <class Next>
    bool operands_from(const EngineSegment &segment, Next next) {
        operands_.values.assign(segment.terms.size(), nullptr);
        if (segment.operation != kDelta && (operands_.base = next(segment.base)) == nullptr) return false;
        for (size_t k = 0; k < segment.terms.size(); ++k)
            if (!segment.terms[k].low_rank() &&
                (operands_.values[k] = next(segment.terms[k].values)) == nullptr)
                return false;
        return true;
    }

    // Some elements from `first` of the segment on, into the scratch, and the arena if that is too small:
    // it holds as many as are in a window.
    bool read_piece(const EngineSegment &segment, int64_t first, int64_t count) {
        uint8_t *at = scratch_;
        return operands_from(segment, [&](const EngineRange &range) -> const uint8_t * {
            const int64_t size = size_of(range.dtype), offset = range.offset + first * size;
            uint8_t *mine = at + place_of(offset);
            at += slot_of(count * size);
            return read_all(input(range).fd, mine, count * size, offset) ? mine : nullptr;
        });
    }

    // Inner products of the sampled elements among `count` from `first` on.
    bool sample(const EngineSegment &segment, int64_t first, int64_t count, const uint8_t *to, int64_t apart,
                int64_t number) {
        const int64_t flat = segment.first + first;
        for (int64_t at = flat / plan_.stride * plan_.stride; at < flat + count; at += plan_.stride) {
            const int64_t low = std::max(at, flat), high = std::min(at + plan_.sample, flat + count);
            if (low >= high) continue;
            const int64_t here = low - segment.first;
            if (!sampled(segment, here, high - low)) return false;
            const uint8_t *out = to + (here - first) * segment.size();
            for (size_t i = first_; i < last_; ++i) {
                if (pieces_.shares()[i - first_].terms.empty()) continue;
                std::vector<double> sums;
                if (!pieces_.sums(high - low, operands_, out, apart, i - first_, sums)) return false;
                block_of(i, number).sums.emplace_back(segment.number, std::move(sums));
            }
        }
        return true;
    }

    // All operands of a sample, low-rank ones included.
    bool sampled(const EngineSegment &segment, int64_t first, int64_t count) {
        const int64_t slot = plan_.sample * 4;
        uint8_t *at = sample_.take(slot * (static_cast<int64_t>(segment.terms.size()) + 1), scratch_, kScratch);
        if (at == nullptr) return false;
        if (gathered_) operands(segment, first);
        else if (!operands_from(segment, [&](const EngineRange &range) -> const uint8_t * {
                     const int64_t size = size_of(range.dtype);
                     at += slot;
                     const int64_t offset = range.offset + first * size;
                     return read_all(input(range).fd, at - slot, count * size, offset) ? at - slot : nullptr;
                 }))
            return false;
        for (size_t k = 0; k < segment.terms.size(); ++k)
            if (segment.terms[k].low_rank()) {
                pieces_.delta(k, first, count, reinterpret_cast<float *>(at));
                operands_.values[k] = at;
                at += slot;
            }
        return true;
    }

    // Reads the inputs of elements from_ … to_ into memory, unless all of them are in the page cache
    // and can be combined from there.
    bool gather(const EngineSegment &segment) {
        const int64_t count = to_ - from_;
        gathered_ = !each_range(segment, [&](const EngineRange &range) {
            const int64_t size = size_of(range.dtype);
            return all_cached(range.input, range.offset + from_ * size, count * size);
        });
        if (!gathered_) return true;
        uint8_t *at = arena_;
        found_.clear();
        return each_range(segment, [&](const EngineRange &range) {
            const int64_t size = size_of(range.dtype);
            found_.push_back(fetch(range.input, at, range.offset + from_ * size, count * size));
            at += slot_of(count * size);
            return found_.back() != nullptr;
        });
    }

    // The gathered operands from element `first` on.
    void operands(const EngineSegment &segment, int64_t first) {
        size_t next = 0;
        operands_from(segment, [&](const EngineRange &range) {
            return found_[next++] + (first - from_) * size_of(range.dtype);
        });
    }

    // Bytes of a file, read into `arena`, which begins at a page and has two pages more; null after an
    // error.
    const uint8_t *fetch(int32_t number, uint8_t *arena, int64_t offset, int64_t nbytes) {
        const EngineInput &file = plan_.inputs[static_cast<size_t>(number)];
        const int64_t lead = offset % kAlign;
        int64_t done = 0;
        if (nbytes >= plan_.direct_from && file.direct >= 0 && !all_cached(number, offset, nbytes)) {
            const int64_t size = up(lead + nbytes);
            ssize_t got;
            do got = pread(file.direct, arena, static_cast<size_t>(size), static_cast<off_t>(offset - lead));
            while (got < 0 && errno == EINTR);
            // What did not come directly comes through the cache, or fails there.
            done = std::clamp<int64_t>(got - lead, 0, nbytes);
        }
        return read_all(file.fd, arena + lead + done, nbytes - done, offset + done) ? arena + lead : nullptr;
    }

    bool write(const EngineTarget &target, const uint8_t *memory) const {
        const int64_t total = end_ - start_;
        int64_t direct = target.direct >= 0 && start_ % kAlign == 0 ? down(total) : 0;
        for (int64_t done = 0; done < total;) {
            const bool past = done < direct;
            const int64_t nbytes = (past ? direct : total) - done;
            const ssize_t got = pwrite(past ? target.direct : target.fd, memory + done,
                                       static_cast<size_t>(nbytes), static_cast<off_t>(start_ + done));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0 && past && refused(errno)) {
                direct = 0;
                continue;
            }
            if (got <= 0) return false;
            done += got;
            if (done % kAlign != 0) direct = 0;
        }
        return true;
    }

    EngineInput &input(const EngineRange &range) const {
        return plan_.inputs[static_cast<size_t>(range.input)];
    }

    bool all_cached(int32_t number, int64_t offset, int64_t nbytes) const {
        const int64_t last = offset + std::max<int64_t>(nbytes, 1) - 1;
        return engine_.cached(number, offset) && engine_.cached(number, last);
    }

    // Bytes for the inputs of any window.
    int64_t arena_size() const {
        int64_t largest = 0;
        for (const EngineSegment &segment : plan_.segments) {
            const int64_t count = plan_.together * plan_.block / segment.size() + 2;
            int64_t total = 0;
            if (segment.operation == kCopy) total = slot_of(count);
            else each_range(segment, [&](const EngineRange &range) {
                total += slot_of(count * size_of(range.dtype));
                return true;
            });
            largest = std::max(largest, total);
        }
        return largest;
    }

    // Bytes for the low-rank differences of any segment.
    int64_t deltas_size() const {
        int64_t most = 0;
        for (const EngineSegment &segment : plan_.segments) {
            int64_t count = 0;
            for (const EngineTerm &term : segment.terms) count += term.low_rank();
            if (count > 0) most = std::max(most, count * deltas_of_one(count) * 4);
        }
        return up(most);
    }

    static int64_t slot_of(int64_t nbytes) { return up(nbytes) + 2 * kAlign; }

    static int64_t element_bytes(const EngineSegment &segment) {
        int64_t total = 0;
        each_range(segment, [&](const EngineRange &range) {
            total += size_of(range.dtype);
            return true;
        });
        return total;
    }

    // What is read again for further groups of candidates is no progress.
    void count_read(int64_t nbytes) { bytes_read_ += first_ == 0 ? nbytes : 0; }

    Engine &engine_;
    EnginePlan &plan_;
    const int64_t window_;
    Memory pages_, sample_;
    uint8_t *memory_ = nullptr, *scratch_ = nullptr, *arena_ = nullptr;
    Pieces pieces_;
    const DefaultFloatMode mode_;
    const std::vector<int32_t> *wanted_ = nullptr;
    size_t first_ = 0, last_ = 0;  // of the wanted candidates: those at hand
    int64_t start_ = 0, end_ = 0;  // bytes of the output
    int64_t from_ = 0, to_ = 0;    // elements of the segment at hand
    bool gathered_ = false;
    std::vector<const uint8_t *> found_;
    Operands operands_;
    std::vector<EngineBlock> blocks_;
    int64_t bytes_read_ = 0;
};

}  // namespace avops
