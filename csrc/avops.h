/* avops: the C ABI of the native operations. One declaration per operation: the table of contents.
 *
 * Arrays are flat, contiguous and little-endian, at any byte alignment. Counts are 64-bit.
 * Callers have checked everything (avops/kernels/operands.py): dtypes are members of avops_dtype,
 * all arrays hold n elements, and an output is exactly the base's memory with the base's dtype, or
 * overlaps no input. Results do not depend on `threads`, nor on the caller's floating-point mode.
 * No operation throws, allocates in proportion to n, or touches Python.
 */
#ifndef AVOPS_H
#define AVOPS_H

#include <stdint.h>

/* Raised with every change of a signature or struct here; avops/kernels/extension.py holds its twin. */
#define AVOPS_ABI 1

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

typedef struct {
    int64_t nonfinite; /* outputs that are NaN or infinite */
    int64_t unchanged; /* outputs with the bits of the base element rounded to the output dtype */
} avops_combine_counts;

typedef struct {
    int64_t nonfinite; /* outputs that are NaN or infinite */
    int64_t zeros;     /* outputs that are +0 or -0 */
} avops_diff_counts;

/* out = RNE(base + acc), acc = p_0 + p_1 + ... in order, p_k = lam_k * delta_k; every product and
 * sum rounded to f32, no FMA. No terms: out = RNE(base). Contract: avops/kernels/combine. */
avops_combine_counts avops_combine(avops_input base, const avops_term *terms, int64_t term_count,
                                   avops_output out, int64_t n, int32_t threads);

/* out = RNE(f32(aligned) - f32(base)). Contract: avops/kernels/diff. */
avops_diff_counts avops_diff(avops_input base, avops_input aligned, avops_output out, int64_t n,
                             int32_t threads);

/* The code path this CPU takes: "AVX-512", "AVX2", "SSE2", or "generic" (one path, no choice). */
const char *avops_variant(void);

#ifdef __cplusplus
}
#endif

#endif
