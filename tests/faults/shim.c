/* Makes system calls fail, for the process that preloads it.

   AVOPS_FAULTS holds rules CALL:N:VALUE separated by spaces. N is the call's number from 1 on, or 0
   for every call. VALUE is an errno, or "short": at most 1000 bytes are moved, or one block past the
   page cache. Calls: fsync, fdatasync, pwrite, read (at an offset, by any call), direct_pwrite and
   direct_read (past the page cache), direct_open, fallocate, cachestat. Each fault is told on
   stderr. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHORT -1
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* 0, an errno or SHORT, for this call of ``name``. */
static int fault(const char *name, int *count)
{
    const char *rules = getenv("AVOPS_FAULTS");
    size_t length = strlen(name);
    if (!rules)
        return 0;
    int number = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    for (const char *rule = rules; rule; rule = strchr(rule, ' ')) {
        rule += *rule == ' ';
        if (strncmp(rule, name, length) == 0 && rule[length] == ':') {
            char *end;
            long wanted = strtol(rule + length + 1, &end, 10);
            if (wanted == 0 || wanted == number) {
                dprintf(2, "fault in %s\n", name);
                return strncmp(end + 1, "short", 5) == 0 ? SHORT : atoi(end + 1);
            }
        }
    }
    return 0;
}

#define FAIL_IF(name)                        \
    do {                                     \
        static int count;                    \
        int code = fault(name, &count);      \
        if (code > 0) {                      \
            errno = code;                    \
            return -1;                       \
        }                                    \
    } while (0)

int fsync(int fd)
{
    FAIL_IF("fsync");
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    FAIL_IF("fdatasync");
    return REAL(fdatasync)(fd);
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    FAIL_IF("fallocate");
    return REAL(fallocate)(fd, mode, offset, size);
}

static ssize_t write_at(int fd, const void *data, size_t size, off64_t offset)
{
    static int all, direct;
    int code = fault("pwrite", &all);
    if (code == 0 && (fcntl(fd, F_GETFL) & O_DIRECT))
        code = fault("direct_pwrite", &direct);
    if (code > 0) {
        errno = code;
        return -1;
    }
    /* Past the page cache whole blocks are written. */
    size_t most = (fcntl(fd, F_GETFL) & O_DIRECT) ? 4096 : 1000;
    if (code == SHORT && size > most)
        size = most;
    return REAL(pwrite64)(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return write_at(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return write_at(fd, data, size, offset);
}

static ssize_t read_at(int fd, const struct iovec *vector, int count, off64_t offset, int flags)
{
    static int all, direct;
    int code = fault("read", &all);
    if (code == 0 && (fcntl(fd, F_GETFL) & O_DIRECT))
        code = fault("direct_read", &direct);
    if (code > 0) {
        errno = code;
        return -1;
    }
    struct iovec first = vector[0];
    if (code == SHORT && first.iov_len > 1000) {
        /* Past the page cache only whole blocks can be asked for. */
        char block[1 << 16] __attribute__((aligned(4096)));
        struct iovec aside = {block, first.iov_len < sizeof block ? first.iov_len : sizeof block};
        ssize_t got = REAL(preadv64v2)(fd, &aside, 1, offset, flags);
        got = got > 1000 ? 1000 : got;
        if (got > 0)
            memcpy(first.iov_base, block, (size_t)got);
        return got;
    }
    return REAL(preadv64v2)(fd, vector, count, offset, flags);
}

ssize_t preadv64(int fd, const struct iovec *vector, int count, off64_t offset)
{
    return read_at(fd, vector, count, offset, 0);
}

ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
    return read_at(fd, vector, count, offset, 0);
}

ssize_t preadv64v2(int fd, const struct iovec *vector, int count, off64_t offset, int flags)
{
    return read_at(fd, vector, count, offset, flags);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    struct iovec vector = {data, size};
    return read_at(fd, &vector, 1, offset, 0);
}

ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    return pread64(fd, data, size, offset);
}

static int open_file(const char *path, int flags, mode_t mode)
{
    if (flags & O_DIRECT)
        FAIL_IF("direct_open");
    return REAL(open64)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_file(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_file(path, flags, mode);
}

long syscall(long number, ...)
{
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == 451)
        FAIL_IF("cachestat");
    return ((long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"))(number, a[0], a[1], a[2], a[3], a[4],
                                                              a[5]);
}
