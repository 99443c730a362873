// What csrc/combine.cu needs of CUDA, on the host: the very source runs, block by block, its threads as
// fibers that meet at barriers. Included before it (see tests/kernels/test_cuda_emulated.py).
//
// Stricter than a device where that finds mistakes: vector accesses must be aligned, and streaming loads
// and stores must stay in memory that the test has named. NaN results have the bits that NVIDIA's
// processors give them, which are not the contract's.
#pragma once

#include "../../csrc/bf16.h"

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <ucontext.h>
#include <vector>

#define AVOPS_ON_CPU 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
    uint32_t x;
};
static Index threadIdx, blockIdx, blockDim;

struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct float2 {
    float x, y;
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// ------------------------------------------------------------------------------ memory

struct Memory {
    uintptr_t end;
    bool writable;
};
// By where they begin; none overlap, but that one may be named twice.
static std::map<uintptr_t, Memory> allowed;
static char fault[200];

static void complain(const char *what, uintptr_t address, size_t size) {
    if (!fault[0])
        std::snprintf(fault, sizeof fault, "%s of %zu bytes at %#zx, block %u, thread %u", what, size,
                      static_cast<size_t>(address), blockIdx.x, threadIdx.x);
}

// False: the access is left out.
static inline bool check(const void *pointer, size_t size, bool write) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address % (size < 16 ? size : 16) != 0) {
        complain(write ? "misaligned store" : "misaligned load", address, size);
        return false;
    }
    auto next = allowed.upper_bound(address);
    if (next != allowed.begin()) {
        const Memory memory = (--next)->second;
        if (address + size <= memory.end && (memory.writable || !write)) return true;
    }
    complain(write ? "stray store" : "stray load", address, size);
    return false;
}

template <class T>
static inline T __ldcs(const T *pointer) {
    T value = {};
    if (check(pointer, sizeof(T), false)) std::memcpy(&value, pointer, sizeof(T));
    return value;
}
template <class T>
static inline T __ldg(const T *pointer) {
    return __ldcs(pointer);
}
template <class T>
static inline void __stcs(T *pointer, T value) {
    if (check(pointer, sizeof(T), true)) std::memcpy(pointer, &value, sizeof(T));
}
template <class T>
static inline void atomicAdd(T *pointer, T value) {
    *pointer += value;
}

// -------------------------------------------------------------------------- arithmetic

static inline uint32_t __float_as_uint(float x) { return avops::bits_of(x); }
static inline float __uint_as_float(uint32_t u) { return avops::float_of(u); }
static inline float canonical(float x) { return x == x ? x : avops::float_of(0x7fffffffu); }
static inline float __fadd_rn(float a, float b) { return canonical(a + b); }
static inline float __fsub_rn(float a, float b) { return canonical(a - b); }
static inline float __fmul_rn(float a, float b) { return canonical(a * b); }

static inline float half_to_float(uint32_t half) { return canonical(avops::F16::widen(half & 0xffffu)); }
static inline uint32_t float_to_half(float x) { return x == x ? avops::F16::round(x) : 0x7fffu; }
static inline uint32_t floats_to_halves(float lower, float upper) {
    return float_to_half(upper) << 16 | float_to_half(lower);
}

static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

static inline uint32_t hidden(uint32_t x) { return x; }
static inline void prefetch(uint64_t) {}

// ----------------------------------------------------------------------------- threads

constexpr uint32_t kThreads = 256;
constexpr size_t kStack = 128 << 10;

// Started by a context, switched by jumps: those make no system call.
struct Fiber {
    ucontext_t start;
    jmp_buf place;
    bool started, done;
    uint32_t meetings;
};
static jmp_buf scheduler;
static Fiber fibers[kThreads];
static uint32_t deposits[2][kThreads];

// Every thread of the block comes here before any goes on.
static void meet() {
    Fiber &fiber = fibers[threadIdx.x];
    ++fiber.meetings;
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

static inline void __syncthreads() { meet(); }

// Warps are whole: all 32 lanes take part. Two sets of deposits: a lane that is ahead does not overwrite
// what others are still to read.
static inline uint32_t __reduce_add_sync(uint32_t, uint32_t value) {
    const uint32_t thread = threadIdx.x;
    uint32_t *const set = deposits[fibers[thread].meetings % 2];
    set[thread] = value;
    meet();
    uint32_t sum = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) sum += set[thread / 32 * 32 + lane];
    return sum;
}

typedef void (*Kernel)(const long long *, const long long *, const float *, const long long *,
                       unsigned long long *, long long, long long);

struct Launch {
    Kernel kernel;
    const void *entries, *parts, *lams, *chunks;
    void *counts;
    int64_t terms, size;
};
static const Launch *launch;

static void run_thread() {
    launch->kernel(static_cast<const long long *>(launch->entries),
                   static_cast<const long long *>(launch->parts),
                   static_cast<const float *>(launch->lams),
                   static_cast<const long long *>(launch->chunks),
                   static_cast<unsigned long long *>(launch->counts), launch->terms, launch->size);
    fibers[threadIdx.x].done = true;
    _longjmp(scheduler, 1);
}

// Until the thread's next meeting, or its end.
static void go_on(Fiber &fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

static void run_block() {
    static std::vector<char> stacks(kThreads * kStack);
    for (uint32_t t = 0; t < blockDim.x; ++t) {
        Fiber &fiber = fibers[t];
        fiber.started = fiber.done = false;
        fiber.meetings = 0;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = stacks.data() + t * kStack;
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, run_thread, 0);
    }
    for (uint32_t done = 0; done == 0;) {
        for (uint32_t t = 0; t < blockDim.x; ++t) {
            threadIdx.x = t;
            go_on(fibers[t]);
            done += fibers[t].done;
        }
        if (done != 0 && done != blockDim.x) complain("a barrier that some threads miss", 0, 0);
    }
}

extern "C" {

void avops_allow(const void *begin, int64_t size, int32_t writable) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(begin);
    Memory &memory = allowed[start];
    memory.end = start + static_cast<uintptr_t>(size);
    memory.writable |= writable != 0;
}

// Runs a grid; returns what went wrong, empty for nothing.
const char *avops_emulate(const Launch *given, int64_t blocks, int32_t threads) {
    launch = given;
    fault[0] = 0;
    blockDim.x = static_cast<uint32_t>(threads);
    for (int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<uint32_t>(block);
        run_block();
    }
    return fault;
}

void avops_forget() { allowed.clear(); }
}
