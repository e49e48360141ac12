/* 3x3 convolutions of float32 maps (B, H, W, C) with 16 multiplications for 2x2 results in place of 36: F(2x2, 3x3).
 *
 * A tile of the input, 4x4 pixels, becomes 16 numbers a channel by sums alone; each of the 16 is multiplied with a
 * weight matrix of its own (inputs x outputs); sums of the 16 products give 2x2 pixels. After doubling by repeated
 * pixels a tile holds 3x3 different pixels, and 7 of the 16 numbers are zero: 9 multiplications are left.
 *
 * Each thread takes a block of tiles through all steps, so that what lies between them stays in its own cache. The
 * order of the sums depends on the number of channels alone: not on threads, nor on the rest of the batch.
 *
 * Lavin & Gray 2015, arXiv:1509.09308, section 4.1.
 */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define PANEL 32  /* outputs whose weights lie together: [inputs][PANEL] for each position */
#define ROWS 12   /* tiles multiplied at a time: ROWS x PANEL sums fill 24 of the 32 registers */
#define DEPTH 256 /* inputs multiplied at a time: DEPTH x PANEL weights stay in the first-level cache */
#define BLOCK 48  /* most tiles of a block */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    int64_t batch, height, width; /* of the result */
    int64_t inputs, outputs;      /* channels, multiples of LANES and of PANEL */
    int doubled;                  /* 1 = the input has half the height and width, each of its pixels stands for 2x2 */
    int threads;
} Convolution;

typedef struct {
    int64_t across, each, all; /* tiles in a row of an image, in an image, in the batch */
    int64_t block, position;   /* tiles in a block; floats from one position's numbers to the next one's */
    int side, positions;       /* pixels a side of a tile of the input; numbers a channel it becomes, side^2 */
    float *numbers, *products, *zeros;
} Plan;

/* products[r][PANEL] (+)= sum_i numbers[r][i] weights[i][PANEL], inputs in chunks of LANES; fetches the next weights */
typedef void Multiply(const float *numbers, int64_t step, const float *weights, int64_t chunks, float *products,
                      int add, const float *next);
#define MULTIPLY(R)                                                                                                    \
    TARGET static void multiply_##R(const float *numbers, int64_t step, const float *weights, int64_t chunks,          \
                                    float *products, int add, const float *next) {                                     \
        __m512 low[R], high[R];                                                                                        \
        UNROLL for (int r = 0; r < R; r++) {                                                                           \
            low[r] = add ? _mm512_load_ps(products + r * PANEL) : _mm512_setzero_ps();                                 \
            high[r] = add ? _mm512_load_ps(products + r * PANEL + LANES) : _mm512_setzero_ps();                        \
        }                                                                                                              \
        for (int64_t c = 0; c < chunks; c++, numbers += step)                                                          \
            for (int i = 0; i < LANES; i++, weights += PANEL, next += LANES) {                                         \
                __m512 left = _mm512_load_ps(weights), right = _mm512_load_ps(weights + LANES);                        \
                _mm_prefetch((const char *)next, _MM_HINT_T1);                                                         \
                UNROLL for (int r = 0; r < R; r++) {                                                                   \
                    __m512 one = _mm512_set1_ps(numbers[r * LANES + i]);                                               \
                    low[r] = _mm512_fmadd_ps(one, left, low[r]);                                                       \
                    high[r] = _mm512_fmadd_ps(one, right, high[r]);                                                    \
                }                                                                                                      \
            }                                                                                                          \
        UNROLL for (int r = 0; r < R; r++) {                                                                           \
            _mm512_store_ps(products + r * PANEL, low[r]);                                                             \
            _mm512_store_ps(products + r * PANEL + LANES, high[r]);                                                    \
        }                                                                                                              \
    }
MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5) MULTIPLY(6)
MULTIPLY(7) MULTIPLY(8) MULTIPLY(9) MULTIPLY(10) MULTIPLY(11) MULTIPLY(12)
static Multiply *const MULTIPLY_ROWS[ROWS + 1] = {
    NULL,       multiply_1, multiply_2, multiply_3, multiply_4,  multiply_5,  multiply_6,
    multiply_7, multiply_8, multiply_9, multiply_10, multiply_11, multiply_12,
};

/* B^T d along one side of a tile: from 4 pixels, or from 3 of which the middle one was doubled */
TARGET INLINE void spread(const __m512 *d, int step, int side, __m512 *out) {
    __m512 a = d[0], b = d[step], c = d[2 * step];
    if (side == 4) {
        out[0] = _mm512_sub_ps(a, c), out[step] = _mm512_add_ps(b, c);
        out[2 * step] = _mm512_sub_ps(c, b), out[3 * step] = _mm512_sub_ps(b, d[3 * step]);
    } else
        out[0] = _mm512_sub_ps(a, b), out[step] = b, out[2 * step] = _mm512_sub_ps(b, c);
}

/* A^T m along one side of a tile: two pixels */
TARGET INLINE void gather(const __m512 *m, int step, int side, __m512 *first, __m512 *second) {
    if (side == 4) {
        *first = _mm512_add_ps(_mm512_add_ps(m[0], m[step]), m[2 * step]);
        *second = _mm512_sub_ps(_mm512_sub_ps(m[step], m[2 * step]), m[3 * step]);
    } else
        *first = _mm512_add_ps(m[0], m[step]), *second = _mm512_sub_ps(m[step], m[2 * step]);
}

/* numbers of one tile: B^T d B, all channels */
TARGET INLINE void transform_tile(const float *const *pixels, int side, int64_t chunks, const Plan *p, float *out) {
    for (int64_t c = 0; c < chunks; c++, out += p->block * LANES) {
        __m512 d[16], half[16];
        UNROLL for (int i = 0; i < side * side; i++) d[i] = _mm512_loadu_ps(pixels[i] + c * LANES);
        UNROLL for (int i = 0; i < side; i++) spread(d + i, side, side, half + i);
        UNROLL for (int i = 0; i < side; i++) spread(half + i * side, 1, side, d + i * side);
        UNROLL for (int i = 0; i < side * side; i++) _mm512_store_ps(out + i * p->position, d[i]);
    }
}

TARGET static void transform_input(const float *x, const Convolution *z, const Plan *p, int64_t first, int64_t here) {
    int64_t height = z->doubled ? z->height / 2 : z->height, width = z->doubled ? z->width / 2 : z->width;
    for (int64_t t = 0; t < here; t++) {
        int64_t b = (first + t) / p->each, row = (first + t) % p->each / p->across, column = (first + t) % p->across;
        const float *pixels[16];
        for (int i = 0; i < p->positions; i++) {
            int64_t r = (z->doubled ? row : 2 * row) - 1 + i / p->side;
            int64_t c = (z->doubled ? column : 2 * column) - 1 + i % p->side;
            int inside = r >= 0 && r < height && c >= 0 && c < width;
            pixels[i] = inside ? x + ((b * height + r) * width + c) * z->inputs : p->zeros;
        }
        if (z->doubled) transform_tile(pixels, 3, z->inputs / LANES, p, p->numbers + t * LANES);
        else transform_tile(pixels, 4, z->inputs / LANES, p, p->numbers + t * LANES);
    }
}

/* products of a block for PANEL outputs: one matrix product a position */
static void multiply(const float *weights, const Convolution *z, const Plan *p, int64_t here) {
    for (int i = 0; i < p->positions; i++)
        for (int64_t c = 0; c < z->inputs; c += DEPTH) {
            int64_t depth = z->inputs - c < DEPTH ? z->inputs - c : DEPTH;
            const float *next = weights + depth * PANEL;
            for (int64_t t = 0; t < here; t += ROWS)
                MULTIPLY_ROWS[here - t < ROWS ? here - t : ROWS](
                    p->numbers + i * p->position + c * p->block + t * LANES, p->block * LANES, weights, depth / LANES,
                    p->products + (i * p->block + t) * PANEL, c > 0, next + (t / ROWS & 1) * depth * LANES);
            weights = next;
        }
}

/* pixels of one tile and LANES outputs: A^T m A + bias */
TARGET INLINE void transform_products(const float *m, int side, const Plan *p, __m512 bias, __m512 out[4]) {
    __m512 all[16], half[8];
    UNROLL for (int i = 0; i < side * side; i++) all[i] = _mm512_load_ps(m + i * p->block * PANEL);
    UNROLL for (int i = 0; i < side; i++) gather(all + i, side, side, half + i, half + side + i);
    gather(half, 1, side, out, out + 1);
    gather(half + side, 1, side, out + 2, out + 3);
    UNROLL for (int i = 0; i < 4; i++) out[i] = _mm512_add_ps(out[i], bias);
}

/* `y`, `bias` and `added` begin at the first of the PANEL outputs; bias and added may be NULL */
TARGET static void transform_output(float *y, const float *bias, const float *added, const Convolution *z,
                                    const Plan *p, int64_t first, int64_t here) {
    for (int64_t t = 0; t < here; t++) {
        int64_t b = (first + t) / p->each, row = 2 * ((first + t) % p->each / p->across);
        int64_t column = 2 * ((first + t) % p->across);
        for (int64_t l = 0; l < PANEL; l += LANES) {
            const float *m = p->products + t * PANEL + l;
            __m512 add = bias ? _mm512_loadu_ps(bias + l) : _mm512_setzero_ps(), out[4];
            if (z->doubled) transform_products(m, 3, p, add, out);
            else transform_products(m, 4, p, add, out);
            int64_t pixels[4] = {0, z->outputs, z->width * z->outputs, (z->width + 1) * z->outputs}; /* of the tile */
            int64_t to = ((b * z->height + row) * z->width + column) * z->outputs + l;
            for (int i = 0; i < 4; i++)
                if (column + i % 2 < z->width && row + i / 2 < z->height) {
                    int64_t at = to + pixels[i];
                    _mm512_storeu_ps(y + at, added ? _mm512_add_ps(out[i], _mm512_loadu_ps(added + at)) : out[i]);
                }
        }
    }
}

/* G g along one side of a 3x3 weight; the doubled middle pixel takes the sum of all three, without halves */
INLINE void spread_weights(const double *g, int step, int side, double *out) {
    double outer = g[0] + g[2 * step], middle = g[step];
    out[0] = g[0], out[(side - 1) * step] = g[2 * step];
    if (side == 4) out[step] = (outer + middle) / 2, out[2 * step] = (outer - middle) / 2;
    else out[step] = outer + middle;
}

/* weights (outputs, inputs, 3, 3) as G g G^T, in panels [outputs / PANEL][positions][inputs][PANEL] */
void winograd_weights(const float *weights, float *panels, const Convolution *z) {
    int side = z->doubled ? 3 : 4;
#pragma omp parallel for collapse(2) num_threads(z->threads)
    for (int64_t o = 0; o < z->outputs; o += PANEL)
        for (int64_t i = 0; i < z->inputs; i++)
            for (int64_t l = 0; l < PANEL; l++) {
                double g[9], half[12], all[16]; /* 3 x 3, side x 3, side x side */
                for (int j = 0; j < 9; j++) g[j] = weights[((o + l) * z->inputs + i) * 9 + j];
                for (int j = 0; j < 3; j++) spread_weights(g + j, 3, side, half + j);
                for (int j = 0; j < side; j++) spread_weights(half + 3 * j, 1, side, all + side * j);
                for (int j = 0; j < side * side; j++)
                    panels[((o * side * side) + j * PANEL) * z->inputs + i * PANEL + l] = (float)all[j];
            }
}

/* y = x * weights (in panels) + bias + added, which is like y; both may be NULL; returns 1 where there is no memory */
int winograd_convolve(const float *x, const float *weights, const float *bias, const float *added, float *y,
                 const Convolution *z) {
    Plan plan = {.across = (z->width + 1) / 2, .side = z->doubled ? 3 : 4};
    plan.positions = plan.side * plan.side;
    plan.each = plan.across * ((z->height + 1) / 2), plan.all = z->batch * plan.each;
    int64_t turns = (plan.all + z->threads * BLOCK - 1) / (z->threads * BLOCK); /* blocks that each thread gets */
    plan.block = (plan.all + z->threads * turns - 1) / (z->threads * turns);
    if (plan.block < ROWS) plan.block = ROWS;
    plan.position = plan.block * z->inputs + 3 * LANES; /* not a multiple of 4096: few places in a cache */
    /* few tiles and many threads: threads share a block's tiles and each takes some of the outputs */
    int64_t blocks = (plan.all + plan.block - 1) / plan.block, panels = z->outputs / PANEL;
    int64_t shares = blocks < z->threads ? (z->threads < blocks * panels ? z->threads / blocks : panels) : 1;
    /* one block of memory for all threads, from the caller: the heaps of other threads give theirs back each time */
    int64_t products = plan.positions * plan.block * PANEL;
    int64_t each = plan.positions * plan.position + products + z->inputs;
    float *scratch = aligned_alloc(64, sizeof(float) * z->threads * each);
    if (!scratch) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        Plan mine = plan;
        mine.numbers = scratch + omp_get_thread_num() * each;
        mine.products = mine.numbers + plan.positions * plan.position, mine.zeros = mine.products + products;
        memset(mine.zeros, 0, sizeof(float) * z->inputs);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks * shares; i++) {
            int64_t first = i / shares * plan.block, share = i % shares;
            int64_t here = plan.all - first < plan.block ? plan.all - first : plan.block;
            transform_input(x, z, &mine, first, here);
            for (int64_t o = share * panels / shares * PANEL; o < (share + 1) * panels / shares * PANEL; o += PANEL) {
                multiply(weights + o * plan.positions * z->inputs, z, &mine, here);
                transform_output(y + o, bias ? bias + o : NULL, added ? added + o : NULL, z, &mine, first, here);
            }
        }
    }
    free(scratch);
    return 0;
}
