/* Attention for CPUs with AVX-512: softmax(q k^T scale) v, a block of queries at a time, never all scores in memory.
 *
 * Queries lie in the vector lanes, in every product and in the softmax, so that maxima and sums need no work across
 * lanes and keys and values are read as they lie (one number broadcast to all lanes). Sums, maxima and exponentials
 * are float32; bfloat16 inputs are multiplied in pairs (vdpbf16ps).
 *
 * Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3; Dao et al. 2022, arXiv:2205.14135.
 */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define KEYS 64       /* keys a block: scores and probabilities of a block stay in the first-level cache */
#define WIDEST 512    /* channels a head that fit into the scratch memory */
#define F32 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define INLINE static inline __attribute__((always_inline))

typedef struct { int64_t batch, head, row; } Strides; /* in elements; channels are next to each other */

typedef struct {
    int64_t batch, heads, queries, keys, width;
    Strides q, k, v, out;
    float scale;
    int threads;
} Shape;

/* 1 = float32 attention works here, 3 = bfloat16 attention too */
int abilities(void) {
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) return 0;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 1;
}

/* 2^x for x <= 0, from a polynomial of 2^f over f = x - round(x) of least relative error; below 2^-126 it is 2^-126,
 * of NaN it is NaN */
#define EXP2(NAME, POLYNOMIAL)                                                                                   \
    F32 INLINE __m512 NAME(__m512 x) {                                                                           \
        const __m512 magic = _mm512_set1_ps(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */    \
        x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x); /* of two numbers with a NaN it gives the second */        \
        __m512 shifted = _mm512_add_ps(x, magic);                                                                \
        __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic)); /* -0.5 .. 0.5 */                            \
        __m512 p;                                                                                                \
        POLYNOMIAL                                                                                               \
        return (__m512)_mm512_add_epi32((__m512i)p, _mm512_slli_epi32((__m512i)shifted, 23));                    \
    }
#define BEGIN(C) p = _mm512_set1_ps(C);
#define THEN(C) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(C));

/* relative error 8e-8 */
EXP2(exp2_f32, BEGIN(1.3276470967e-3f) THEN(9.6755415963e-3f) THEN(5.5507132790e-2f) THEN(2.4022119719e-1f)
     THEN(6.9314696706e-1f) THEN(1.0000000717f))
/* relative error 8e-5, before a rounding to bfloat16 of 2e-3 */
EXP2(exp2_bf16, BEGIN(5.5171660085e-2f) THEN(2.4261113847e-1f) THEN(6.9326098859e-1f) THEN(9.9992807263e-1f))

/* c[r][lanes] (+)= sum_i a[r * rs + i * is] * x[i][lanes] for R rows of V vectors each */
#define TILE(NAME, TARGET, T, R, V, STEP)                                                                   \
    TARGET INLINE void NAME(const T *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int add) { \
        __m512 sum[R][V];                                                                                   \
        for (int r = 0; r < R; r++)                                                                         \
            for (int l = 0; l < V; l++)                                                                     \
                sum[r][l] = add ? _mm512_load_ps(c + (r * V + l) * LANES) : _mm512_setzero_ps();            \
        for (int64_t i = 0; i < n; i++) {                                                                   \
            __m512 lane[V];                                                                                 \
            for (int l = 0; l < V; l++) lane[l] = _mm512_load_ps(x + (i * V + l) * LANES);                  \
            for (int r = 0; r < R; r++) {                                                                   \
                STEP                                                                                        \
            }                                                                                               \
        }                                                                                                   \
        for (int r = 0; r < R; r++)                                                                         \
            for (int l = 0; l < V; l++) _mm512_store_ps(c + (r * V + l) * LANES, sum[r][l]);                \
    }

#define STEP_F32(V)                                              \
    __m512 one = _mm512_set1_ps(a[r * rs + i * is]);             \
    for (int l = 0; l < V; l++) sum[r][l] = _mm512_fmadd_ps(one, lane[l], sum[r][l]);
#define STEP_BF16(V)                                             \
    __m512bh one = (__m512bh)_mm512_set1_epi32((int)a[r * rs + i * is]); \
    for (int l = 0; l < V; l++) sum[r][l] = _mm512_dpbf16_ps(sum[r][l], one, (__m512bh)lane[l]);

/* products of all rows, several at a time */
#define PRODUCT(NAME, TARGET, T, R, V, STEP)                                                                    \
    TILE(NAME##_many, TARGET, T, R, V, STEP)                                                                    \
    TILE(NAME##_one, TARGET, T, 1, V, STEP)                                                                     \
    TARGET INLINE void NAME(const T *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int64_t rows, int add) { \
        int64_t r = 0;                                                                                          \
        for (; r + R <= rows; r += R) NAME##_many(a + r * rs, rs, is, x, n, c + r * V * LANES, add);            \
        for (; r < rows; r++) NAME##_one(a + r * rs, rs, is, x, n, c + r * V * LANES, add);                     \
    }

PRODUCT(product_f32_4, F32, float, 4, 4, STEP_F32(4))
PRODUCT(product_f32_2, F32, float, 8, 2, STEP_F32(2))
PRODUCT(product_bf16_4, BF16, uint32_t, 4, 4, STEP_BF16(4))
PRODUCT(product_bf16_2, BF16, uint32_t, 8, 2, STEP_BF16(2))

/* softmax over a block of scores (n keys, V vectors): probabilities in place, running maxima, sums and results right.
 * A score that is NaN or infinite makes its probability NaN, and with it the sum and all results of its query. */
#define SOFTMAX(NAME, V, EXP)                                                                             \
    F32 INLINE void NAME(float *scores, int64_t n, float scale, __m512 *top, __m512 *total, float *out, int64_t width) { \
        __m512 factor = _mm512_set1_ps(scale * (float)M_LOG2E);                                         \
        for (int l = 0; l < V; l++) {                                                                   \
            __m512 high = top[l];                                                                       \
            for (int64_t s = 0; s < n; s++) high = _mm512_max_ps(_mm512_load_ps(scores + (s * V + l) * LANES), high); \
            if (_mm512_cmp_ps_mask(high, top[l], _CMP_NEQ_OQ)) {                                        \
                __m512 shrink = EXP(_mm512_mul_ps(_mm512_sub_ps(top[l], high), factor));   \
                total[l] = _mm512_mul_ps(total[l], shrink);                                             \
                for (int64_t c = 0; c < width; c++) {                                                   \
                    float *at = out + (c * V + l) * LANES;                                              \
                    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), shrink));                     \
                }                                                                                       \
                top[l] = high;                                                                          \
            }                                                                                           \
            __m512 zero = _mm512_mul_ps(high, factor), sum = total[l];                                  \
            for (int64_t s = 0; s < n; s++) {                                                           \
                float *at = scores + (s * V + l) * LANES;                                               \
                __m512 p = EXP(_mm512_fmsub_ps(_mm512_load_ps(at), factor, zero));         \
                sum = _mm512_add_ps(sum, p);                                                            \
                _mm512_store_ps(at, p);                                                                 \
            }                                                                                           \
            total[l] = sum;                                                                             \
        }                                                                                               \
    }

SOFTMAX(softmax_f32_4, 4, exp2_f32)
SOFTMAX(softmax_f32_2, 2, exp2_f32)
SOFTMAX(softmax_bf16_4, 4, exp2_bf16)
SOFTMAX(softmax_bf16_2, 2, exp2_bf16)

/* probabilities of two keys as bfloat16 pairs, in place: (n / 2 rounded up) rows */
BF16 INLINE void pair_probabilities(float *p, int64_t n, int V) {
    const __m512i merge = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t s = 0; s < n; s += 2)
        for (int l = 0; l < V; l++) {
            __m512 first = _mm512_load_ps(p + (s * V + l) * LANES);
            __m512 second = s + 1 < n ? _mm512_load_ps(p + ((s + 1) * V + l) * LANES) : _mm512_setzero_ps();
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
            _mm512_store_si512(p + (s / 2 * V + l) * LANES, _mm512_permutexvar_epi16(merge, both));
        }
}

/* values of two keys side by side: out[s / 2][c] = (v[s][c], v[s + 1][c]) */
INLINE void pair_values(const uint16_t *v, int64_t row, int64_t n, int64_t width, uint32_t *out) {
    for (int64_t s = 0; s < n; s += 2) {
        const uint16_t *first = v + s * row, *second = first + row;
        uint32_t *at = out + s / 2 * width;
        if (s + 1 < n)
            for (int64_t c = 0; c < width; c++) at[c] = first[c] | (uint32_t)second[c] << 16;
        else
            for (int64_t c = 0; c < width; c++) at[c] = first[c];
    }
}

typedef struct {
    float q[WIDEST * 2 * LANES] __attribute__((aligned(64)));        /* queries, channel by channel */
    float scores[KEYS * 4 * LANES] __attribute__((aligned(64)));
    float out[WIDEST * 2 * LANES] __attribute__((aligned(64)));      /* results, channel by channel */
    uint32_t values[KEYS / 2 * WIDEST] __attribute__((aligned(64)));
} Scratch;

#define BLOCK_F32(NAME, V)                                                                                       \
    F32 static void NAME(const float *q, const float *k, const float *v, float *out, const Shape *z, int64_t here, \
                         Scratch *w) {                                                                           \
        int64_t d = z->width;                                                                                    \
        for (int64_t r = 0; r < V * LANES; r++)                                                                  \
            for (int64_t c = 0; c < d; c++) w->q[c * V * LANES + r] = r < here ? q[r * z->q.row + c] : 0.0f;     \
        memset(w->out, 0, sizeof(float) * d * V * LANES);                                                        \
        __m512 top[V], total[V];                                                                                 \
        for (int l = 0; l < V; l++) top[l] = _mm512_set1_ps(-INFINITY), total[l] = _mm512_setzero_ps();           \
        for (int64_t s = 0; s < z->keys; s += KEYS) {                                                            \
            int64_t n = z->keys - s < KEYS ? z->keys - s : KEYS;                                                 \
            product_f32_##V(k + s * z->k.row, z->k.row, 1, w->q, d, w->scores, n, 0);                            \
            softmax_f32_##V(w->scores, n, z->scale, top, total, w->out, d);                                          \
            product_f32_##V(v + s * z->v.row, 1, z->v.row, w->scores, n, w->out, d, 1);                          \
        }                                                                                                        \
        float sums[V * LANES] __attribute__((aligned(64)));                                                      \
        for (int l = 0; l < V; l++) _mm512_store_ps(sums + l * LANES, total[l]);                                 \
        for (int64_t r = 0; r < here; r++)                                                                       \
            for (int64_t c = 0; c < d; c++) out[r * z->out.row + c] = w->out[c * V * LANES + r] / sums[r];       \
    }

BLOCK_F32(block_f32_4, 4)
BLOCK_F32(block_f32_2, 2)

#define BLOCK_BF16(NAME, V)                                                                                      \
    BF16 static void NAME(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, const Shape *z, \
                          int64_t here, Scratch *w) {                                                            \
        int64_t d = z->width, pairs = d / 2;                                                                     \
        uint32_t *turned = (uint32_t *)w->q;                                                                     \
        for (int64_t r = 0; r < V * LANES; r++)                                                                  \
            for (int64_t c = 0; c < pairs; c++) {                                                                \
                uint32_t two = 0;                                                                                \
                if (r < here) memcpy(&two, q + r * z->q.row + 2 * c, 4);                                         \
                turned[c * V * LANES + r] = two;                                                                 \
            }                                                                                                    \
        memset(w->out, 0, sizeof(float) * d * V * LANES);                                                        \
        __m512 top[V], total[V];                                                                                 \
        for (int l = 0; l < V; l++) top[l] = _mm512_set1_ps(-INFINITY), total[l] = _mm512_setzero_ps();           \
        for (int64_t s = 0; s < z->keys; s += KEYS) {                                                            \
            int64_t n = z->keys - s < KEYS ? z->keys - s : KEYS;                                                 \
            product_bf16_##V((const uint32_t *)(k + s * z->k.row), z->k.row / 2, 1, w->q, pairs, w->scores, n, 0); \
            softmax_bf16_##V(w->scores, n, z->scale, top, total, w->out, d);                                          \
            pair_probabilities(w->scores, n, V);                                                                 \
            pair_values(v + s * z->v.row, z->v.row, n, d, w->values);                                            \
            product_bf16_##V(w->values, 1, d, w->scores, (n + 1) / 2, w->out, d, 1);                             \
        }                                                                                                        \
        float sums[V * LANES] __attribute__((aligned(64)));                                                      \
        for (int l = 0; l < V; l++) _mm512_store_ps(sums + l * LANES, total[l]);                                 \
        for (int64_t r = 0; r < here; r++)                                                                       \
            for (int64_t c = 0; c < d; c++) {                                                                    \
                float x = w->out[c * V * LANES + r] / sums[r];                                                   \
                uint32_t bits;                                                                                   \
                memcpy(&bits, &x, 4);                                                                            \
                out[r * z->out.row + c] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);                  \
            }                                                                                                    \
    }

BLOCK_BF16(block_bf16_4, 4)
BLOCK_BF16(block_bf16_2, 2)

#define ATTENTION(NAME, T, BLOCK)                                                                                 \
    int NAME(const T *q, const T *k, const T *v, T *out, const Shape *z) {                                        \
        int64_t vectors = z->width <= WIDEST / 2 ? 4 : 2, step = vectors * LANES;                                 \
        int64_t blocks = (z->queries + step - 1) / step, work = z->batch * z->heads * blocks;                     \
        /* of the calling thread's heap, whose pages stay: what other threads free, they fault in again */         \
        Scratch *all = aligned_alloc(64, sizeof(Scratch) * z->threads);                                           \
        if (!all) return 1;                                                                                       \
        _Pragma("omp parallel num_threads(z->threads)") {                                                         \
            Scratch *w = all + omp_get_thread_num();                                                              \
            _Pragma("omp for schedule(dynamic, 1)") for (int64_t i = 0; i < work; i++) {                          \
                int64_t b = i / blocks / z->heads, h = i / blocks % z->heads, first = i % blocks * step;          \
                int64_t here = z->queries - first < step ? z->queries - first : step;                             \
                const T *qi = q + b * z->q.batch + h * z->q.head + first * z->q.row;                              \
                const T *ki = k + b * z->k.batch + h * z->k.head, *vi = v + b * z->v.batch + h * z->v.head;       \
                T *oi = out + b * z->out.batch + h * z->out.head + first * z->out.row;                            \
                if (vectors == 4) BLOCK##_4(qi, ki, vi, oi, z, here, w);                                          \
                else BLOCK##_2(qi, ki, vi, oi, z, here, w);                                                       \
            }                                                                                                     \
        }                                                                                                         \
        free(all);                                                                                                \
        return 0;                                                                                                 \
    }

ATTENTION(attention_f32, float, block_f32)
ATTENTION(attention_bf16, uint16_t, block_bf16)
