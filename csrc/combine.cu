// avops: combine_many on CUDA devices: base plus a weighted sum of alignment vectors, for many tensors
// in one launch.
//
// Source of the arithmetic: the contracts in avops/kernels/combine/__init__.py, kernels/lowrank and
// kernels/rounding.py. Source of the table: avops/kernels/many/layout.py and cuda_plan.py.
// Nothing is included, so that nvcc and NVRTC both take this file; tests/kernels/cuda_on_cpu.h runs it
// on the host. Every product and sum is rounded: __fmul_rn and __fadd_rn are never contracted.
//
// A block does one chunk of an entry, or one tile of a low-rank entry. Entry points: at the end.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__

// ------------------------------------------------------------------------------- table

// Columns of an entry's and of a part's row, and their bits: twins in layout.py and cuda_plan.py.
enum { kBase, kOut, kCount, kKey, kMode, kHead, kWidth, kEntryColumns = 8 };
enum { kAddress, kKind, kRight, kRank, kColumns, kScale, kPartColumns = 8 };
enum { kF32 = 0, kF16 = 1, kBF16 = 2, kAligned = 4, kLowRank = 8, kDither = 16 };

struct Table {
    const i64 *entries;  // [entries, kEntryColumns]
    const i64 *parts;    // [entries, terms, kPartColumns]
    const float *lams;   // [entries, terms]
    const i64 *chunks;   // [blocks, 2]: entry; first element, or number of the tile
    u64 *counts;         // [entries, 4], as Counts
    i64 terms, size;     // size: elements of a chunk
};

struct Entry {
    u64 base, out, key;
    i64 count, head, width;
    u32 from, to;  // dtypes of base and out
    bool dither;
    const i64 *parts;
    const float *lams;
    i64 terms;
};

DEVICE Entry entry_of(const Table &table, i64 number) {
    const i64 *row = table.entries + number * kEntryColumns;
    const u32 mode = (u32)row[kMode];
    Entry entry;
    entry.base = (u64)row[kBase];
    entry.out = (u64)row[kOut];
    entry.key = (u64)row[kKey];
    entry.count = row[kCount];
    entry.head = row[kHead];
    entry.width = row[kWidth];
    entry.from = mode & 3;
    entry.to = mode >> 2 & 3;
    entry.dither = (mode & kDither) != 0;
    entry.parts = table.parts + number * table.terms * kPartColumns;
    entry.lams = table.lams + number * table.terms;
    entry.terms = table.terms;
    return entry;
}

// A part with λ other than 0. flip: the bits of the base that are subtracted: all, or none.
struct Slot {
    u64 address;
    float lam;
    u32 flip, kind;
    const i64 *row;
};

// The next such part, from `next` on, which moves past it; false: none is left.
DEVICE bool next_slot(const Entry &entry, i64 &next, Slot &slot) {
    while (next < entry.terms) {
        const i64 k = next++;
        const float lam = entry.lams[k];
        const i64 *row = entry.parts + k * kPartColumns;
        const u64 address = (u64)row[kAddress];
        if (lam == 0.0f || address == 0) continue;
        const u32 kind = (u32)row[kKind];
        slot = {address, lam, kind & kAligned ? 0xffffffffu : 0u, kind, row};
        return true;
    }
    return false;
}

// What a block does of an entry: elements [begin, start) and [stop, end) one by one, those between
// in vectors.
struct Range {
    i64 begin, start, stop, end;
    u32 vectors;
};

// Chunks after the first begin at the vector grid, which is entry.head past element 0.
DEVICE Range range_of(const Entry &entry, i64 first, i64 size, i64 width) {
    Range range;
    const i64 start = first + entry.head;
    range.end = start + size < entry.count ? start + size : entry.count;
    range.start = start < range.end ? start : range.end;
    range.begin = first == 0 ? 0 : range.start;
    range.vectors = (u32)((range.end - range.start) / width);
    // The words of a stretch are taken once for all vectors.
    if (entry.dither && range.begin >> 32 != (range.end - 1) >> 32) range.vectors = 0;
    range.stop = range.start + range.vectors * width;
    return range;
}

// ---------------------------------------------------------------------------- rounding

// Of one thread; a chunk's count fits by far.
struct Counts {
    u32 nonfinite, unchanged, overflowed, flushed;
};

DEVICE u32 magnitude_of(float x) { return __float_as_uint(x) & 0x7fffffffu; }

#if !defined(AVOPS_ON_CPU)
// The processor's own conversions of f16: exact, and to nearest with subnormals. Of a NaN the bits
// differ from ours.
DEVICE float half_to_float(u32 half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)half));
    return x;
}

DEVICE u32 floats_to_halves(float lower, float upper) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
    return pair;
}

// x, of which the compiler knows nothing.
DEVICE u32 hidden(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

DEVICE void prefetch(u64 address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
#endif

// One type per dtype; twins in csrc/bf16.h. A sum whose magnitude's bits are from low to below high
// becomes neither zero nor infinite by rounding, and is neither: nothing to count.

struct F32 {
    static constexpr u32 code = kF32, size = 4;
    static constexpr u32 magnitude = 0x7fffffffu, infinity = 0x7f800000u, nan = 0x7fc00000u;
    static constexpr u32 low = 0, high = 0x7f800000u;

    DEVICE float widen(u32 u) { return __uint_as_float(u); }
    DEVICE u32 round(float x) { return __float_as_uint(x); }
    DEVICE u32 dither(float x, u32) { return __float_as_uint(x); }
};

struct BF16 {
    static constexpr u32 code = kBF16, size = 2;
    static constexpr u32 magnitude = 0x7fffu, infinity = 0x7f80u, nan = 0x7fc0u;
    static constexpr u32 low = 0x00800000u, high = 0x7f000000u;

    DEVICE float widen(u32 h) { return __uint_as_float(h << 16); }
    // Rounded in the upper half; the lower is to be dropped.
    DEVICE u32 raised(float x) {
        const u32 u = __float_as_uint(x);
        return u + 0x7fffu + (u >> 16 & 1u);
    }
    DEVICE u32 raised(float x, u32 r) { return __float_as_uint(x) + (r >> 16); }
    DEVICE u32 round(float x) { return raised(x) >> 16; }
    DEVICE u32 dither(float x, u32 r) { return raised(x, r) >> 16; }
};

struct F16 {
    static constexpr u32 code = kF16, size = 2;
    static constexpr u32 magnitude = 0x7fffu, infinity = 0x7c00u, nan = 0x7e00u;
    static constexpr u32 low = 0x33800000u, high = 0x47000000u;

    DEVICE float widen(u32 h) { return half_to_float(h); }
    DEVICE u32 round(float x) {
        const u32 m = magnitude_of(x);
        // The exponent's bias goes from 127 to 15. Below 2^-14 the ulp is that of [0.5, 1).
        const u32 normal = (m - (112u << 23) + 0xfffu + (m >> 13 & 1u)) >> 13;
        const u32 subnormal =
            __float_as_uint(__fadd_rn(__uint_as_float(m), 0.5f)) - 0x3f000000u;
        const u32 finite = m < 0x38800000u ? subnormal : normal;
        return (__float_as_uint(x) >> 16 & 0x8000u) | (m >= 0x477ff000u ? infinity : finite);
    }
    DEVICE u32 dither(float x, u32 r) {
        const u32 m = magnitude_of(x), u = r >> 19;
        const u32 normal = (m - (112u << 23) + u) >> 13;
        // Units of 2^-37, of which an ulp of 2^-24 has 2^13.
        const float small = __uint_as_float(m < 0x38800000u ? m : 0x38800000u);
        const u32 subnormal = ((u32)__fmul_rn(small, 137438953472.0f) + u) >> 13;
        const u32 finite = m < 0x38800000u ? subnormal : normal;
        return (__float_as_uint(x) >> 16 & 0x8000u) | (m >= 0x47800000u ? infinity : finite);
    }
};

template <class D>
DEVICE u32 narrow(float x) {
    return magnitude_of(x) > 0x7f800000u ? D::nan : D::round(x);
}

// The result of a sum, and what it counts for. r: the element's uniform bits.
template <class D, bool kDithered>
DEVICE u32 settle(float total, float base, u32 r, Counts &counts) {
    const u32 size = magnitude_of(total);
    const u32 result =
        size > 0x7f800000u ? D::nan : kDithered ? D::dither(total, r) : D::round(total);
    const u32 m = result & D::magnitude;
    counts.nonfinite += m >= D::infinity;
    counts.unchanged += result == narrow<D>(base);
    counts.overflowed += m == D::infinity && size < 0x7f800000u;
    counts.flushed += m == 0 && size != 0;
    return result;
}

// The words of the stretch of 2^32 elements that `index` is in: splitmix64's finaliser.
struct Stretch {
    u32 high, one, two;
};

DEVICE Stretch stretch_of(u64 key, u64 index) {
    u64 x = key + ((index >> 32) + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return {(u32)(index >> 32), (u32)x, (u32)(x >> 32)};
}

// 32 uniform bits of an element; index: the low half of its own.
DEVICE u32 uniform(const Stretch &stretch, u32 index) {
    u32 x = index ^ stretch.one;
    x = (x ^ (x >> 16)) * 0x7feb352du + stretch.two;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

DEVICE u32 uniform_of(const Entry &entry, Stretch &stretch, u64 index) {
    if (!entry.dither) return 0;
    if (stretch.high != (u32)(index >> 32)) stretch = stretch_of(entry.key, index);
    return uniform(stretch, (u32)index);
}

// ---------------------------------------------------------------- one element at a time

// Any dtypes, any alignment, any number of parts of any kind.

DEVICE float load(u32 code, u64 address, i64 i) {
    if (code == kF32) return __ldcs((const float *)address + i);
    const u32 h = __ldcs((const u16 *)address + i);
    return code == kF16 ? F16::widen(h) : BF16::widen(h);
}

DEVICE void store(const Entry &entry, i64 i, float total, float base, u32 r, Counts &counts) {
    if (entry.to == kF32) {
        __stcs((u32 *)entry.out + i, settle<F32, false>(total, base, r, counts));
        return;
    }
    u32 result;
    if (entry.to == kF16)
        result = entry.dither ? settle<F16, true>(total, base, r, counts)
                              : settle<F16, false>(total, base, r, counts);
    else
        result = entry.dither ? settle<BF16, true>(total, base, r, counts)
                              : settle<BF16, false>(total, base, r, counts);
    __stcs((u16 *)entry.out + i, (u16)result);
}

// λ·Δ of element i of a low-rank part. Sums begin at -0, which leaves the first product as it is.
DEVICE float product_of(const Slot &slot, i64 i) {
    const i64 rank = slot.row[kRank], columns = slot.row[kColumns];
    const float *left = (const float *)slot.address + i / columns * rank;
    const float *right = (const float *)slot.row[kRight] + i % columns;
    float sum = -0.0f;
    for (i64 j = 0; j < rank; ++j) sum = __fadd_rn(sum, __fmul_rn(left[j], right[j * columns]));
    return __fmul_rn(slot.lam, __fmul_rn(__uint_as_float((u32)slot.row[kScale]), sum));
}

DEVICE float product_of(const Slot &slot, float value, float base) {
    const float origin = __uint_as_float(__float_as_uint(base) & slot.flip);
    return __fmul_rn(slot.lam, __fsub_rn(value, origin));
}

DEVICE void combine_element(const Entry &entry, i64 i, Stretch &stretch, Counts &counts) {
    const float base = load(entry.from, entry.base, i);
    float acc = -0.0f;
    Slot slot;
    for (i64 next = 0; next_slot(entry, next, slot);)
        acc = __fadd_rn(acc, slot.kind & kLowRank
                                 ? product_of(slot, i)
                                 : product_of(slot, load(slot.kind & 3, slot.address, i), base));
    store(entry, i, __fadd_rn(base, acc), base, uniform_of(entry, stretch, (u64)i), counts);
}

DEVICE void combine_elements(const Entry &entry, const Range &range, Counts &counts) {
    Stretch stretch = stretch_of(entry.key, (u64)range.begin);
    const i64 number = (range.start - range.begin) + (range.end - range.stop);
    for (i64 at = threadIdx.x; at < number; at += blockDim.x) {
        const i64 i = range.begin + at;
        combine_element(entry, i < range.start ? i : i + (range.stop - range.start), stretch,
                        counts);
    }
}

// ------------------------------------------------------------------------ counts of a block

// All threads of the block call this.
DEVICE void report(u64 *row, const Counts &counts) {
    __shared__ u32 sums[4];
    if (threadIdx.x < 4) sums[threadIdx.x] = 0;
    __syncthreads();
    const u32 mine[4] = {counts.nonfinite, counts.unchanged, counts.overflowed, counts.flushed};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const u32 sum = __reduce_add_sync(0xffffffffu, mine[c]);
        if (threadIdx.x % 32 == 0 && sum != 0) atomicAdd(&sums[c], sum);
    }
    __syncthreads();
    if (threadIdx.x < 4 && sums[threadIdx.x] != 0)
        atomicAdd(row + threadIdx.x, (u64)sums[threadIdx.x]);
}

// ----------------------------------------------------------------- vectors, one dtype for all

// kV neighbours: 16 bytes of the widest dtype that takes part.
template <class T, int kV>
struct Vector {
    static constexpr int words = kV * (int)T::size / 4;
    u32 word[words];
};

template <int kWords>
DEVICE void load_words(u64 address, u32 *word) {
    if constexpr (kWords == 4) {
        const uint4 v = __ldcs((const uint4 *)address);
        word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    } else {
        const uint2 v = __ldcs((const uint2 *)address);
        word[0] = v.x, word[1] = v.y;
    }
}

template <int kWords>
DEVICE void store_words(u64 address, const u32 *word) {
    if constexpr (kWords == 4)
        __stcs((uint4 *)address, make_uint4(word[0], word[1], word[2], word[3]));
    else
        __stcs((uint2 *)address, make_uint2(word[0], word[1]));
}

template <class T, int kV>
DEVICE float value(const Vector<T, kV> &vector, int e) {
    if constexpr (T::code == kF32)
        return __uint_as_float(vector.word[e]);
    else if constexpr (T::code == kBF16)
        return __uint_as_float(e % 2 ? vector.word[e / 2] & 0xffff0000u : vector.word[e / 2] << 16);
    else
        return half_to_float(e % 2 ? vector.word[e / 2] >> 16 : vector.word[e / 2]);
}

template <int kMax>
struct Slots {
    u64 address[kMax];
    float lam[kMax];
    u32 flip[kMax];
};

// How many parts are active: kMax at most. They are in slots.
template <int kMax>
DEVICE int gather(const Entry &entry, Slots<kMax> &slots) {
    int number = 0;
    Slot slot;
    for (i64 next = 0; next_slot(entry, next, slot); ++number) {
#pragma unroll
        for (int k = 0; k < kMax; ++k)
            if (k == number)
                slots.address[k] = slot.address, slots.lam[k] = slot.lam, slots.flip[k] = slot.flip;
    }
    return number;
}

// The halves of a word that are not 0, as bits 0 and 16.
DEVICE u32 nonzero_halves(u32 x) {
    return (((x & 0x7fff7fffu) + 0x7fff7fffu) | x) >> 15 & 0x00010001u;
}

// Results of sums from low to below high. Adds those that differ from the base to `changed`: if they
// have 16 bits, even and odd ones apart, in its halves.
template <class D, int kV, bool kDithered>
DEVICE void round_vector(const float *total, const Vector<D, kV> &base, const Stretch &stretch,
                         u32 index, u32 *word, u32 &changed) {
    if constexpr (D::code == kF32) {
#pragma unroll
        for (int e = 0; e < kV; ++e) {
            word[e] = __float_as_uint(total[e]);
            changed += word[e] != base.word[e];
        }
    } else {
#pragma unroll
        for (int w = 0; w < kV / 2; ++w) {
            const float lower = total[2 * w], upper = total[2 * w + 1];
            if constexpr (D::code == kF16)
                word[w] = floats_to_halves(lower, upper);
            else if constexpr (kDithered)
                word[w] = __byte_perm(BF16::raised(lower, uniform(stretch, index + 2 * w)),
                                      BF16::raised(upper, uniform(stretch, index + 2 * w + 1)),
                                      0x7632);
            else
                word[w] = __byte_perm(BF16::raised(lower), BF16::raised(upper), 0x7632);
            changed += nonzero_halves(word[w] ^ base.word[w]);
        }
    }
}

// Results of sums of any kind, with their counts.
template <class D, int kV, bool kDithered>
DEVICE void settle_vector(const float *total, const float *base, const Stretch &stretch, u32 index,
                          u32 *word, Counts &counts) {
#pragma unroll
    for (int e = 0; e < kV; ++e) {
        const u32 r = kDithered ? uniform(stretch, index + e) : 0;
        const u32 result = settle<D, kDithered>(total[e], base[e], r, counts);
        if constexpr (D::code == kF32)
            word[e] = result;
        else
            word[e / 2] = e % 2 ? word[e / 2] | result << 16 : result;
    }
}

template <class D, class P, int kV, bool kDithered, int kN>
DEVICE void combine_vector(const Vector<D, kV> &base, const Vector<P, kV> *values,
                           const float *lams, const u32 *flips, const Stretch &stretch, u32 index,
                           u32 *word, u32 &changed, Counts &counts) {
    float total[kV];
    u32 extreme = 0;
#pragma unroll
    for (int e = 0; e < kV; ++e) {
        const float origin = value(base, e);
        float acc = -0.0f;
#pragma unroll
        for (int k = 0; k < kN; ++k) {
            const float from = __uint_as_float(__float_as_uint(origin) & flips[k]);
            const float product = __fmul_rn(lams[k], __fsub_rn(value(values[k], e), from));
            acc = k == 0 ? product : __fadd_rn(acc, product);
        }
        total[e] = kN == 0 ? origin : __fadd_rn(origin, acc);
        // One comparison for both ends: what is below low wraps to the top.
        const u32 above = 2 * __float_as_uint(total[e]) - 2 * D::low;
        extreme = above > extreme ? above : extreme;
    }
    if (extreme < 2 * (D::high - D::low)) {
        round_vector<D, kV, kDithered>(total, base, stretch, index, word, changed);
        counts.unchanged += kV;
    } else {
        float origin[kV];
#pragma unroll
        for (int e = 0; e < kV; ++e) origin[e] = value(base, e);
        settle_vector<D, kV, kDithered>(total, origin, stretch, index, word, counts);
    }
}

// kN terms of dtype P on a base and an out of dtype D. All of a round's loads come before its
// arithmetic: at least 64 bytes for a thread.
template <class D, class P, int kV, bool kDithered, int kN, class S>
DEVICE void combine_vectors(const Entry &entry, const Range &range, const S &slots,
                            Counts &counts) {
    constexpr int kRound = kN == 0 ? 4 : kN == 1 ? 3 : kN <= 3 ? 2 : 1;
    constexpr int kTerms = kN ? kN : 1;
    const Stretch stretch = stretch_of(entry.key, (u64)range.start);
    const u64 base = entry.base + range.start * D::size, out = entry.out + range.start * D::size;
    u64 address[kTerms];
    float lams[kTerms];
    u32 flips[kTerms];
#pragma unroll
    for (int k = 0; k < kN; ++k) {
        address[k] = slots.address[k] + range.start * P::size;
        lams[k] = slots.lam[k];
        flips[k] = slots.flip[k];
    }
    u32 changed = 0;
#pragma unroll 1
    for (u32 at = threadIdx.x; at < range.vectors; at += kRound * blockDim.x) {
        Vector<D, kV> origin[kRound];
        Vector<P, kV> values[kRound][kTerms];
#pragma unroll
        for (int u = 0; u < kRound; ++u) {
            // Past the end the last vector is loaded, so that no load is conditional.
            const u32 mine = at + u * blockDim.x;
            const u64 v = mine < range.vectors ? mine : range.vectors - 1;
            load_words<Vector<D, kV>::words>(base + v * (kV * D::size), origin[u].word);
#pragma unroll
            for (int k = 0; k < kN; ++k)
                load_words<Vector<P, kV>::words>(address[k] + v * (kV * P::size),
                                                 values[u][k].word);
        }
#pragma unroll
        for (int u = 0; u < kRound; ++u) {
            const u32 v = at + u * blockDim.x;
            if (v >= range.vectors) break;
            u32 word[Vector<D, kV>::words];
            combine_vector<D, P, kV, kDithered, kN>(origin[u], values[u], lams, flips, stretch,
                                                    (u32)range.start + v * kV, word, changed,
                                                    counts);
            store_words<Vector<D, kV>::words>(out + (u64)v * (kV * D::size), word);
        }
    }
    // So far counts.unchanged has these too.
    counts.unchanged -= D::code == kF32 ? changed : (changed & 0xffffu) + (changed >> 16);
}

// ------------------------------------------------------------- vectors, a dtype for each tensor

// Parts whose loads come before their arithmetic.
constexpr int kGroup = 4;

struct Group {
    int number;
    Slot slot[kGroup];
};

DEVICE void next_group(const Entry &entry, i64 &next, Group &group) {
    Slot slot;
    for (group.number = 0; group.number < kGroup && next_slot(entry, next, slot); ++group.number) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k)
            if (k == group.number) group.slot[k] = slot;
    }
}

// kV elements of any dtype from element i on, as they are stored; f32 only where kV is 4.
template <int kV>
DEVICE void load_any(u32 code, u64 address, i64 i, u32 *word) {
    if (kV == 4 && code == kF32)
        load_words<4>(address + i * 4, word);
    else
        load_words<kV / 2>(address + i * 2, word);
}

template <class T, int kV>
DEVICE void widen(const u32 *word, float *values) {
    Vector<T, kV> vector;
#pragma unroll
    for (int w = 0; w < vector.words; ++w) vector.word[w] = word[w];
#pragma unroll
    for (int e = 0; e < kV; ++e) values[e] = value(vector, e);
}

template <int kV>
DEVICE void widen_any(u32 code, const u32 *word, float *values) {
    if (code == kBF16)
        widen<BF16, kV>(word, values);
    else if (code == kF16)
        widen<F16, kV>(word, values);
    else if constexpr (kV == 4)
        widen<F32, kV>(word, values);
}

template <int kV>
DEVICE void load_group(const Group &group, i64 i, u32 (*words)[4]) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
        if (k < group.number)
            load_any<kV>(group.slot[k].kind & 3, group.slot[k].address, i, words[k]);
}

template <int kV>
DEVICE void add_group(const Group &group, const u32 (*words)[4], const float *base, float *acc) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
        if (k >= group.number) break;
        float values[kV];
        widen_any<kV>(group.slot[k].kind & 3, words[k], values);
#pragma unroll
        for (int e = 0; e < kV; ++e)
            acc[e] = __fadd_rn(acc[e], product_of(group.slot[k], values[e], base[e]));
    }
}

template <class D, bool kDithered, int kV>
DEVICE void store_vector(const Entry &entry, i64 i, const float *total, const float *base,
                         const Stretch &stretch, Counts &counts) {
    u32 word[Vector<D, kV>::words];
    settle_vector<D, kV, kDithered>(total, base, stretch, (u32)i, word, counts);
    store_words<Vector<D, kV>::words>(entry.out + i * D::size, word);
}

template <int kV>
DEVICE void store_any(const Entry &entry, i64 i, const float *total, const float *base,
                      const Stretch &stretch, Counts &counts) {
    if (entry.to == kBF16) {
        if (entry.dither)
            store_vector<BF16, true, kV>(entry, i, total, base, stretch, counts);
        else
            store_vector<BF16, false, kV>(entry, i, total, base, stretch, counts);
    } else if (entry.to == kF16) {
        if (entry.dither)
            store_vector<F16, true, kV>(entry, i, total, base, stretch, counts);
        else
            store_vector<F16, false, kV>(entry, i, total, base, stretch, counts);
    } else if constexpr (kV == 4) {
        store_vector<F32, false, kV>(entry, i, total, base, stretch, counts);
    }
}

// Any number of stored parts.
template <int kV>
DEVICE void combine_any(const Entry &entry, const Range &range, Counts &counts) {
    const Stretch stretch = stretch_of(entry.key, (u64)range.start);
    Group first;
    i64 after = 0;
    next_group(entry, after, first);
#pragma unroll 1
    for (u32 v = threadIdx.x; v < range.vectors; v += blockDim.x) {
        const i64 i = range.start + (i64)v * kV;
        u32 origin[4], words[kGroup][4];
        load_any<kV>(entry.from, entry.base, i, origin);
        load_group<kV>(first, i, words);
        float base[kV], acc[kV];
        widen_any<kV>(entry.from, origin, base);
#pragma unroll
        for (int e = 0; e < kV; ++e) acc[e] = -0.0f;
        add_group<kV>(first, words, base, acc);
        for (i64 next = after; next < entry.terms;) {
            Group group;
            next_group(entry, next, group);
            load_group<kV>(group, i, words);
            add_group<kV>(group, words, base, acc);
        }
#pragma unroll
        for (int e = 0; e < kV; ++e) acc[e] = __fadd_rn(base[e], acc[e]);
        store_any<kV>(entry, i, acc, base, stretch, counts);
    }
}

// ------------------------------------------------------------------------------ low-rank tiles

// A warp has kRows rows of 32 * kAcross columns, a lane every 32nd of these; a block has kDown warps,
// which find `right` in the first-level cache after one of them.
constexpr int kRows = 8, kAcross = 4, kDown = 4;

// Where a lane's elements are: `columns` apart downwards, 32 apart across. Rows and columns past the
// end stand on the last one, so that no load is conditional.
struct Tile {
    i64 first;
    u32 row, column, columns;
    u32 rows, width;  // of this lane, that are in the matrix; 0: none is
};

DEVICE Tile tile_of(const Entry &entry, i64 number) {
    Tile tile;
    const i64 columns = entry.width, rows = entry.count / columns;
    const i64 wide = (columns + 32 * kAcross - 1) / (32 * kAcross);
    const i64 row = (number / wide * kDown + threadIdx.x / 32) * kRows;
    const i64 column = number % wide * (32 * kAcross) + threadIdx.x % 32;
    const i64 below = rows - row, right = (columns - column + 31) / 32;
    tile.columns = (u32)columns;
    tile.rows = below <= 0 ? 0 : below < kRows ? (u32)below : kRows;
    tile.width = column >= columns ? 0 : right < kAcross ? (u32)right : kAcross;
    tile.row = (u32)(below <= 0 ? rows - 1 : row);
    tile.column = (u32)(column >= columns ? columns - 1 : column);
    tile.first = tile.row * columns + tile.column;
    return tile;
}

DEVICE u32 within(u32 i, u32 number) { return i < number ? i : number == 0 ? 0 : number - 1; }

DEVICE u32 across_of(const Tile &tile, u32 c) { return 32 * within(c, tile.width); }

// Elements from tile.first on. columns: tile.columns, hidden anew for each pass over the tile, or all
// offsets would be kept in registers from one to the next.
DEVICE u32 offset_of(const Tile &tile, u32 columns, int r, int c) {
    return within(r, tile.rows) * columns + across_of(tile, c);
}

template <bool kWide>
DEVICE void sum_tile(const Tile &tile, const Slot &slot, float (*sum)[kAcross]) {
    constexpr int kStep = kWide ? 2 : 1;
    const u32 rank = (u32)slot.row[kRank];
    const float *left = (const float *)slot.address + (u64)tile.row * rank;
    const float *right = (const float *)slot.row[kRight] + tile.column;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kAcross; ++c) sum[r][c] = -0.0f;
#pragma unroll 1
    for (u32 j = 0; j < rank; j += kStep) {
        float factor[kRows][kStep];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const float *from = left + (within(r, tile.rows) * rank + j);
            if constexpr (kWide) {
                const float2 v = __ldg((const float2 *)from);
                factor[r][0] = v.x, factor[r][1] = v.y;
            } else {
                factor[r][0] = __ldg(from);
            }
        }
#pragma unroll
        for (int step = 0; step < kStep; ++step, right += tile.columns) {
            float other[kAcross];
#pragma unroll
            for (int c = 0; c < kAcross; ++c) other[c] = __ldg(right + across_of(tile, c));
#pragma unroll
            for (int r = 0; r < kRows; ++r)
#pragma unroll
                for (int c = 0; c < kAcross; ++c)
                    sum[r][c] = __fadd_rn(sum[r][c], __fmul_rn(factor[r][step], other[c]));
        }
    }
}

template <class T>
DEVICE void load_tile(const Tile &tile, u64 address, float (*values)[kAcross]) {
    const u32 columns = hidden(tile.columns);
    const u64 from = address + tile.first * T::size;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kAcross; ++c) 
            values[r][c] = load(T::code, from, offset_of(tile, columns, r, c));
}

DEVICE void load_tile(const Tile &tile, u32 code, u64 address, float (*values)[kAcross]) {
    if (code == kBF16)
        load_tile<BF16>(tile, address, values);
    else if (code == kF16)
        load_tile<F16>(tile, address, values);
    else
        load_tile<F32>(tile, address, values);
}

// λ·Δ of the slot, into values.
DEVICE void products_of(const Entry &entry, const Tile &tile, const Slot &slot,
                        float (*values)[kAcross]) {
    if (slot.kind & kLowRank) {
        if (slot.row[kRank] % 2 == 0 && slot.address % 8 == 0)
            sum_tile<true>(tile, slot, values);
        else
            sum_tile<false>(tile, slot, values);
        const float scale = __uint_as_float((u32)slot.row[kScale]);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kAcross; ++c)
                values[r][c] = __fmul_rn(slot.lam, __fmul_rn(scale, values[r][c]));
        return;
    }
    load_tile(tile, slot.kind & 3, slot.address, values);
    const u32 columns = hidden(tile.columns);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
            const i64 i = tile.first + offset_of(tile, columns, r, c);
            const float base = slot.flip ? load(entry.from, entry.base, i) : 0.0f;
            values[r][c] = product_of(slot, values[r][c], base);
        }
}

template <class D, bool kDithered>
DEVICE void store_tile(const Entry &entry, const Tile &tile, const float (*acc)[kAcross],
                       const float (*base)[kAcross], Counts &counts) {
    Stretch stretch = stretch_of(entry.key, (u64)tile.first);
    const u32 columns = hidden(tile.columns);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
            if ((u32)r >= tile.rows || (u32)c >= tile.width) continue;
            const i64 i = tile.first + offset_of(tile, columns, r, c);
            const u32 random = kDithered ? uniform_of(entry, stretch, (u64)i) : 0;
            const float total = __fadd_rn(base[r][c], acc[r][c]);
            const u32 result = settle<D, kDithered>(total, base[r][c], random, counts);
            if constexpr (D::code == kF32)
                __stcs((u32 *)entry.out + i, result);
            else
                __stcs((u16 *)entry.out + i, (u16)result);
        }
}

DEVICE void combine_tile(const Entry &entry, i64 number, Counts &counts) {
    const Tile tile = tile_of(entry, number);
    // Asks for the warp's part of the base: a lane for 32 elements of a row.
    const i64 ahead = tile.first + (i64)(threadIdx.x % 32 / kAcross) * entry.width -
                      threadIdx.x % 32 + 32 * (threadIdx.x % kAcross);
    if (ahead >= 0 && ahead < entry.count)
        prefetch(entry.base + ahead * (entry.from == kF32 ? 4 : 2));
    float acc[kRows][kAcross], values[kRows][kAcross];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kAcross; ++c) acc[r][c] = -0.0f;
    Slot slot;
#pragma unroll 1
    for (i64 next = 0; next_slot(entry, next, slot);) {
        products_of(entry, tile, slot, values);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kAcross; ++c) acc[r][c] = __fadd_rn(acc[r][c], values[r][c]);
    }
    load_tile(tile, entry.from, entry.base, values);
    if (entry.to == kF32)
        store_tile<F32, false>(entry, tile, acc, values, counts);
    else if (entry.to == kF16 && entry.dither)
        store_tile<F16, true>(entry, tile, acc, values, counts);
    else if (entry.to == kF16)
        store_tile<F16, false>(entry, tile, acc, values, counts);
    else if (entry.dither)
        store_tile<BF16, true>(entry, tile, acc, values, counts);
    else
        store_tile<BF16, false>(entry, tile, acc, values, counts);
}

// ------------------------------------------------------------------------------- entry points

// The case of kN active parts.
template <class D, class P, int kV, bool kDithered, int kMax, int kN>
DEVICE void combine_active(int number, const Entry &entry, const Range &range,
                           const Slots<kMax> &slots, Counts &counts) {
    if (number == kN)
        combine_vectors<D, P, kV, kDithered, kN>(entry, range, slots, counts);
    else if constexpr (kN < kMax)
        combine_active<D, P, kV, kDithered, kMax, kN + 1>(number, entry, range, slots, counts);
}

// Base and out of D, parts of P.
template <class D, class P, bool kDithered, int kMax>
DEVICE void uniform_chunk(const Table &table) {
    constexpr int kV = 16 / (D::size > P::size ? D::size : P::size);
    const i64 *chunk = table.chunks + 2 * (i64)blockIdx.x;
    const Entry entry = entry_of(table, chunk[0]);
    const Range range = range_of(entry, chunk[1], table.size, kV);
    Counts counts = {0, 0, 0, 0};
    if (range.vectors != 0) {
        Slots<kMax> slots;
        const int number = gather(entry, slots);
        combine_active<D, P, kV, kDithered, kMax, 0>(number, entry, range, slots, counts);
    }
    combine_elements(entry, range, counts);
    report(table.counts + 4 * chunk[0], counts);
}

// Any dtypes; vectors only where all tensors allow them together.
template <bool kVectors>
DEVICE void mixed_chunk(const Table &table) {
    const i64 *chunk = table.chunks + 2 * (i64)blockIdx.x;
    const Entry entry = entry_of(table, chunk[0]);
    Range range = range_of(entry, chunk[1], table.size, 4);
    Counts counts = {0, 0, 0, 0};
    if constexpr (kVectors)
        combine_any<4>(entry, range, counts);
    else
        range.stop = range.start;
    combine_elements(entry, range, counts);
    report(table.counts + 4 * chunk[0], counts);
}

DEVICE void tile_chunk(const Table &table) {
    const i64 *chunk = table.chunks + 2 * (i64)blockIdx.x;
    const Entry entry = entry_of(table, chunk[0]);
    Counts counts = {0, 0, 0, 0};
    combine_tile(entry, chunk[1], counts);
    report(table.counts + 4 * chunk[0], counts);
}

// Which kernels have a body, by their number: all, unless a build at run time wants few.
#if !defined(AVOPS_KERNELS)
#define AVOPS_KERNELS 0xffffffff
#endif

// threads: of a block. blocks: that a multiprocessor can hold at least, which bounds the registers.
// 80 registers (three blocks of 256) do not hold a round: ptxas puts half of its loads behind arithmetic.
#define AVOPS_KERNEL(number, name, threads, blocks, ...)                                           \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        avops_##name(const i64 *entries, const i64 *parts, const float *lams, const i64 *chunks,   \
                     u64 *counts, i64 terms, i64 size) {                                           \
        if constexpr (((AVOPS_KERNELS) >> number & 1) != 0) {                                      \
            const Table table = {entries, parts, lams, chunks, counts, terms, size};               \
            __VA_ARGS__(table);                                                                    \
        }                                                                                          \
    }

// Twins of KERNELS in cuda_plan.py. 4 and 8: terms at most; mixed loops over any number.
AVOPS_KERNEL(0, bf16_bf16_4, 128, 5, uniform_chunk<BF16, BF16, false, 4>)
AVOPS_KERNEL(1, bf16_bf16_8, 256, 2, uniform_chunk<BF16, BF16, false, 8>)
AVOPS_KERNEL(2, bf16_bf16_dither_4, 128, 5, uniform_chunk<BF16, BF16, true, 4>)
AVOPS_KERNEL(3, bf16_bf16_dither_8, 256, 2, uniform_chunk<BF16, BF16, true, 8>)
AVOPS_KERNEL(4, bf16_f32_4, 128, 5, uniform_chunk<BF16, F32, false, 4>)
AVOPS_KERNEL(5, bf16_f32_8, 256, 2, uniform_chunk<BF16, F32, false, 8>)
AVOPS_KERNEL(6, f16_f16_4, 128, 5, uniform_chunk<F16, F16, false, 4>)
AVOPS_KERNEL(7, f16_f16_8, 256, 2, uniform_chunk<F16, F16, false, 8>)
AVOPS_KERNEL(8, f32_f32_4, 128, 5, uniform_chunk<F32, F32, false, 4>)
AVOPS_KERNEL(9, f32_f32_8, 256, 2, uniform_chunk<F32, F32, false, 8>)
AVOPS_KERNEL(10, mixed, 256, 2, mixed_chunk<true>)
AVOPS_KERNEL(11, elements, 256, 2, mixed_chunk<false>)
AVOPS_KERNEL(12, tiles, 128, 4, tile_chunk)
