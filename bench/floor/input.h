// An input file: read through the page cache, past it, or through a mapping.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

constexpr int64_t PAGE = 4096, REGION = 16 << 20, HUGE_PAGE = 2 << 20;

[[noreturn]] inline void fail(const std::string &what) {
    std::fprintf(stderr, "floor: %s: %s\n", what.c_str(), std::strerror(errno));
    std::_Exit(1);
}

inline int64_t down(int64_t x) { return x & ~(PAGE - 1); }
inline int64_t up(int64_t x) { return down(x + PAGE - 1); }

// Page-aligned, on large pages where the system has them: direct reading needs half the time then.
inline uint8_t *memory(int64_t bytes, bool huge) {
    const int64_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *raw = mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) fail("memory");
    const auto start = (reinterpret_cast<uintptr_t>(raw) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    auto *found = reinterpret_cast<uint8_t *>(start);
    if (huge) madvise(found, size, MADV_HUGEPAGE);
    return found;
}

class Input {
  public:
    Input(const std::string &path, const std::string &how) : how_(how), path_(path) {
        fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd_ < 0) fail(path);
        struct stat status;
        if (fstat(fd_, &status) != 0) fail(path);
        size_ = status.st_size;
        regions_ = std::make_unique<std::atomic<int8_t>[]>(size_ / REGION + 1);
        if (how == "mmap") {
            map_ = static_cast<uint8_t *>(mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0));
            if (map_ == MAP_FAILED) fail(path);
        }
    }

    bool cached(int64_t offset) {
        if (how_ != "auto") return how_ != "direct";
        std::atomic<int8_t> &state = regions_[offset / REGION];
        if (state.load(std::memory_order_relaxed) == 0) {
            const uint64_t start = offset / REGION * REGION;
            const uint64_t range[2] = {start, std::min<uint64_t>(REGION, size_ - start)};
            uint64_t counts[5] = {};
            const bool known = syscall(451, fd_, range, counts, 0) == 0;  // cachestat
            const uint64_t pages = (range[1] + PAGE - 1) / PAGE;
            state = !known || counts[0] >= pages * 9 / 10 ? 1 : -1;
        }
        return state > 0;
    }

    // Where the bytes are: in the mapping, or read into `buffer` (a whole page and a piece, at least)
    // through the page cache.
    const uint8_t *get(uint8_t *buffer, int64_t offset, int64_t bytes) const {
        if (map_ == nullptr) {
            // Zen 4's `rep movsb`, the kernel's copy, is four times slower when the destination is 1 to
            // 31 bytes after the source within their pages. Whole cache lines suit the loops.
            buffer += (offset % PAGE + 32 + 63) / 64 * 64;
            for (int64_t done = 0; done < bytes;) {
                const ssize_t got = pread(fd_, buffer + done, bytes - done, offset + done);
                if (got <= 0) fail("read " + path_);
                done += got;
            }
            return buffer;
        }
        // Populating maps a whole range at once, several times cheaper than fault by fault.
        madvise(map_ + down(offset), up(offset + bytes) - down(offset), 22 /* MADV_POPULATE_READ */);
        return map_ + offset;
    }

    void release(int64_t offset, int64_t bytes) const {
        if (map_ != nullptr) madvise(map_ + down(offset), up(offset + bytes) - down(offset), MADV_DONTNEED);
    }

    const uint8_t *get_direct(uint8_t *buffer, int64_t offset, int64_t bytes) {
        int fd = direct_.load(std::memory_order_acquire);
        if (fd < 0) {
            fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
            if (fd < 0) fail("direct open " + path_);
            direct_ = fd;  // Two threads may both open it: harmless.
        }
        const int64_t start = down(offset), end = up(offset + bytes);
        for (int64_t at = start; at < offset + bytes;) {
            const ssize_t got = pread(fd, buffer + (at - start), end - at, at);
            if (got <= 0) fail("direct read " + path_);
            at += got;
        }
        return buffer + (offset - start);
    }

  private:
    std::string how_, path_;
    int fd_ = -1;
    std::atomic<int> direct_{-1};
    int64_t size_ = 0;
    uint8_t *map_ = nullptr;
    std::unique_ptr<std::atomic<int8_t>[]> regions_;
};
