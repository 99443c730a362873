// avops: combine with inputs read from files, piece by piece.
//
// Reading a whole window of every input and combining it afterwards sends all of it through memory
// twice. Here a piece is read into a buffer that stays in the core's own cache, and combined there.
// Nothing is reported but failure: the caller then does the window again the long way, which says
// what is wrong with which file.
#include "avops.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <new>
#include <vector>

namespace {

int64_t size_of(int32_t dtype) { return dtype == AVOPS_F32 ? 4 : 2; }

// Pieces are whole passes of the kernel (kFused in fused.h): their offsets in a file differ by pages.
constexpr int64_t kBlock = 2048, kLine = 64, kPage = 4096;

// Where in its page a buffer begins for data from this offset of a file. Kernels copy out of the page
// cache several times slower when the buffer's place in its page is 1 to 31 bytes above the data's
// (loads then wait for stores that only look alike); this is 32 to 95 above, at a whole cache line.
int64_t place_of(int64_t offset) { return (offset % kPage + 32 + kLine - 1) / kLine * kLine % kPage; }

bool read_all(int fd, char *to, int64_t size, int64_t offset) {
    while (size > 0) {
        const ssize_t got = pread(fd, to, static_cast<size_t>(size), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got, size -= got, offset += got;
    }
    return true;
}

bool read_input(const avops_file_input &input, int64_t start, int64_t n, char *to) {
    const int64_t size = size_of(input.dtype);
    return read_all(input.fd, to, n * size, input.offset + start * size);
}

}  // namespace

int32_t avops_combine_files(avops_file_input base, const avops_file_term *terms, int64_t term_count,
                            avops_output out, int64_t n, avops_rounding rounding, void *scratch,
                            int64_t scratch_size, avops_combine_counts *counts) {
    *counts = {0, 0, 0, 0};
    int64_t element = size_of(base.dtype);
    for (int64_t k = 0; k < term_count; ++k) element += size_of(terms[k].values.dtype);
    const int64_t room = (scratch_size - (term_count + 1) * 2 * kPage) / element / kBlock * kBlock;
    if (room < kBlock) return 0;
    std::vector<avops_term> here;
    try {
        here.resize(static_cast<size_t>(term_count));
    } catch (const std::bad_alloc &) {
        return 0;
    }
    for (int64_t start = 0; start < n; start += room) {
        const int64_t count = std::min(room, n - start);
        char *at = static_cast<char *>(scratch);
        const auto next = [&](const avops_file_input &input) {
            const int64_t size = size_of(input.dtype);
            char *mine = at + place_of(input.offset + start * size);
            at += (count * size + kPage - 1) / kPage * kPage + kPage;
            return read_input(input, start, count, mine) ? mine : nullptr;
        };
        const avops_input origin = {next(base), base.dtype};
        bool whole = origin.data != nullptr;
        for (int64_t k = 0; whole && k < term_count; ++k) {
            here[k] = {{next(terms[k].values), terms[k].values.dtype}, terms[k].lam, terms[k].aligned};
            whole = here[k].values.data != nullptr;
        }
        if (!whole) return 0;
        const avops_output part = {static_cast<char *>(out.data) + start * size_of(out.dtype), out.dtype};
        const avops_rounding moved = {rounding.dither, rounding.key, rounding.start + start};
        const avops_combine_counts found =
            avops_combine(origin, here.data(), term_count, part, count, moved, 1);
        counts->nonfinite += found.nonfinite;
        counts->unchanged += found.unchanged;
        counts->overflowed += found.overflowed;
        counts->flushed += found.flushed;
    }
    return 1;
}
