// avops: attention over a token tree. Contract: avops/kernels/tree_attention/__init__.py.
//
// Up to 64 queries of a head and a node go in a panel. Its keys, which lie in a few spans of rows,
// come in blocks of up to kKeys: scores [key][query], their exponentials relative to each query's
// maximum so far, and the values' sum weighted by them, [size][query], scaled anew where a maximum
// grew.
#include "avops.h"
#include "blocks.h"
#include "logits.h"
#include "squares.h"
#include "threads.h"

#include <algorithm>

#if AVOPS_X86_TILES

namespace {

using namespace avops;

constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 8 * kTileWeights;
constexpr int64_t kMostSize = 256;
static_assert(kMostSize <= kPart, "a score is one chain");

struct Job {
    avops_attention_rows query, key, value, out;
    avops_attention_shape shape;
    const avops_attention_node *nodes;
    const int64_t *spans;
    bool half;
    int64_t size() const { return half ? 2 : 4; }
};

// What a task works in: about 200 KiB.
struct Scratch {
    alignas(64) uint32_t query[kMostSize * kQueries];
    alignas(64) float sums[kMostSize * kQueries];
    alignas(64) float scores[kKeys * kQueries];
    alignas(64) float values[kKeys * kMostSize];
    alignas(64) float maximum[kQueries];
    alignas(64) float total[kQueries];
    alignas(64) float factor[kQueries];
};

// Queries of one head: `rows` from packed row `first` on, the first at `position` of its sequence.
struct Queries {
    int64_t head, first, rows, width, position;
    // Of all of them, the first key that any may see; the keys that none may see begin at `high`.
    int64_t low, high;
};

const byte *at(const Job &job, const avops_attention_rows &rows, int64_t head, int64_t row) {
    return static_cast<const byte *>(rows.data) + (head * rows.head + row * rows.row) * job.size();
}

// kV keys or columns of values, for all queries. Values: k are rows, `stride` apart.
template <int kV, int kR>
__attribute__((target("avx512f"))) void add_values(const float *weights, const float *values,
                                                   Strip strip, float *out) {
    __m512 sums[kV][kR];
    AVOPS_UNROLL
    for (int v = 0; v < kV; ++v)
        AVOPS_UNROLL
        for (int r = 0; r < kR; ++r) sums[v][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < strip.count; ++k) {
        __m512 rows[kR];
        AVOPS_UNROLL
        for (int r = 0; r < kR; ++r) rows[r] = _mm512_loadu_ps(weights + k * strip.width + r * 16);
        AVOPS_UNROLL
        for (int v = 0; v < kV; ++v) {
            const __m512 one = _mm512_set1_ps(values[k * strip.stride + v]);
            AVOPS_UNROLL
            for (int r = 0; r < kR; ++r) sums[v][r] = _mm512_fmadd_ps(one, rows[r], sums[v][r]);
        }
    }
    add_strip<kV, kR>(strip, sums, out);
}

template <int kR>
struct Tiles {
    template <int kV>
    static void keys(const Job &job, const uint32_t *query, const byte *key, Strip strip, float *out) {
        if (job.half)
            tile_pairs<kV, kR>(query, reinterpret_cast<const uint16_t *>(key), strip, out);
        else
            tile_avx512<kV, kR>(reinterpret_cast<const float *>(query),
                                reinterpret_cast<const float *>(key), strip, out);
    }

    static void score(const Job &job, const Scratch &room, const byte *key, int64_t count, float *out) {
        const Strip strip = {kR * 16, job.key.row, job.shape.size, true};
        int64_t k = 0;
        for (; k + kTileWeights <= count; k += kTileWeights)
            keys<kTileWeights>(job, room.query, key + k * job.key.row * job.size(), strip,
                               out + k * kR * 16);
        for (; k < count; ++k)
            keys<1>(job, room.query, key + k * job.key.row * job.size(), strip, out + k * kR * 16);
    }

    static void weigh(const Job &job, Scratch &room, const float *value, int64_t stride,
                      int64_t count) {
        const Strip strip = {kR * 16, stride, count, false};
        int64_t d = 0;
        for (; d + kTileWeights <= job.shape.size; d += kTileWeights)
            add_values<kTileWeights, kR>(room.scores, value + d, strip, room.sums + d * kR * 16);
        for (; d < job.shape.size; ++d)
            add_values<1, kR>(room.scores, value + d, strip, room.sums + d * kR * 16);
    }
};

// Scores of `count` keys from position `first` on: scaled, and -infinity where a query may not look.
AVOPS_CLONES
void mask(const Job &job, const Queries &queries, int64_t first, int64_t count, float *__restrict scores) {
    const int64_t width = queries.width;
    const float scale = job.shape.scale;
    for (int64_t i = 0; i < count * width; ++i) scores[i] *= scale;
    const int64_t window = job.shape.window;
    const bool before = window > 0 && first <= queries.position + queries.rows - 1 - window;
    if (first + count - 1 <= queries.position && !before) return;
    for (int64_t k = 0; k < count; ++k) {
        // Queries from `from` on see key k, those from `to` on no longer. Lanes that are none see it.
        const int64_t from = std::max<int64_t>(0, first + k - queries.position);
        const int64_t to = window > 0 ? first + k - queries.position + window : width;
        for (int64_t l = 0; l < std::min(from, width); ++l) scores[k * width + l] = -kInfinity;
        for (int64_t l = std::max<int64_t>(0, to); l < width; ++l) scores[k * width + l] = -kInfinity;
    }
}

// Scores become weights relative to the maximum so far, which may grow; totals and sums follow.
AVOPS_CLONES
void weights_of(Scratch &room, int64_t width, int64_t count, int64_t size) {
    float *__restrict scores = room.scores;
    alignas(64) float now[kQueries], sum[kQueries];
    for (int64_t l = 0; l < width; ++l) now[l] = room.maximum[l];
    for (int64_t k = 0; k < count; ++k)
        for (int64_t l = 0; l < width; ++l) now[l] = larger(now[l], scores[k * width + l]);
    bool grown = false;
    for (int64_t l = 0; l < width; ++l) grown |= now[l] != room.maximum[l];
    if (grown) {
        for (int64_t l = 0; l < width; ++l) {
            room.factor[l] = exp_of_negative(room.maximum[l] - reference(now[l]));
            room.maximum[l] = now[l];
            room.total[l] *= room.factor[l];
        }
        float *__restrict sums = room.sums;
        for (int64_t d = 0; d < size; ++d)
            for (int64_t l = 0; l < width; ++l) sums[d * width + l] *= room.factor[l];
    }
    for (int64_t l = 0; l < width; ++l) {
        now[l] = reference(now[l]);
        sum[l] = 0;
    }
    for (int64_t k = 0; k < count; ++k)
        for (int64_t l = 0; l < width; ++l) {
            const float weight = exp_of_negative(scores[k * width + l] - now[l]);
            scores[k * width + l] = weight;
            sum[l] += weight;
        }
    for (int64_t l = 0; l < width; ++l) room.total[l] += sum[l];
}

AVOPS_CLONES
void widen_values(const byte *from, int64_t stride, bool half, int64_t count, int64_t size, float *to) {
    for (int64_t k = 0; k < count; ++k)
        if (half)
            widen_block<BF16>(from + k * stride * 2, to + k * size, size);
        else
            std::memcpy(to + k * size, from + k * stride * 4, static_cast<size_t>(size) * 4);
}

// Keys and values that lie one after the other.
struct Piece {
    int64_t row, count;
};

// A block of keys, from `position` on: together `pieces`.
struct Keys {
    int64_t position, count, pieces;
    Piece piece[kKeys];
};

template <int kR>
void attend(const Job &job, const Queries &queries, Scratch &room, const Keys &keys) {
    const int64_t head = queries.head / job.shape.group, size = job.shape.size;
    int64_t done = 0;
    for (int64_t i = 0; i < keys.pieces; done += keys.piece[i++].count)
        Tiles<kR>::score(job, room, at(job, job.key, head, keys.piece[i].row), keys.piece[i].count,
                         room.scores + done * kR * 16);
    mask(job, queries, keys.position, keys.count, room.scores);
    weights_of(room, queries.width, keys.count, size);
    if (!job.half && keys.pieces == 1) {
        const byte *value = at(job, job.value, head, keys.piece[0].row);
        return Tiles<kR>::weigh(job, room, reinterpret_cast<const float *>(value), job.value.row,
                                keys.count);
    }
    done = 0;
    for (int64_t i = 0; i < keys.pieces; done += keys.piece[i++].count)
        widen_values(at(job, job.value, head, keys.piece[i].row), job.value.row, job.half,
                     keys.piece[i].count, size, room.values + done * size);
    Tiles<kR>::weigh(job, room, room.values, size, keys.count);
}

void attend_all(const Job &job, const Queries &queries, Scratch &room, const Keys &keys) {
    switch (queries.width / kLanes) {
        case 1: return attend<1>(job, queries, room, keys);
        case 2: return attend<2>(job, queries, room, keys);
        case 3: return attend<3>(job, queries, room, keys);
        default: return attend<4>(job, queries, room, keys);
    }
}

AVOPS_CLONES
void finish(const Job &job, const Queries &queries, const Scratch &room) {
    const int64_t size = job.shape.size;
    for (int64_t l = 0; l < queries.rows; ++l) {
        byte *to = const_cast<byte *>(at(job, job.out, queries.head, queries.first + l));
        for (int64_t d = 0; d < size; ++d) {
            const float value = room.sums[d * queries.width + l] / room.total[l];
            if (job.half)
                reinterpret_cast<stored16 *>(to)[d] = static_cast<uint16_t>(narrow<BF16>(value));
            else
                reinterpret_cast<stored32 *>(to)[d] = bits_of(value);
        }
    }
}

void run(const Job &job, const Queries &queries, const avops_attention_node &node, Scratch &room) {
    pack_panel(at(job, job.query, queries.head, queries.first), job.query.row * job.size(),
               job.shape.size * job.size(), queries.rows, queries.width, room.query);
    for (int64_t l = 0; l < queries.width; ++l) {
        room.maximum[l] = -kInfinity;
        room.total[l] = 0;
    }
    std::fill_n(room.sums, job.shape.size * queries.width, 0.0f);
    // Blocks end at multiples of kKeys by position, wherever spans do: so a row's bits do not depend
    // on how its sequence is cut into nodes.
    Keys keys = {0, 0, 0, {}};
    int64_t position = 0;
    for (int64_t span = node.first_span; span < node.last_span; ++span) {
        const int64_t begin = job.spans[2 * span], end = job.spans[2 * span + 1];
        const int64_t last = std::min(queries.high, position + end - begin);
        for (int64_t k = std::max(queries.low, position); k < last;) {
            const int64_t count = std::min(kKeys - k % kKeys, last - k);
            if (!keys.count) keys.position = k;
            keys.piece[keys.pieces++] = {begin + k - position, count};
            keys.count += count;
            k += count;
            if (k % kKeys == 0 || k == queries.high) {
                attend_all(job, queries, room, keys);
                keys.pieces = keys.count = 0;
            }
        }
        position += end - begin;
    }
    finish(job, queries, room);
}

// The queries of one panel of a node, and its node.
struct Task {
    int64_t node, first;
};

}  // namespace

void avops_tree_attention(int32_t dtype, avops_attention_rows query, avops_attention_rows key,
                          avops_attention_rows value, avops_attention_rows out,
                          avops_attention_shape shape, const avops_attention_node *nodes,
                          const int64_t *spans, int32_t threads) {
    const Job job = {query, key, value, out, shape, nodes, spans, dtype == AVOPS_BF16};
    int64_t panels = 0;
    for (int64_t n = 0; n < shape.nodes; ++n)
        panels += (nodes[n].end - nodes[n].begin + kQueries - 1) / kQueries;
    each_task(panels * shape.heads, threads, [&](int64_t task) {
        int64_t panel = task / shape.heads, n = 0;
        for (int64_t count; (count = (nodes[n].end - nodes[n].begin + kQueries - 1) / kQueries) <= panel;
             ++n)
            panel -= count;
        const avops_attention_node &node = nodes[n];
        Queries queries;
        queries.head = task % shape.heads;
        queries.first = node.begin + panel * kQueries;
        queries.rows = std::min(kQueries, node.end - queries.first);
        queries.width = (queries.rows + kLanes - 1) / kLanes * kLanes;
        queries.position = node.depth + panel * kQueries;
        queries.low = shape.window > 0 ? std::max<int64_t>(0, queries.position - shape.window + 1) : 0;
        queries.high = queries.position + queries.rows;
        Scratch room;
        run(job, queries, node, room);
    });
}

#else

// Callers ask avops_head_path() first.
void avops_tree_attention(int32_t, avops_attention_rows, avops_attention_rows, avops_attention_rows,
                          avops_attention_rows, avops_attention_shape, const avops_attention_node *,
                          const int64_t *, int32_t) {}

#endif
