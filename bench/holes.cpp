// Preloaded by bench/memory.py: a disk of any size for files of zeros. Reserving space only sets the
// size, blocks of zeros are not written and stay holes, and statvfs says that there is room.
#include <cstring>
#include <dlfcn.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <unistd.h>

namespace {

template <class Function>
Function next(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool all_zero(const void *data, size_t size) {
    const char *bytes = static_cast<const char *>(data);
    return size > 0 && bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0;
}

}  // namespace

extern "C" {

int fallocate(int fd, int, off_t offset, off_t size) { return ftruncate(fd, offset + size); }

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    static const auto real = next<ssize_t (*)(int, const void *, size_t, off_t)>("pwrite64");
    return size >= 4096 && all_zero(data, size) ? static_cast<ssize_t>(size) : real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

int statvfs(const char *path, struct statvfs *found) {
    static const auto real = next<int (*)(const char *, struct statvfs *)>("statvfs");
    const int status = real(path, found);
    found->f_bavail = found->f_bfree = found->f_blocks = 1ull << 40;
    return status;
}

int statvfs64(const char *path, struct statvfs64 *found) {
    static const auto real = next<int (*)(const char *, struct statvfs64 *)>("statvfs64");
    const int status = real(path, found);
    found->f_bavail = found->f_bfree = found->f_blocks = 1ull << 40;
    return status;
}
}
