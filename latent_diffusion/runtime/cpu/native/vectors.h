/* Sixteen float32 numbers as one value, and what the kernels do with them, for each level of processor.
 *
 * hatch_build.py compiles every kernel once per level, with the compiler's flags for it: AVX-512 holds a Vector in one
 * register, AVX2 in two, and plain C in four of 128 bits (SSE2, NEON). A Vector has sixteen lanes at every level, so
 * sums run in the same order: AVX2 and AVX-512 give the same bits, but for bfloat16 under 2^-126, which AVX-512 with
 * bfloat16 makes 0. Plain C rounds between a product and its sum.
 *
 * On NaN: vmax(a, b) gives b where one of the two is NaN, as the instruction does; everything else passes NaN on.
 */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* KERNEL(attention) is attention_avx2 where LEVEL is avx2 */
#define JOINED(NAME, LEVEL) NAME##_##LEVEL
#define NAMED(NAME, LEVEL) JOINED(NAME, LEVEL)
#define KERNEL(NAME) NAMED(NAME, LEVEL)

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "vectors_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vectors_avx2.h"
#else
#include "vectors_plain.h"
#endif

/* scale (c[0] + x c[1] + x^2 c[2] + ...) */
INLINE Vector polynomial(Vector x, float scale, const float *c, int terms) {
    Vector sum = vall(scale * c[terms - 1]);
    UNROLL for (int i = terms - 2; i >= 0; i--) sum = vfma(sum, x, vall(scale * c[i]));
    return sum;
}

/* 2^f for f = -0.5 .. 0.5, two ways: the terms of least relative error (8e-8), and Taylor's */
#define EXP2_LEAST 1.0000000717f, 6.9314696706e-1f, 2.4022119719e-1f, 5.5507132790e-2f, 9.6755415963e-3f, 1.3276470967e-3f
#define EXP2_TAYLOR                                                                                             \
    1.0f, 6.931471806e-1f, 2.402265070e-1f, 5.550410866e-2f, 9.618129108e-3f, 1.333355815e-3f, 1.540353039e-4f, \
        1.525273380e-5f

/* 2^x for any x, from the first `terms` of a series for 2^f, where x = whole + f */
INLINE Vector exp2_of_any(Vector x, const float *c, int terms) {
    Vector whole = vround(x);
    return vscale(polynomial(vsub(x, whole), 1.0f, c, terms), whole);
}

/* 2^x for x = -126 .. 126, in fewer steps; 2^-126 below */
INLINE Vector exp2_of_normal(Vector x, const float *c, int terms) {
    /* adding 1.5 * 2^23 rounds to a whole number; its last bits are whole + 128, the exponent of 2^(whole + 1) */
    const Vector magic = vall(12582912.0f + 128.0f);
    x = vmax(vall(-126.0f), x);
    Vector shifted = vadd(x, magic), f = vsub(x, vsub(shifted, magic));
    return vmul(polynomial(f, 0.5f, c, terms), vpower(shifted));
}

/* x / (1 + e^-x), from e^-|x| = 2^y, y <= 0 */
INLINE Vector silu(Vector x) {
    static const float series[] = {EXP2_LEAST};
    Vector small = exp2_of_any(vmul(vabs(x), vall(-(float)M_LOG2E)), series, 6);
    return vdiv(vnegative(x, vmul(x, small), x), vadd(vall(1.0f), small));
}

/* rows of the next tile of a matrix product, where `left` are left and `most` fit into the registers: a lone row takes
 * as long as four, for each of its sums waits for the one before */
INLINE int64_t rows_of_tile(int64_t left, int64_t most) {
    if (left >= most && !(left == 8 && most == 6)) return most;
    return left >= 4 && most > 4 ? 4 : left >= 2 && most > 2 ? 2 : 1;
}

/* numbers from `at` on, of float32 or bfloat16 memory; stored bfloat16 is rounded to the nearest, halves to even */
INLINE Vector load_vector(const void *x, int64_t at, int bfloat16) {
    return bfloat16 ? vload_bf16((const uint16_t *)x + at) : vload((const float *)x + at);
}
INLINE void store_vector(void *x, int64_t at, Vector y, int bfloat16) {
    if (bfloat16) vstore_bf16((uint16_t *)x + at, y);
    else vstore((float *)x + at, y);
}

/* the same of n numbers; nothing behind them is read or written, and the other lanes are zero */
INLINE Vector load_numbers(const void *x, int64_t at, int64_t n, int bfloat16) {
    return bfloat16 ? vload_some_bf16((const uint16_t *)x + at, n) : vload_some((const float *)x + at, n);
}
INLINE void store_numbers(void *x, int64_t at, int64_t n, Vector y, int bfloat16) {
    if (bfloat16) vstore_some_bf16((uint16_t *)x + at, n, y);
    else vstore_some((float *)x + at, n, y);
}
