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

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

/* PANEL: outputs whose weights lie together, [inputs][PANEL] for each position. ROWS: tiles multiplied at a time;
 * the ROWS x PANEL sums stay in registers: 24 of 32 with AVX-512, 12 of 16 with AVX2 and 12 in plain C */
#if defined(__AVX512F__)
#define PANEL 32
#define ROWS 12
#elif defined(__AVX2__)
#define PANEL 16
#define ROWS 6
#else
#define PANEL 16
#define ROWS 3
#endif
#define WIDE (PANEL / LANES)
#define DEPTH 256 /* inputs multiplied at a time: DEPTH x PANEL weights stay in the first-level cache */
#define BLOCK 48  /* most tiles of a block */

typedef struct {
    int64_t batch, height, width; /* of the result */
    int64_t inputs, outputs;      /* channels, multiples of LANES and of 32 */
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
/* products[r][PANEL] (+)= sum_i numbers[r][i] weights[i][PANEL], inputs in chunks of LANES; fetches the next weights */
typedef void Multiply(const float *numbers, int64_t step, const float *weights, int64_t chunks, float *products,
                      int add, const float *next);
#define MULTIPLY(R)                                                                                                    \
    static void multiply_##R(const float *numbers, int64_t step, const float *weights, int64_t chunks,                 \
                             float *products, int add, const float *next) {                                            \
        Vector sum[R][WIDE];                                                                                           \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int w = 0; w < WIDE; w++)                                                                      \
                sum[r][w] = add ? vload(products + r * PANEL + w * LANES) : vall(0.0f);                                \
        for (int64_t c = 0; c < chunks; c++, numbers += step)                                                          \
            for (int i = 0; i < LANES; i++, weights += PANEL, next += LANES) {                                         \
                Vector weight[WIDE];                                                                                   \
                UNROLL for (int w = 0; w < WIDE; w++) weight[w] = vload(weights + w * LANES);                          \
                __builtin_prefetch(next, 0, 2);                                                                        \
                UNROLL for (int r = 0; r < R; r++) {                                                                   \
                    Vector one = vall(numbers[r * LANES + i]);                                                         \
                    UNROLL for (int w = 0; w < WIDE; w++) sum[r][w] = vfma(one, weight[w], sum[r][w]);                 \
                }                                                                                                      \
            }                                                                                                          \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int w = 0; w < WIDE; w++) vstore(products + r * PANEL + w * LANES, sum[r][w]);                 \
    }
MULTIPLY(1) MULTIPLY(2) MULTIPLY(3)
#if ROWS > 3
MULTIPLY(4) MULTIPLY(5) MULTIPLY(6)
#endif
#if ROWS > 6
MULTIPLY(7) MULTIPLY(8) MULTIPLY(9) MULTIPLY(10) MULTIPLY(11) MULTIPLY(12)
#endif
static Multiply *const MULTIPLY_ROWS[ROWS + 1] = {
    NULL, multiply_1, multiply_2, multiply_3,
#if ROWS > 3
    multiply_4, multiply_5, multiply_6,
#endif
#if ROWS > 6
    multiply_7, multiply_8, multiply_9, multiply_10, multiply_11, multiply_12,
#endif
};

/* B^T d along one side of a tile: from 4 pixels, or from 3 of which the middle one was doubled */
INLINE void spread(const Vector *d, int step, int side, Vector *out) {
    Vector a = d[0], b = d[step], c = d[2 * step];
    if (side == 4) {
        out[0] = vsub(a, c), out[step] = vadd(b, c);
        out[2 * step] = vsub(c, b), out[3 * step] = vsub(b, d[3 * step]);
    } else
        out[0] = vsub(a, b), out[step] = b, out[2 * step] = vsub(b, c);
}

/* A^T m along one side of a tile: two pixels */
INLINE void gather(const Vector *m, int step, int side, Vector *first, Vector *second) {
    if (side == 4) {
        *first = vadd(vadd(m[0], m[step]), m[2 * step]);
        *second = vsub(vsub(m[step], m[2 * step]), m[3 * step]);
    } else
        *first = vadd(m[0], m[step]), *second = vsub(m[step], m[2 * step]);
}

/* numbers of one tile: B^T d B, all channels */
INLINE void transform_tile(const float *const *pixels, int side, int64_t chunks, const Plan *p, float *out) {
    for (int64_t c = 0; c < chunks; c++, out += p->block * LANES) {
        Vector d[16], half[16];
        UNROLL for (int i = 0; i < side * side; i++) d[i] = vload(pixels[i] + c * LANES);
        UNROLL for (int i = 0; i < side; i++) spread(d + i, side, side, half + i);
        UNROLL for (int i = 0; i < side; i++) spread(half + i * side, 1, side, d + i * side);
        UNROLL for (int i = 0; i < side * side; i++) vstore(out + i * p->position, d[i]);
    }
}

static void transform_input(const float *x, const Convolution *z, const Plan *p, int64_t first, int64_t here) {
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
INLINE void transform_products(const float *m, int side, const Plan *p, Vector bias, Vector out[4]) {
    Vector all[16], half[8];
    UNROLL for (int i = 0; i < side * side; i++) all[i] = vload(m + i * p->block * PANEL);
    UNROLL for (int i = 0; i < side; i++) gather(all + i, side, side, half + i, half + side + i);
    gather(half, 1, side, out, out + 1);
    gather(half + side, 1, side, out + 2, out + 3);
    UNROLL for (int i = 0; i < 4; i++) out[i] = vadd(out[i], bias);
}

/* `y`, `bias` and `added` begin at the first of the PANEL outputs; bias and added may be NULL */
static void transform_output(float *y, const float *bias, const float *added, const Convolution *z,
                                    const Plan *p, int64_t first, int64_t here) {
    for (int64_t t = 0; t < here; t++) {
        int64_t b = (first + t) / p->each, row = 2 * ((first + t) % p->each / p->across);
        int64_t column = 2 * ((first + t) % p->across);
        for (int64_t l = 0; l < PANEL; l += LANES) {
            const float *m = p->products + t * PANEL + l;
            Vector add = bias ? vload(bias + l) : vall(0.0f), out[4];
            if (z->doubled) transform_products(m, 3, p, add, out);
            else transform_products(m, 4, p, add, out);
            int64_t pixels[4] = {0, z->outputs, z->width * z->outputs, (z->width + 1) * z->outputs}; /* of the tile */
            int64_t to = ((b * z->height + row) * z->width + column) * z->outputs + l;
            for (int i = 0; i < 4; i++)
                if (column + i % 2 < z->width && row + i / 2 < z->height) {
                    int64_t at = to + pixels[i];
                    vstore(y + at, added ? vadd(out[i], vload(added + at)) : out[i]);
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
void KERNEL(winograd_weights)(const float *weights, float *panels, const Convolution *z) {
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
int KERNEL(winograd_convolve)(const float *x, const float *weights, const float *bias, const float *added, float *y,
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
