/* Attention with its gradient, for training on CPUs: softmax(q k^T scale) v, no matrix of scores kept.
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

#include <stdlib.h>

#include "vectors.h"

#define PAIR (2 * LANES)
#define AHEAD PAIR /* queries of a block of the forward pass */
#define SUMMED 64  /* keys that are summed up in one go: long sums round more */
#define WIDEST 512 /* channels of a head */
#define BACK 256   /* queries of a block of the backward pass, and */
#define KEYS 16    /* keys of one: their probabilities and gradients stay in the first-level cache */
/* sums that stay in registers: rows and vectors of a tile */
#if defined(__AVX512F__) /* 16 of 32 */
#define TILE_ROWS 8
#define TILE_VECTORS 2
#elif defined(__AVX2__) /* 12 of 16, two a vector */
#define TILE_ROWS 6
#define TILE_VECTORS 1
#else /* 12 of 16 or 32, four a vector */
#define TILE_ROWS 3
#define TILE_VECTORS 1
#endif

typedef struct { int64_t batch, head, row; } Strides; /* in numbers; the channels of a head are next to each other */

typedef struct {
    int64_t batch, heads, queries, keys, width;
    int bfloat16; /* else float32 */
    int threads;
} Sizes;

typedef struct { void *data; Strides by; } Heads; /* a tensor (B, N, L, d) */

/* 2^x for x <= 126, to a rounding or two; 2^-126 below that, NaN of NaN */
INLINE Vector exp2_of(Vector x) {
    static const float series[] = {EXP2_TAYLOR};
    return exp2_of_normal(x, series, 8);
}

/* c[r][vectors] (+)= sum_i a[r * rs + i * is] x[i][vectors] for R rows; rows of x and c lie `wide` apart */
INLINE void tile(int R, const float *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int64_t wide,
                 int add) {
    Vector sum[8][TILE_VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int l = 0; l < TILE_VECTORS; l++) sum[r][l] = vall(0.0f);
    for (int64_t i = 0; i < n; i++) {
        Vector lane[TILE_VECTORS];
        UNROLL for (int l = 0; l < TILE_VECTORS; l++) lane[l] = vload(x + i * wide + l * LANES);
        UNROLL for (int r = 0; r < R; r++) {
            Vector one = vall(a[r * rs + i * is]);
            UNROLL for (int l = 0; l < TILE_VECTORS; l++) sum[r][l] = vfma(one, lane[l], sum[r][l]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int l = 0; l < TILE_VECTORS; l++) {
            float *at = c + r * wide + l * LANES;
            vstore(at, add ? vadd(vload(at), sum[r][l]) : sum[r][l]);
        }
}

/* c (rows, lanes) (+)= a (rows, n) x (n, lanes); `lanes` is a multiple of 32 */
static void product(const float *a, int64_t rs, int64_t is, const float *x, int64_t n, float *c, int64_t rows,
                    int64_t lanes, int64_t wide, int add) {
    for (int64_t l = 0; l < lanes; l += TILE_VECTORS * LANES) {
        for (int64_t r = 0, R; r < rows; r += R) {
            const float *from = a + r * rs;
            float *to = c + r * wide + l;
            R = rows_of_tile(rows - r, TILE_ROWS);
            if (R == TILE_ROWS) tile(TILE_ROWS, from, rs, is, x + l, n, to, wide, add);
            else if (R == 4) tile(4, from, rs, is, x + l, n, to, wide, add);
            else if (R == 2) tile(2, from, rs, is, x + l, n, to, wide, add);
            else tile(1, from, rs, is, x + l, n, to, wide, add);
        }
    }
}

/* out (rows, width) += p (rows, lanes) x^T, x (width, lanes): sums over the lanes, SIDE rows and channels at once */
static void contract(const float *p, const float *x, int64_t lanes, float *out, int64_t rows, int64_t width) {
    for (int64_t r0 = 0; r0 < rows; r0 += SIDE)
        for (int64_t c0 = 0; c0 < width; c0 += SIDE) {
            Vector sum[SIDE * SIDE];
            UNROLL for (int i = 0; i < SIDE * SIDE; i++) sum[i] = vall(0.0f);
            for (int64_t l = 0; l < lanes; l += LANES) {
                Vector row[SIDE];
                UNROLL for (int r = 0; r < SIDE; r++) row[r] = vload(p + (r0 + r) * BACK + l);
                UNROLL for (int c = 0; c < SIDE; c++) {
                    Vector at = vload(x + (c0 + c) * BACK + l);
                    UNROLL for (int r = 0; r < SIDE; r++) sum[r * SIDE + c] = vfma(row[r], at, sum[r * SIDE + c]);
                }
            }
            float all[SIDE * SIDE] __attribute__((aligned(64)));
            vsums(sum, all);
            for (int64_t r = 0; r < SIDE && r0 + r < rows; r++)
                for (int64_t c = 0; c < SIDE && c0 + c < width; c++)
                    out[(r0 + r) * width + c0 + c] += all[SIDE * r + c];
        }
}

/* out (n,) = numbers of `t` from `at` on, times `scale` */
INLINE void read_numbers(const Heads *t, int64_t at, int64_t n, int bfloat16, float scale, float *out) {
    for (int64_t i = 0; i < n; i += LANES)
        vstore_some(out + i, n - i, vmul(load_numbers(t->data, at + i, n - i, bfloat16), vall(scale)));
}

/* numbers of `t` from `at` on = x (n,) times `scale`, rounded to even in bfloat16 */
INLINE void write_numbers(const Heads *t, int64_t at, int64_t n, int bfloat16, float scale, const float *x) {
    for (int64_t i = 0; i < n; i += LANES)
        store_numbers(t->data, at + i, n - i, vmul(vload_some(x + i, n - i), vall(scale)), bfloat16);
}

/* out (rows, width) = rows of one head */
static void read_rows(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float *out) {
    for (int64_t r = 0; r < rows; r++)
        read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, 1.0f, out + r * z->width);
}

/* rows of one head = x (rows, width), times `scale` */
static void write_rows(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float scale,
                              const float *x) {
    for (int64_t r = 0; r < rows; r++)
        write_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scale, x + r * z->width);
}

/* out (width, wide) = rows of one head, turned, times `scale`; zero in the lanes from `rows` to `lanes` */
static void read_turned(const Heads *t, int64_t start, int64_t rows, const Sizes *z, float scale, float *out,
                               int64_t lanes, int64_t wide) {
    float row[WIDEST];
    for (int64_t r = 0; r < lanes; r++) {
        if (r < rows) read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scale, row);
        else memset(row, 0, sizeof(float) * z->width);
        for (int64_t c = 0; c < z->width; c++) out[c * wide + r] = row[c];
    }
}

/* rows of one head = x (width, wide), turned, each row times its own `scales` or, where that is NULL, times `scale` */
static void write_turned(const Heads *t, int64_t start, int64_t rows, const Sizes *z, const float *scales,
                                float scale, const float *x, int64_t wide) {
    float row[WIDEST];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < z->width; c++) row[c] = x[c * wide + r];
        write_numbers(t, start + r * t->by.row, z->width, z->bfloat16, scales ? scales[r] : scale, row);
    }
}

/* sums (rows,) = each row of one times the same row of the other */
static void products_of_rows(const Heads *t, int64_t start, const Heads *u, int64_t other, int64_t rows,
                                    const Sizes *z, float *sums) {
    float a[WIDEST], b[WIDEST];
    for (int64_t r = 0; r < rows; r++) {
        read_numbers(t, start + r * t->by.row, z->width, z->bfloat16, 1.0f, a);
        read_numbers(u, other + r * u->by.row, z->width, z->bfloat16, 1.0f, b);
        Vector sum = vall(0.0f);
        for (int64_t c = 0; c < z->width; c += LANES) {
            int64_t left = z->width - c;
            sum = vfma(vload_some(a + c, left), vload_some(b + c, left), sum);
        }
        sums[r] = vsum(sum);
    }
}

INLINE int64_t start_of(const Heads *t, int64_t b, int64_t h) { return b * t->by.batch + h * t->by.head; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t rounded(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
static float *numbers(int64_t count) { return aligned_alloc(64, rounded(count, LANES) * sizeof(float)); }

/* up to 32 queries: scores -> probabilities, unnormed, in place; 1 / the sum of each query's, log2 of the true sum */
static void softmax(float *scores, int64_t keys, float *inverse, float *logsum) {
    for (int l = 0; l < AHEAD; l += LANES) {
        Vector top = vload(scores + l), total = vall(0.0f);
        for (int64_t s = 1; s < keys; s++) top = vmax(top, vload(scores + s * AHEAD + l));
        for (int64_t s = 0; s < keys; s += SUMMED) {
            Vector sum = vall(0.0f);
            for (int64_t i = s; i < least(s + SUMMED, keys); i++) {
                Vector p = exp2_of(vsub(vload(scores + i * AHEAD + l), top));
                sum = vadd(sum, p);
                vstore(scores + i * AHEAD + l, p);
            }
            total = vadd(total, sum);
        }
        vstore(inverse + l, total);
        vstore(logsum + l, top);
    }
    for (int l = 0; l < AHEAD; l++) logsum[l] += log2f(inverse[l]), inverse[l] = 1.0f / inverse[l];
}

/* tensors: q, k, v and out, which becomes softmax(q k^T / sqrt(d)) v; logsum (B, N, L) becomes log2 of each query's
   sum of exponentials. Returns 1 without memory. */
int KERNEL(training_attention)(const Heads *tensors, float *logsum, const Sizes *z) {
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
static void softmax_back(Back *w, int64_t rows, int64_t lanes) {
    for (int64_t l = 0; l < lanes; l += LANES) {
        Vector logsum = vload(w->logsum + l), delta = vload(w->delta + l);
        for (int64_t r = 0; r < rows; r++) {
            float *p = w->p + r * BACK + l, *ds = w->ds + r * BACK + l;
            Vector probability = exp2_of(vsub(vload(p), logsum));
            vstore(p, probability);
            vstore(ds, vmul(probability, vsub(vload(ds), delta)));
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
int KERNEL(training_attention_back)(const Heads *tensors, const float *logsum, const Heads *grads, const Sizes *z) {
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
