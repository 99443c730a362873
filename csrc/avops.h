/* avops: the C ABI of the native operations. One declaration per operation: the table of contents.
 *
 * Arrays are flat, contiguous and little-endian, at any byte alignment. Counts are 64-bit.
 * Callers have checked everything (avops/kernels/operands.py): dtypes are members of avops_dtype,
 * all arrays hold n elements, and an output is exactly the base's memory with the base's dtype, or
 * overlaps no input. Results do not depend on `threads`, nor on the caller's floating-point mode.
 * No operation throws, allocates in proportion to n, touches Python, or reads files.
 */
#ifndef AVOPS_H
#define AVOPS_H

#include <stdint.h>

/* Raised with every change of a signature or struct here; avops/kernels/extension.py holds its twin. */
#define AVOPS_ABI 9

#ifdef __cplusplus
extern "C" {
#endif

/* Element types; the codes are those of avops/dtypes.py. */
enum avops_dtype { AVOPS_F32 = 0, AVOPS_F16 = 1, AVOPS_BF16 = 2 };

typedef struct {
    const void *data;
    int32_t dtype;
} avops_input;

typedef struct {
    void *data;
    int32_t dtype;
} avops_output;

/* One term of a combination. aligned = 0: values are the delta; 1: delta = f32(values) - f32(base). */
typedef struct {
    avops_input values;
    float lam;
    int32_t aligned;
} avops_term;

/* dither = 0: round to nearest, ties to even. 1: dithered; key is the tensor's, start the flat index
 * of element 0 in its tensor. */
typedef struct {
    int32_t dither;
    uint64_t key;
    int64_t start;
} avops_rounding;

typedef struct {
    int64_t nonfinite;  /* outputs that are NaN or infinite */
    int64_t unchanged;  /* outputs with the bits of the base element rounded to nearest */
    int64_t overflowed; /* infinite outputs of a finite sum */
    int64_t flushed;    /* zero outputs of a sum that is not zero */
} avops_combine_counts;

typedef struct {
    int64_t nonfinite; /* outputs that are NaN or infinite */
    int64_t zeros;     /* outputs that are +0 or -0 */
} avops_diff_counts;

/* out = round(base + acc), acc = p_0 + p_1 + ... in order, p_k = lam_k * delta_k; every product and
 * sum rounded to f32, no FMA. No terms: out = round(base). Contract: avops/kernels/combine. */
avops_combine_counts avops_combine(avops_input base, const avops_term *terms, int64_t term_count,
                                   avops_output out, int64_t n, avops_rounding rounding,
                                   int32_t threads);

/* out = RNE(f32(aligned) - f32(base)). Contract: avops/kernels/diff. */
avops_diff_counts avops_diff(avops_input base, avops_input aligned, avops_output out, int64_t n,
                             int32_t threads);

/* out[i] = scale * sum of left[row][j] * right[j][column] over j = 0, 1, ... in order, for the flat
 * elements start + i of the [rows, columns] product; every product and sum rounded to f32, no FMA.
 * left is [rows, rank] and right [rank, columns], row-major f32. Contract: avops/kernels/lowrank. */
void avops_lowrank(const float *left, const float *right, int64_t rank, int64_t columns, float scale,
                   int64_t start, float *out, int64_t n, int32_t threads);

/* sums: the upper triangle, row by row, of the inner products of the rows lam_k * delta_k and, last,
 * out - base, in f64; (term_count + 1)(term_count + 2) / 2 numbers. Returns 1, or 0 without memory.
 * Contract: avops/kernels/gram. */
int32_t avops_gram(avops_input base, const avops_term *terms, int64_t term_count, avops_input out,
                   int64_t n, double *sums);

/* How logits come from what the head gives: times multiply, over divide, then softcap * tanh(x / softcap)
 * unless softcap is 0; each a rounding to f32, and none where the factor is 1. */
typedef struct {
    float multiply;
    float divide;
    float softcap;
} avops_logits;

/* out[row] = log P(targets[row]) of each row of f32 logits, `stride` elements from row to row; NaN where
 * targets[row] is no column. Contract: avops/kernels/logprob. */
void avops_logprob(const float *logits, int64_t rows, int64_t columns, int64_t stride,
                   const int64_t *targets, avops_logits rule, float *out, int32_t threads);

/* Ways to multiply, each with all before it: avops_head_path() is the best one that this CPU has. */
enum avops_path { AVOPS_PLAIN = 0, AVOPS_AVX2 = 1, AVOPS_AVX512 = 2, AVOPS_AVX512_BF16 = 3 };
int32_t avops_head_path(void);

/* The bytes, of memory aligned to 64, that avops_head_logprob needs for each thread. */
int64_t avops_head_scratch(int64_t dim);

/* out[row] = log P(targets[row]) under the logits hidden[row] @ weight.T + bias. hidden is [rows, dim] and
 * weight [vocabulary, dim], row-major and aligned to their elements; bias holds `vocabulary` elements, or
 * its data is NULL. path: the best way to take, if the CPU has it. Contract: avops/kernels/head_logprob. */
void avops_head_logprob(avops_input hidden, int64_t rows, avops_input weight, avops_input bias,
                        int64_t vocabulary, int64_t dim, const int64_t *targets, avops_logits rule,
                        float *out, int32_t path, void *scratch, int32_t threads);

/* gate[i] = silu(gate[i]) * up[i] in f32, rounded once; f32 or bf16, at any alignment, without overlap.
 * Contract: avops/kernels/swiglu. */
void avops_swiglu(void *gate, const void *up, int32_t dtype, int64_t n, int32_t threads);

/* out[row] = weight * x[row] / sqrt(mean(x[row]^2) + epsilon), rows of n elements, in f32, rounded once;
 * f32 or bf16. Contract: avops/kernels/rms_norm. */
void avops_rms_norm(const void *x, const void *weight, int32_t dtype, float epsilon, int64_t rows,
                    int64_t n, void *out, int32_t threads);

/* x[row][head] turned, in place, by the angles of its row: element i and its partner i + size / 2, whose
 * cosines and sines are those of [row][i] and [row][i + size / 2]. In f32, rounded once; f32 or bf16.
 * Contract: avops/kernels/rope. */
void avops_rope(void *x, const void *cosine, const void *sine, int32_t dtype, int64_t rows,
                int64_t heads, int64_t size, int32_t threads);

/* Weights of one product: `outputs` rows as wide as its input, and as many biases, or NULL. out is
 * [rows][outputs]. */
typedef struct {
    const void *weight;
    const void *bias;
    void *out;
    int64_t outputs;
} avops_projection;

/* Bytes that `rows` rows of `dim` elements take when packed. */
int64_t avops_packed_bytes(int32_t dtype, int64_t rows, int64_t dim);

/* out = x @ weight.T + bias for each of `count` projections of x, [rows][dim]; all f32, or all bf16, in
 * memory without overlap. scratch: avops_packed_bytes(dtype, rows, dim), aligned to 64. f32 where
 * avops_head_path() is AVOPS_AVX512 at least, bf16 where it is AVOPS_AVX512_BF16.
 * Contract: avops/kernels/linear. */
void avops_linear(int32_t dtype, const void *x, int64_t rows, int64_t dim,
                  const avops_projection *projections, int64_t count, void *scratch, int32_t threads);

/* down of silu(gate of x) * (up of x), where gate and up have as many outputs as the weight of down is
 * wide; their out is not looked at. scratch: that of x, and that of down's input behind it. Otherwise as
 * avops_linear. Contract: avops/kernels/gated_mlp. */
void avops_gated_mlp(int32_t dtype, const void *x, int64_t rows, int64_t dim, avops_projection gate,
                     avops_projection up, avops_projection down, void *scratch, int32_t threads);

/* 1 on processors of AMD, else 0. */
int32_t avops_is_amd(void);

/* Rows of `size` elements: `head` elements from one head to the next, `row` from row to row. */
typedef struct {
    void *data;
    int64_t head;
    int64_t row;
} avops_attention_rows;

/* group: heads of the query for one of keys and values. window: keys that a query sees, or 0 for all. */
typedef struct {
    int64_t nodes;
    int64_t heads;
    int64_t group;
    int64_t size;
    int64_t window;
    float scale;
} avops_attention_shape;

/* Rows begin .. end - 1, whose first is at position `depth`; they see the spans first_span .. last_span - 1,
 * pairs (begin, end) of rows at positions 0, 1, ..., of which the node's own are the last. */
typedef struct {
    int64_t begin;
    int64_t end;
    int64_t depth;
    int64_t first_span;
    int64_t last_span;
} avops_attention_node;

/* Attention of every row to what it sees. f32 where avops_head_path() is AVOPS_AVX512 at least, bf16 where it
 * is AVOPS_AVX512_BF16; size is at most 256. Contract: avops/kernels/tree_attention. */
void avops_tree_attention(int32_t dtype, avops_attention_rows query, avops_attention_rows key,
                          avops_attention_rows value, avops_attention_rows out,
                          avops_attention_shape shape, const avops_attention_node *nodes,
                          const int64_t *spans, int32_t threads);

/* The code path this CPU takes: "AVX-512", "AVX2", "SSE2", or "generic" (one path, no choice). */
const char *avops_variant(void);

#ifdef __cplusplus
}
#endif

#endif
