/* Attention with its gradient, for training on CPUs with AVX-512: softmax(q k^T scale) v, no matrix of scores kept.
 *
 * One head at a time. Queries lie in the vector lanes; keys and values are broadcast number by number, so a head of 8
 * channels runs as well as one of 64. All arithmetic is float32, whatever the tensors are. Of the forward pass only the
 * result and log2 of each query's sum of exponentials are kept; backward makes the probabilities again:
 *
 *     P = exp(S - logsum)    dV = P^T G    dS = P (G V^T - rowsum(G O))    dQ = scale dS K    dK = scale dS^T Q
 *
 * No sum is shared between threads, so results do not depend on their number.
 *
 * Dao et al. 2022, arXiv:2205.14135, algorithm 4; Rabe & Staats 2021, arXiv:2112.05682.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define PAIR (2 * LANES)
#define AHEAD PAIR /* queries of a block of the forward pass */
#define SUMMED 64  /* keys that are summed up in one go: long sums round more */
#define WIDEST 512 /* channels of a head */
#define BACK 256   /* queries of a block of the backward pass, and */
#define KEYS 16    /* keys of one: their probabilities and gradients stay in the first-level cache */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline))

typedef struct { int64_t batch, head, row; } Strides; /* in numbers; the channels of a head are next to each other */

typedef struct {
    int64_t batch, heads, queries, keys, width;
    int bfloat16; /* else float32 */
    int threads;
} Sizes;

typedef struct { void *data; Strides by; } Heads; /* a tensor (B, N, L, d) */

/* 2^x for x <= 126, to a rounding or two; 2^-126 below that, NaN of NaN. x = whole + f, Taylor series over f */
AVX512 INLINE __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.525273380e-5f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.540353039e-4f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.333355815e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618129108e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550410866e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402265070e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931471806e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

/* c[r][two vectors] (+)= sum_i a[r * rs + i * is] x[i][two vectors] for R rows; rows of x and c lie `wide` apart */
#define TILE(R)                                                                                                       \
    AVX512 INLINE void tile_##R(const float *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c,          \
                                int64_t wide, int add) {                                                              \
        __m512 low[R], high[R];                                                                                       \
        for (int r = 0; r < R; r++) low[r] = high[r] = _mm512_setzero_ps();                                           \
        for (int64_t i = 0; i < n; i++) {                                                                             \
            __m512 first = _mm512_load_ps(x + i * wide), second = _mm512_load_ps(x + i * wide + LANES);               \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                     \
                __m512 one = _mm512_set1_ps(a[r * rs + i * is]);                                                      \
                low[r] = _mm512_fmadd_ps(one, first, low[r]);                                                         \
                high[r] = _mm512_fmadd_ps(one, second, high[r]);                                                      \
            }                                                                                                         \
        }                                                                                                             \
        for (int r = 0; r < R; r++) {                                                                                 \
            float *at = c + r * wide;                                                                                 \
            _mm512_store_ps(at, add ? _mm512_add_ps(_mm512_load_ps(at), low[r]) : low[r]);                            \
            at += LANES;                                                                                              \
            _mm512_store_ps(at, add ? _mm512_add_ps(_mm512_load_ps(at), high[r]) : high[r]);                          \
        }                                                                                                             \
    }
TILE(8)
TILE(1)

/* c (rows, lanes) (+)= a (rows, n) x (n, lanes); `lanes` is a multiple of 32 */
AVX512 static void product(const float *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int64_t rows,
                           int64_t lanes, int64_t wide, int add) {
    for (int64_t l = 0; l < lanes; l += PAIR) {
        int64_t r = 0;
        for (; r + 8 <= rows; r += 8) tile_8(a + r * rs, rs, is, x + l, n, c + r * wide + l, wide, add);
        for (; r < rows; r++) tile_1(a + r * rs, rs, is, x + l, n, c + r * wide + l, wide, add);
    }
}

/* out[4 i + j] = the sum of v[i + 4 j] over its lanes */
AVX512 INLINE void sums_of(const __m512 *v, float *out) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 8]), _mm512_unpackhi_ps(v[i], v[i + 8]));
    for (int i = 0; i < 4; i++) /* in each quarter: v[i], v[i + 4], v[i + 8], v[i + 12] */
        b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 4]), _mm512_unpackhi_ps(a[i], a[i + 4]));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xee));
    _mm512_store_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd)));
}

/* out (rows, width) += p (rows, lanes) x^T, x (width, lanes): sums over the lanes, four rows and channels at once */
AVX512 static void contract(const float *p, const float *x, int64_t lanes, float *out, int64_t rows, int64_t width) {
    for (int64_t r0 = 0; r0 < rows; r0 += 4)
        for (int64_t c0 = 0; c0 < width; c0 += 4) {
            __m512 sum[16];
            for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
            for (int64_t l = 0; l < lanes; l += LANES) {
                __m512 row[4];
                for (int r = 0; r < 4; r++) row[r] = _mm512_load_ps(p + (r0 + r) * BACK + l);
                _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {
                    __m512 at = _mm512_load_ps(x + (c0 + c) * BACK + l);
                    _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)
                        sum[c * 4 + r] = _mm512_fmadd_ps(row[r], at, sum[c * 4 + r]);
                }
            }
            float all[16] __attribute__((aligned(64)));
            sums_of(sum, all);
            for (int64_t r = 0; r < 4 && r0 + r < rows; r++)
                for (int64_t c = 0; c < 4 && c0 + c < width; c++) out[(r0 + r) * width + c0 + c] += all[4 * r + c];
        }
}

INLINE __mmask16 lanes_of(int64_t n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

/* out (n,) = numbers of `t` from `at` on, times `scale` */
AVX512 INLINE void read_numbers(const Heads *t, int64_t at, int64_t n, int bfloat16, float scale, float *out) {
    for (int64_t i = 0; i < n; i += LANES) {
        __mmask16 some = lanes_of(n - i);
        __m512 x;
        if (bfloat16) {
            __m256i bits = _mm256_maskz_loadu_epi16(some, (const uint16_t *)t->data + at + i);
            x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        } else {
            x = _mm512_maskz_loadu_ps(some, (const float *)t->data + at + i);
        }
        _mm512_mask_storeu_ps(out + i, some, _mm512_mul_ps(x, _mm512_set1_ps(scale)));
    }
}

/* numbers of `t` from `at` on = x (n,) times `scale`, rounded to even in bfloat16 */
AVX512 INLINE void write_numbers(const Heads *t, int64_t at, int64_t n, int bfloat16, float scale, const float *x) {
    for (int64_t i = 0; i < n; i += LANES) {
        __mmask16 some = lanes_of(n - i);
        __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_set1_ps(scale));
        if (!bfloat16) {
            _mm512_mask_storeu_ps((float *)t->data + at + i, some, y);
            continue;
        }
        __m512i bits = _mm512_castps_si512(y);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i near = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
        near = _mm512_mask_set1_epi32(near, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), 0x7fc0);
        _mm256_mask_storeu_epi16((uint16_t *)t->data + at + i, some, _mm512_cvtepi32_epi16(near));
    }
}

/* out (rows, width) = rows of one head */
AVX512 static void read_rows(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float *out) {
    for (int64_t r = 0; r < rows; r++)
        read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, 1.0f, out + r * z->width);
}

/* rows of one head = x (rows, width), times `scale` */
AVX512 static void write_rows(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float scale,
                              const float *x) {
    for (int64_t r = 0; r < rows; r++)
        write_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scale, x + r * z->width);
}

/* out (width, wide) = rows of one head, turned, times `scale`; zero in the lanes from `rows` to `lanes` */
AVX512 static void read_turned(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float scale, float *out,
                               int64_t lanes, int64_t wide) {
    float row[WIDEST];
    for (int64_t r = 0; r < lanes; r++) {
        if (r < rows) read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scale, row);
        else memset(row, 0, sizeof(float) * z->width);
        for (int64_t c = 0; c < z->width; c++) out[c * wide + r] = row[c];
    }
}

/* rows of one head = x (width, wide), turned, each row times its own `scales` or, where that is NULL, times `scale` */
AVX512 static void write_turned(const Heads *t, int64_t start, int64_t rows, const Sizes *z, const float *scales,
                                float scale, const float *x, int64_t wide) {
    float row[WIDEST];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < z->width; c++) row[c] = x[c * wide + r];
        write_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scales ? scales[r] : scale, row);
    }
}

/* sums (rows,) = each row of one times the same row of the other */
AVX512 static void products_of_rows(const Heads *t, int64_t start, const Heads *u, int64_t other, int64_t rows,
                                    const Sizes *z, float *sums) {
    float a[WIDEST], b[WIDEST];
    for (int64_t r = 0; r < rows; r++) {
        read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, 1.0f, a);
        read_numbers(u, other + r * u->by.row, z->width, z->bfloat16, 1.0f, b);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < z->width; c += LANES) {
            __mmask16 some = lanes_of(z->width - c);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, a + c), _mm512_maskz_loadu_ps(some, b + c), sum);
        }
        sums[r] = _mm512_reduce_add_ps(sum);
    }
}

INLINE int64_t start_of(const Heads *t, int64_t b, int64_t h) { return b * t->by.batch + h * t->by.head; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t rounded(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
static float *numbers(int64_t count) { return aligned_alloc(64, rounded(count, LANES) * sizeof(float)); }

/* up to 32 queries: scores -> probabilities, unnormed, in place; 1 / the sum of each query's, log2 of the true sum */
AVX512 static void softmax(float *scores, int64_t keys, float *inverse, float *logsum) {
    for (int l = 0; l < AHEAD; l += LANES) {
        __m512 top = _mm512_load_ps(scores + l), total = _mm512_setzero_ps();
        for (int64_t s = 1; s < keys; s++) top = _mm512_max_ps(top, _mm512_load_ps(scores + s * AHEAD + l));
        for (int64_t s = 0; s < keys; s += SUMMED) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t i = s; i < least(s + SUMMED, keys); i++) {
                __m512 p = exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + i * AHEAD + l), top));
                sum = _mm512_add_ps(sum, p);
                _mm512_store_ps(scores + i * AHEAD + l, p);
            }
            total = _mm512_add_ps(total, sum);
        }
        _mm512_store_ps(inverse + l, total);
        _mm512_store_ps(logsum + l, top);
    }
    for (int l = 0; l < AHEAD; l++) logsum[l] += log2f(inverse[l]), inverse[l] = 1.0f / inverse[l];
}

/* tensors: q, k, v and out, which becomes softmax(q k^T / sqrt(d)) v; logsum (B, N, L) becomes log2 of each query's
   sum of exponentials. Returns 1 without memory. */
int training_attention(const Heads *tensors, float *logsum, const Sizes *z) {
    const Heads *q = tensors, *k = tensors + 1, *v = tensors + 2, *out = tensors + 3;
    int64_t d = z->width, blocks = (z->queries + AHEAD - 1) / AHEAD;
    float scale = (float)M_LOG2E / sqrtf((float)d);
    int failed = 0;
    _Pragma("omp parallel num_threads(z->threads) reduction(| : failed)") {
        float *keys = numbers(z->keys * d), *values = numbers(z->keys * d), *scores = numbers(z->keys * AHEAD);
        float *turned = numbers(d * AHEAD), *result = numbers(d * AHEAD);
        failed = !keys || !values || !scores || !turned || !result;
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t head = 0; head < z->batch * z->heads; head++) {
            int64_t b = head / z->heads, h = head % z->heads;
            if (failed) continue;
            read_rows(k, start_of(k, b, h), z->keys, z, keys);
            read_rows(v, start_of(v, b, h), z->keys, z, values);
            for (int64_t block = 0; block < blocks; block++) {
                int64_t first = block * AHEAD, here = least(AHEAD, z->queries - first);
                float inverse[AHEAD] __attribute__((aligned(64))), logs[AHEAD] __attribute__((aligned(64)));
                read_turned(q, start_of(q, b, h) + first * q->by.row, here, z, scale, turned, AHEAD, AHEAD);
                product(keys, d, 1, turned, d, scores, z->keys, AHEAD, AHEAD, 0);
                softmax(scores, z->keys, inverse, logs);
                for (int64_t s = 0; s < z->keys; s += SUMMED) {
                    int64_t rows = least(SUMMED, z->keys - s);
                    product(values + s * d, 1, d, scores + s * AHEAD, rows, result, d, AHEAD, AHEAD, s > 0);
                }
                write_turned(out, start_of(out, b, h) + first * out->by.row, here, z, inverse, 1.0f, result, AHEAD);
                memcpy(logsum + head * z->queries + first, logs, here * sizeof(float));
            }
        }
        free(keys), free(values), free(scores), free(turned), free(result);
    }
    return failed;
}

typedef struct {
    float *keys, *values, *grad_keys, *grad_values; /* (S, d) */
    float *q, *g, *grad_q;                          /* (d, BACK), queries in the lanes */
    float *p, *ds;                                  /* (KEYS, BACK) */
    float logsum[BACK] __attribute__((aligned(64))), delta[BACK] __attribute__((aligned(64)));
} Back;

/* p: scores -> probabilities; ds: G V^T -> gradient of the scores */
AVX512 static void softmax_back(Back *w, int64_t rows, int64_t lanes) {
    for (int64_t l = 0; l < lanes; l += LANES) {
        __m512 logsum = _mm512_load_ps(w->logsum + l), delta = _mm512_load_ps(w->delta + l);
        for (int64_t r = 0; r < rows; r++) {
            float *p = w->p + r * BACK + l, *ds = w->ds + r * BACK + l;
            __m512 probability = exp2_of(_mm512_sub_ps(_mm512_load_ps(p), logsum));
            _mm512_store_ps(p, probability);
            _mm512_store_ps(ds, _mm512_mul_ps(probability, _mm512_sub_ps(_mm512_load_ps(ds), delta)));
        }
    }
}

/* one block of queries of one head, already in w->q, w->g, w->logsum, w->delta: adds to all three gradients */
static void back_block(Back *w, int64_t keys, int64_t d, int64_t lanes) {
    memset(w->grad_q, 0, sizeof(float) * d * BACK);
    for (int64_t s = 0; s < keys; s += KEYS) {
        int64_t rows = least(KEYS, keys - s);
        product(w->keys + s * d, d, 1, w->q, d, w->p, rows, lanes, BACK, 0);
        product(w->values + s * d, d, 1, w->g, d, w->ds, rows, lanes, BACK, 0);
        softmax_back(w, rows, lanes);
        contract(w->p, w->g, lanes, w->grad_values + s * d, rows, d);
        contract(w->ds, w->q, lanes, w->grad_keys + s * d, rows, d);
        product(w->keys + s * d, 1, d, w->ds, rows, w->grad_q, d, lanes, BACK, 1);
    }
}

/* tensors: q, k, v, out and the gradient of out; grads become those of q, k, v. Returns 1 without memory. */
int training_attention_back(const Heads *tensors, const float *logsum, const Heads *grads, const Sizes *z) {
    const Heads *q = tensors, *k = tensors + 1, *v = tensors + 2, *out = tensors + 3, *g = tensors + 4;
    int64_t d = z->width, panel = z->keys * d, lanes_panel = rounded(d, 4) * BACK;
    float scale = 1.0f / sqrtf((float)d);
    int failed = 0;
    _Pragma("omp parallel num_threads(z->threads) reduction(| : failed)") {
        Back w = {.keys = numbers(panel), .values = numbers(panel), .grad_keys = numbers(panel),
                  .grad_values = numbers(panel), .q = numbers(lanes_panel), .g = numbers(lanes_panel),
                  .grad_q = numbers(lanes_panel), .p = numbers(KEYS * BACK), .ds = numbers(KEYS * BACK)};
        failed = !w.keys || !w.values || !w.grad_keys || !w.grad_values || !w.q || !w.g || !w.grad_q || !w.p || !w.ds;
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t head = 0; head < z->batch * z->heads; head++) {
            int64_t b = head / z->heads, h = head % z->heads;
            if (failed) continue;
            read_rows(k, start_of(k, b, h), z->keys, z, w.keys);
            read_rows(v, start_of(v, b, h), z->keys, z, w.values);
            memset(w.grad_keys, 0, panel * sizeof(float));
            memset(w.grad_values, 0, panel * sizeof(float));
            for (int64_t first = 0; first < z->queries; first += BACK) {
                int64_t here = least(BACK, z->queries - first), lanes = rounded(here, PAIR);
                int64_t q_at = start_of(q, b, h) + first * q->by.row, g_at = start_of(g, b, h) + first * g->by.row;
                int64_t out_at = start_of(out, b, h) + first * out->by.row;
                read_turned(q, q_at, here, z, scale * (float)M_LOG2E, w.q, lanes, BACK);
                read_turned(g, g_at, here, z, 1.0f, w.g, lanes, BACK);
                memset(w.logsum, 0, sizeof w.logsum);
                memset(w.delta, 0, sizeof w.delta);
                memcpy(w.logsum, logsum + head * z->queries + first, here * sizeof(float));
                products_of_rows(out, out_at, g, g_at, here, z, w.delta);
                back_block(&w, z->keys, d, lanes);
                int64_t grad_at = start_of(grads, b, h) + first * grads->by.row;
                write_turned(grads, grad_at, here, z, NULL, scale, w.grad_q, BACK);
            }
            write_rows(grads + 1, start_of(grads + 1, b, h), z->keys, z, (float)M_LN2, w.grad_keys);
            write_rows(grads + 2, start_of(grads + 2, b, h), z->keys, z, 1.0f, w.grad_values);
        }
        free(w.keys), free(w.values), free(w.grad_keys), free(w.grad_values);
        free(w.q), free(w.g), free(w.grad_q), free(w.p), free(w.ds);
    }
    return failed;
}
