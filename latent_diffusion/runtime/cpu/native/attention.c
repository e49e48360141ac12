/* Attention: softmax(q k^T scale) v, a block of queries at a time, never all scores in memory.
 *
 * Queries lie in the vector lanes, in every product and in the softmax, so that maxima and sums need no work across
 * lanes and keys and values are read as they lie (one number broadcast to all lanes). Sums, maxima and exponentials
 * are float32; bfloat16 inputs are multiplied in pairs, where the processor has an instruction for it.
 *
 * Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3; Dao et al. 2022, arXiv:2205.14135.
 */

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

#define KEYS 64       /* keys a block: scores and probabilities of a block stay in the first-level cache */
#define WIDEST 512    /* channels a head that fit into the scratch memory */

typedef struct { int64_t batch, head, row; } Strides; /* in elements; channels are next to each other */

typedef struct {
    int64_t batch, heads, queries, keys, width;
    Strides q, k, v, out;
    float scale;
    int threads;
} Shape;

typedef struct {
    float q[WIDEST * 2 * LANES] __attribute__((aligned(64)));        /* queries, channel by channel */
    float scores[2 * KEYS * 4 * LANES] __attribute__((aligned(64)));
    float out[WIDEST * 4 * LANES] __attribute__((aligned(64)));      /* results, channel by channel */
    uint32_t values[KEYS / 2 * WIDEST] __attribute__((aligned(64)));
} Scratch;

static const float EXP2[] = {EXP2_LEAST};

/* c[r][lanes] (+)= sum_i a[r * rs + i * is] x[i][lanes] for R rows; of the V vectors of a row of x and c the first T */
#define TILE(NAME, NUMBER, FMA)                                                                                       \
    INLINE void NAME(int R, int T, int V, const NUMBER *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, \
                     int add) {                                                                                       \
        Vector sum[8][4];                                                                                             \
        UNROLL for (int r = 0; r < R; r++)                                                                            \
            UNROLL for (int l = 0; l < T; l++) sum[r][l] = add ? vload(c + (r * V + l) * LANES) : vall(0.0f);         \
        for (int64_t i = 0; i < n; i++) {                                                                             \
            Vector lane[4];                                                                                           \
            UNROLL for (int l = 0; l < T; l++) lane[l] = vload(x + (i * V + l) * LANES);                              \
            UNROLL for (int r = 0; r < R; r++) {                                                                      \
                NUMBER one = a[r * rs + i * is];                                                                      \
                UNROLL for (int l = 0; l < T; l++) sum[r][l] = FMA(one, lane[l], sum[r][l]);                          \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int r = 0; r < R; r++)                                                                            \
            UNROLL for (int l = 0; l < T; l++) vstore(c + (r * V + l) * LANES, sum[r][l]);                            \
    }

/* sums that stay in registers: rows and vectors of a tile, for rows of V vectors */
#if defined(__AVX512F__) /* 16 of 32 */
#define TILE_VECTORS(V) (V)
#define TILE_ROWS(V) (16 / (V))
#elif defined(__AVX2__) /* 12 of 16, two a vector */
#define TILE_VECTORS(V) 1
#define TILE_ROWS(V) 6
#else /* 12 of 16 or 32, four a vector */
#define TILE_VECTORS(V) 1
#define TILE_ROWS(V) 3
#endif

/* products of all rows, several at a time */
#define PRODUCT(NAME, NUMBER, FMA)                                                                                    \
    TILE(NAME##_tile, NUMBER, FMA)                                                                                    \
    INLINE void NAME(int V, const NUMBER *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int64_t rows, \
                     int add) {                                                                                       \
        const int R = TILE_ROWS(V), T = TILE_VECTORS(V);                                                              \
        for (int l = 0; l < V; l += T) {                                                                              \
            const float *lanes = x + l * LANES;                                                                       \
            float *to = c + l * LANES;                                                                                \
            for (int64_t r = 0, here; r < rows; r += here, to += here * V * LANES) {                                  \
                here = rows_of_tile(rows - r, R);                                                                     \
                if (here == R) NAME##_tile(R, T, V, a + r * rs, rs, is, lanes, n, to, add);                           \
                else if (here == 4) NAME##_tile(4, T, V, a + r * rs, rs, is, lanes, n, to, add);                      \
                else if (here == 2) NAME##_tile(2, T, V, a + r * rs, rs, is, lanes, n, to, add);                      \
                else NAME##_tile(1, T, V, a + r * rs, rs, is, lanes, n, to, add);                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

INLINE Vector fma_number(float one, Vector lane, Vector sum) { return vfma(vall(one), lane, sum); }
PRODUCT(product, float, fma_number)

/* softmax over a block of scores (n keys, V vectors): probabilities in place, running maxima, sums and results right.
 * With `paired` the probabilities of two keys are a pair of bfloat16 numbers: (n / 2 rounded up) rows.
 * A score that is NaN or infinite makes its probability NaN, and with it the sum and all results of its query. */
INLINE void softmax(int V, float *scores, int64_t n, float scale, Vector *top, Vector *total, float *out, int64_t width,
                    const float *series, int terms, int paired) {
    const int T = TILE_VECTORS(V); /* vectors at a time: each maximum and sum waits for the one before */
    Vector factor = vall(scale * (float)M_LOG2E);
    for (int first = 0; first < V; first += T) {
        Vector high[4], zero[4];
        UNROLL for (int l = 0; l < T; l++) high[l] = top[first + l];
        for (int64_t s = 0; s < n; s++)
            UNROLL for (int l = 0; l < T; l++) high[l] = vmax(vload(scores + (s * V + first + l) * LANES), high[l]);
        UNROLL for (int l = 0; l < T; l++) {
            Vector *before = top + first + l;
            if (vdiffer(high[l], *before)) {
                Vector shrink = exp2_of_normal(vmul(vsub(*before, high[l]), factor), series, terms);
                total[first + l] = vmul(total[first + l], shrink);
                for (int64_t c = 0; c < width; c++) {
                    float *at = out + (c * V + first + l) * LANES;
                    vstore(at, vmul(vload(at), shrink));
                }
                *before = high[l];
            }
            zero[l] = vmul(high[l], factor);
        }
        for (int64_t s = 0; s < n; s += 1 + paired)
            UNROLL for (int l = 0; l < T; l++) {
                const float *at = scores + (s * V + first + l) * LANES;
                Vector p = exp2_of_normal(vfms(vload(at), factor, zero[l]), series, terms);
                total[first + l] = vadd(total[first + l], p);
#ifdef __AVX512BF16__
                if (paired) {
                    Vector next = vall(0.0f);
                    if (s + 1 < n) next = exp2_of_normal(vfms(vload(at + V * LANES), factor, zero[l]), series, terms);
                    total[first + l] = vadd(total[first + l], next);
                    p = vpair(p, next);
                }
#endif
                vstore(scores + (s / (1 + paired) * V + first + l) * LANES, p);
            }
    }
}

/* results of one block of `here` queries, at most V vectors of them */
INLINE void block_f32(int V, const float *q, const float *k, const float *v, float *out, const Shape *z, int64_t here,
                      Scratch *w) {
    int64_t d = z->width;
    for (int64_t r = 0; r < V * LANES; r++)
        for (int64_t c = 0; c < d; c++) w->q[c * V * LANES + r] = r < here ? q[r * z->q.row + c] : 0.0f;
    memset(w->out, 0, sizeof(float) * d * V * LANES);
    Vector top[4], total[4];
    for (int l = 0; l < V; l++) top[l] = vall(-INFINITY), total[l] = vall(0.0f);
    for (int64_t s = 0; s < z->keys; s += KEYS) {
        int64_t n = z->keys - s < KEYS ? z->keys - s : KEYS;
        product(V, k + s * z->k.row, z->k.row, 1, w->q, d, w->scores, n, 0);
        softmax(V, w->scores, n, z->scale, top, total, w->out, d, EXP2, 6, 0);
        product(V, v + s * z->v.row, 1, z->v.row, w->scores, n, w->out, d, 1);
    }
    float sums[4 * LANES] __attribute__((aligned(64)));
    for (int l = 0; l < V; l++) vstore(sums + l * LANES, total[l]);
    for (int64_t r = 0; r < here; r++)
        for (int64_t c = 0; c < d; c++) out[r * z->out.row + c] = w->out[c * V * LANES + r] / sums[r];
}

#ifdef __AVX512BF16__
PRODUCT(product_pairs, uint32_t, vfma_pairs)

/* 2^f with a relative error of 8e-5, before a rounding to bfloat16 of 2e-3 */
static const float EXP2_ROUGH[] = {9.9992807263e-1f, 6.9326098859e-1f, 2.4261113847e-1f, 5.5171660085e-2f};

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

/* pairs of channels of `here` queries, each pair of V vectors; the rest of `pairs` pairs, and of the vectors, is zero */
INLINE void turn_queries(int V, const uint16_t *q, const Shape *z, int64_t here, int64_t pairs, float *turned) {
    for (int64_t p = 0; p < pairs; p += LANES)
        for (int l = 0; l < V; l++) {
            Vector rows[LANES];
            for (int r = 0; r < LANES; r++) {
                const float *at = (const float *)(q + (l * LANES + r) * z->q.row) + p;
                rows[r] = l * LANES + r < here && z->width / 2 > p ? vload_some(at, z->width / 2 - p) : vall(0.0f);
            }
            vturn(rows);
            for (int64_t c = 0; c < LANES && p + c < pairs; c++) vstore(turned + ((p + c) * V + l) * LANES, rows[c]);
        }
}

/* the sums of `here` queries by their totals, a row each */
INLINE void write_results(int V, const float *sums, const Vector *total, uint16_t *out, const Shape *z, int64_t here) {
    for (int l = 0; l < V; l++) {
        Vector part = vdiv(vall(1.0f), total[l]);
        for (int64_t p = 0; p < z->width / 2; p += LANES) {
            Vector rows[LANES];
            int64_t left = z->width / 2 - p;
            for (int64_t c = 0; c < LANES; c++) {
                const float *at = sums + (2 * (p + c) * V + l) * LANES;
                rows[c] = c < left ? vpair(vmul(vload(at), part), vmul(vload(at + V * LANES), part)) : vall(0.0f);
            }
            vturn(rows);
            for (int64_t r = 0; r < LANES && l * LANES + r < here; r++)
                vstore_some((float *)(out + (l * LANES + r) * z->out.row) + p, left, rows[r]);
        }
    }
}

/* results of one block of `here` queries, at most V vectors of them */
INLINE void block_bf16(int V, const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, const Shape *z,
                       int64_t here, Scratch *w) {
    int64_t d = z->width, pairs = d / 2;
    turn_queries(V, q, z, here, pairs, w->q);
    memset(w->out, 0, sizeof(float) * d * V * LANES);
    Vector top[4], total[4];
    for (int l = 0; l < V; l++) top[l] = vall(-INFINITY), total[l] = vall(0.0f);
    for (int64_t s = 0; s < z->keys; s += KEYS) {
        int64_t n = z->keys - s < KEYS ? z->keys - s : KEYS;
        product_pairs(V, (const uint32_t *)(k + s * z->k.row), z->k.row / 2, 1, w->q, pairs, w->scores, n, 0);
        softmax(V, w->scores, n, z->scale, top, total, w->out, d, EXP2_ROUGH, 4, 1);
        pair_values(v + s * z->v.row, z->v.row, n, d, w->values);
        product_pairs(V, w->values, 1, d, w->scores, (n + 1) / 2, w->out, d, 1);
    }
    write_results(V, w->out, total, out, z, here);
}
#endif

#define ATTENTION(NAME, T, BLOCK)                                                                                 \
    static void BLOCK##_4(const T *q, const T *k, const T *v, T *out, const Shape *z, int64_t here, Scratch *w) {   \
        BLOCK(4, q, k, v, out, z, here, w);                                                                       \
    }                                                                                                             \
    static void BLOCK##_2(const T *q, const T *k, const T *v, T *out, const Shape *z, int64_t here, Scratch *w) {   \
        BLOCK(2, q, k, v, out, z, here, w);                                                                       \
    }                                                                                                             \
    int KERNEL(NAME)(const T *q, const T *k, const T *v, T *out, const Shape *z) {                                        \
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

#if defined(__AMX_BF16__)
#include "attention_amx.h"
#elif defined(__AVX512BF16__)
ATTENTION(attention_bf16, uint16_t, block_bf16)
#endif
#if !defined(__AMX_BF16__) /* there it is that of the level below */
ATTENTION(attention_f32, float, block_f32)
#endif
