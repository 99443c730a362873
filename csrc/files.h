// avops: files and memory as the engine's threads use them.
#pragma once

#include "avops.h"

#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace avops {

constexpr int64_t kAlign = 4096, kLargePage = 1 << 21, kLine = 64;

inline int64_t size_of(int32_t dtype) { return dtype == AVOPS_F32 ? 4 : 2; }
inline int64_t down(int64_t x) { return x / kAlign * kAlign; }
inline int64_t up(int64_t x) { return down(x + kAlign - 1); }

// Memory on large pages where the system has them: direct reads need half the time then.
class Memory {
  public:
    Memory() = default;
    ~Memory() { release(); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    // `there` if it is large enough, or else memory of one's own.
    uint8_t *take(int64_t bytes, uint8_t *there, int64_t size) {
        return bytes <= size ? there : take(bytes);
    }

    // At least `bytes` bytes that begin at a page, or null. What was there is lost.
    uint8_t *take(int64_t bytes) {
        if (bytes <= size_) return data_;
        release();
        const int64_t size = (bytes + kLargePage - 1) / kLargePage * kLargePage;
        void *found = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
        (void)madvise(found, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
        data_ = static_cast<uint8_t *>(found), size_ = size;
        return data_;
    }

  private:
    void release() {
        if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
        data_ = nullptr, size_ = 0;
    }

    uint8_t *data_ = nullptr;
    int64_t size_ = 0;
};

// Where in its page a buffer begins for data from this offset of a file. Kernels copy out of the page
// cache several times slower when the buffer's place in its page is 1 to 31 bytes above the data's
// (loads then wait for stores that only look alike); this is 32 to 95 above, at a whole cache line.
inline int64_t place_of(int64_t offset) { return (offset % kAlign + 32 + kLine - 1) / kLine * kLine % kAlign; }

inline bool read_all(int fd, void *memory, int64_t size, int64_t offset) {
    char *to = static_cast<char *>(memory);
    while (size > 0) {
        const ssize_t got = pread(fd, to, static_cast<size_t>(size), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got, size -= got, offset += got;
    }
    return true;
}

// Whether an error of a direct read or write says that there is none here.
inline bool refused(int code) { return code == EINVAL || code == EOPNOTSUPP || code == ENOTTY; }

}  // namespace avops
