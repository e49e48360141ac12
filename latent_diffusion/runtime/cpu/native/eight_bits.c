/* Linear layers and convolutions with weights and inputs of 8 bits.
 *
 *     y = s t (q - z) w + bias + added       q = round(x / s) + z,  0 .. 255      w = round(W / t),  -127 .. 127
 *
 * s and z belong to a group of rows of x: one row (a token), or an image, whose pixels a 3x3 kernel sums over; t to an
 * output. Sums of products are exact in 32 bits, so they are the same at every level, for any threads and any batch: q w,
 * z w and (q - z) w are 255 x 127 at most, which 66311 inputs x taps can reach before a sum overflows.
 *
 * Each thread takes a block of rows and lays what a row is multiplied with, all pixels under its kernel, side by side;
 * then PANEL outputs at a time, DEPTH inputs at a time, whose weights stay in the first-level cache.
 *
 * Jacob et al. 2018, arXiv:1712.05877, section 2.
 */

#include <omp.h>
#include <stdlib.h>

#include "whole_numbers.h"

#define MOST 192                 /* rows of a block, */
#define SPACE (1 << 20)          /* and numbers of one */
#define PIXELS 64                /* rows whose range is found at once */

typedef struct {
    int64_t rows, channels; /* of x */
    int64_t depth;          /* channels rounded up to CHUNK: from one row of numbers to the next */
    int64_t each;           /* rows of a group */
    int bfloat16, threads;
} Rounding;

typedef struct {
    int64_t batch, height, width;       /* of the input; a linear layer has one row of pixels */
    int64_t out_height, out_width;      /* of the result */
    int64_t side, stride, top, left;    /* of the kernel, side x side, whose first pixel lies there (-1 = outside) */
    int64_t apart, down, right;         /* pixels of the result lie 1 apart, or 2 from (down, right) on */
    int64_t depth, outputs;             /* of a row of numbers; channels of the result */
    int64_t each;                       /* rows of the result that share a scale */
    int bfloat16, threads;              /* y and added are bfloat16, else float32 */
} Product;

/* the range of some rows: out[0] >= 0 is its top, out[1] >= 0 minus its bottom; NaN where a number is not finite */
INLINE void range_of(const void *x, int64_t at, int64_t rows, int64_t channels, float *out, int bfloat16) {
    Vector top = vall(0.0f), bottom = top, finite = top;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < channels; c += LANES) {
            Vector v = load_numbers(x, at + i * channels + c, channels - c, bfloat16);
            top = vmax(v, top), bottom = vmin(v, bottom), finite = vfma(v, vall(0.0f), finite);
        }
    out[0] = vtop(top) + vsum(finite), out[1] = vtop(vsub(vall(0.0f), bottom));
}

/* scale and zero of a range */
INLINE float scale_of_range(const float *range, int32_t *zero) {
    float whole = range[0] + range[1], scale = whole <= 255e-30f ? 1e-30f : whole / 255.0f;
    *zero = scale == scale ? (int32_t)lrintf(range[1] / scale) : 0;
    return scale;
}

INLINE void round_rows(const void *x, int64_t row, int64_t rows, const Rounding *z, float scale, int32_t zero,
                       uint8_t *numbers, int bfloat16) {
    Vector inverse = vall(1.0f / scale), shift = vall((float)zero), none = vall(0.0f);
    for (int64_t i = row; i < row + rows; i++)
        for (int64_t c = 0; c < z->channels; c += LANES) {
            Vector v = load_numbers(x, i * z->channels + c, z->channels - c, bfloat16);
            vstore_bytes(numbers + i * z->depth + c, vmax(none, vfma(v, inverse, shift)));
        }
}

#define FOR_FORMAT(FORMAT, BFLOAT16)                                                                                  \
    static void range_##FORMAT(const void *x, int64_t at, int64_t rows, int64_t channels, float *out) {               \
        range_of(x, at, rows, channels, out, BFLOAT16);                                                               \
    }                                                                                                                 \
    static void round_##FORMAT(const void *x, int64_t row, int64_t rows, const Rounding *z, float scale,              \
                               int32_t zero, uint8_t *numbers) {                                                      \
        round_rows(x, row, rows, z, scale, zero, numbers, BFLOAT16);                                                  \
    }
FOR_FORMAT(f32, 0)
FOR_FORMAT(bf16, 1)

/* numbers (rows, depth) of x (rows, channels), with scale and zero of each group; returns 1 where there is no memory */
int KERNEL(round_to_bytes)(const void *x, uint8_t *numbers, float *scales, int32_t *zeros, const Rounding *z) {
    int64_t size = z->each < PIXELS ? z->each : PIXELS, parts = (z->each + size - 1) / size;
    int64_t all = z->rows / z->each * parts;
    float *ranges = malloc(sizeof(float) * 2 * (parts == 1 ? 1 : all));
    if (!ranges) return 1;
    _Pragma("omp parallel num_threads(z->threads)") {
        if (parts > 1) {
            _Pragma("omp for") for (int64_t i = 0; i < all; i++) {
                int64_t from = i % parts * size, here = z->each - from < size ? z->each - from : size;
                int64_t row = i / parts * z->each + from;
                (z->bfloat16 ? range_bf16 : range_f32)(x, row * z->channels, here, z->channels, ranges + 2 * i);
            }
            _Pragma("omp for") for (int64_t g = 0; g < z->rows / z->each; g++) {
                float range[2] = {0.0f, 0.0f};
                for (int64_t i = g * parts; i < (g + 1) * parts; i++)
                    for (int side = 0; side < 2; side++)
                        if (!(ranges[2 * i + side] <= range[side]) && range[side] == range[side])
                            range[side] = ranges[2 * i + side];
                scales[g] = scale_of_range(range, zeros + g);
            }
        }
        _Pragma("omp for") for (int64_t i = 0; i < all; i++) {
            int64_t g = i / parts, from = i % parts * size, here = z->each - from < size ? z->each - from : size;
            int64_t row = g * z->each + from;
            if (parts == 1) {
                float range[2];
                (z->bfloat16 ? range_bf16 : range_f32)(x, row * z->channels, here, z->channels, range);
                scales[g] = scale_of_range(range, zeros + g);
            }
            (z->bfloat16 ? round_bf16 : round_f32)(x, row, here, z, scales[g], zeros[g], numbers);
        }
    }
    free(ranges);
    return 0;
}

/* sums[r][PANEL] (+)= the products of R rows of numbers with one panel's weights; AMX has its own multiply_rows */
#if !defined(TILES)
typedef void Multiply(const Number *numbers, int64_t step, const int8_t *weights, int64_t chunks, int32_t *sums,
                      int add);
#define MULTIPLY(R)                                                                                                    \
    static void multiply_##R(const Number *numbers, int64_t step, const int8_t *weights, int64_t chunks,               \
                             int32_t *sums, int add) {                                                                 \
        for (int o = 0; o < PANEL; o += 2 * OUTPUTS) {                                                                 \
            Sums sum[R][2];                                                                                            \
            const Number *x = numbers;                                                                                 \
            const int8_t *w = weights + 4 * o;                                                                         \
            UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = no_sums();                                      \
            for (int64_t c = 0; c < chunks; c++, x += step)                                                            \
                UNROLL for (int i = 0; i < CHUNK; i += 4, w += 4 * PANEL) {                                            \
                    Weights first = weights_of(w), second = weights_of(w + 4 * OUTPUTS);                               \
                    UNROLL for (int r = 0; r < R; r++) {                                                               \
                        Numbers four = four_numbers(x + r * CHUNK + i);                                                \
                        sum[r][0] = add_products(sum[r][0], four, first);                                              \
                        sum[r][1] = add_products(sum[r][1], four, second);                                             \
                    }                                                                                                  \
                }                                                                                                      \
            UNROLL for (int r = 0; r < R; r++) two_sums(sums + r * PANEL + o, sum[r][0], sum[r][1], add);              \
        }                                                                                                              \
    }
MULTIPLY(1) MULTIPLY(2)
#if TILE_ROWS > 2
MULTIPLY(3) MULTIPLY(4) MULTIPLY(5) MULTIPLY(6)
#endif
#if TILE_ROWS > 6
MULTIPLY(7) MULTIPLY(8) MULTIPLY(9) MULTIPLY(10) MULTIPLY(11) MULTIPLY(12)
#endif
static Multiply *const MULTIPLY_ROWS[TILE_ROWS + 1] = {
    NULL, multiply_1, multiply_2,
#if TILE_ROWS > 2
    multiply_3, multiply_4, multiply_5, multiply_6,
#endif
#if TILE_ROWS > 6
    multiply_7, multiply_8, multiply_9, multiply_10, multiply_11, multiply_12,
#endif
};
INLINE void multiply_rows(int64_t rows, const Number *numbers, int64_t step, const int8_t *weights, int64_t chunks,
                          int32_t *sums, int add) {
    MULTIPLY_ROWS[rows](numbers, step, weights, chunks, sums, add);
}
#endif

/* where the numbers from `c` on, a multiple of CHUNK, of a block's row lie: [c / SIDE_BY_SIDE][block][SIDE_BY_SIDE] */
INLINE Number *chunk_of(Number *laid, int64_t c, int64_t row, int64_t block) {
    return laid + (c / SIDE_BY_SIDE * block + row) * SIDE_BY_SIDE + c % SIDE_BY_SIDE;
}

/* the two do not overlap, or it would be byte by byte */
INLINE void copy(Number *restrict to, const uint8_t *restrict from, int size) {
    for (int i = 0; i < size; i++) to[i] = from[i];
}

/* one pixel's numbers, or where `from` is NULL as many `zero`, from place `at` of a row on; `size` at a time */
INLINE void lay(const uint8_t *from, int32_t zero, int64_t depth, int64_t at, int64_t row, int64_t block, Number *to,
                int size) {
    if (from) {
        for (int64_t c = 0; c < depth; c += size) copy(chunk_of(to, at + c, row, block), from + c, size);
    } else {
        uint8_t same[SIDE_BY_SIDE];
        memset(same, zero, sizeof same);
        for (int64_t c = 0; c < depth; c += size) copy(chunk_of(to, at + c, row, block), same, size);
    }
}

/* what each of the rows from `first` on is multiplied with: all channels of the pixels under the kernel, in turn */
static void gather_rows(const uint8_t *numbers, const int32_t *zeros, const Product *z, int64_t first, int64_t here,
                        int64_t block, Number *to) {
    int64_t image = z->out_height * z->out_width;
    for (int64_t t = 0; t < here; t++) {
        int64_t b = (first + t) / image, row = (first + t) % image / z->out_width, column = (first + t) % z->out_width;
        for (int64_t tap = 0; tap < z->side * z->side; tap++) {
            int64_t y = row * z->stride + z->top + tap / z->side, x = column * z->stride + z->left + tap % z->side;
            int inside = y >= 0 && y < z->height && x >= 0 && x < z->width;
            /* outside the map is zero, whose number belongs to the image */
            const uint8_t *from = inside ? numbers + ((b * z->height + y) * z->width + x) * z->depth : NULL;
            int32_t zero = inside ? 0 : zeros[b];
            if (z->depth % SIDE_BY_SIDE) lay(from, zero, z->depth, tap * z->depth, t, block, to, CHUNK);
            else lay(from, zero, z->depth, tap * z->depth, t, block, to, SIDE_BY_SIDE);
        }
    }
}

/* which pixel of the result one of its rows is */
INLINE int64_t place_of(int64_t row, const Product *z) {
    if (z->apart == 1) return row;
    int64_t y = row / z->out_width, x = row % z->out_width; /* y counts the rows of all images */
    return (y * z->apart + z->down) * z->out_width * z->apart + x * z->apart + z->right;
}

/* what a panel's sums become numbers with: of its outputs, of which there are `outputs` */
typedef struct {
    const float *scales, *bias;
    const int32_t *columns; /* the sums of each output's weights */
    const void *added;
    void *y;
    int64_t outputs;
} Panel;

/* one row of the result from its sums */
INLINE void finish_row(const int32_t *sums, float scale, int32_t zero, const Panel *p, int64_t at, int whole, int added,
                       int bfloat16) {
    UNROLL for (int64_t o = 0; o < PANEL; o += LANES) {
        if (!whole && o >= p->outputs) break;
        int64_t left = whole ? LANES : p->outputs - o;
        int32_t part[LANES];
        for (int i = 0; i < LANES; i++) part[i] = sums[o + i] - zero * p->columns[o + i];
        Vector v = vfma(vmul(vload_whole(part), vall(scale)), vload(p->scales + o), vload(p->bias + o));
        if (added) v = vadd(v, load_numbers(p->added, at + o, left, bfloat16));
        store_numbers(p->y, at + o, left, v, bfloat16);
    }
}

/* rows of the result from `row` on, from their sums */
INLINE void finish_rows(const int32_t *sums, int64_t row, int64_t rows, const float *row_scales, const int32_t *zeros,
                        const Panel *p, int64_t output, const Product *z, int whole, int added, int bfloat16) {
    int64_t group = row / z->each, next = (group + 1) * z->each;
    for (int64_t t = row; t < row + rows; t++, sums += PANEL) {
        if (t == next) group++, next += z->each;
        int64_t at = place_of(t, z) * z->outputs + output;
        finish_row(sums, row_scales[group], zeros[group], p, at, whole, added, bfloat16);
    }
}
#define FINISH(FORMAT, BFLOAT16)                                                                                      \
    static void finish_##FORMAT(const int32_t *sums, int64_t row, int64_t rows, const float *row_scales,              \
                                const int32_t *zeros, const Panel *p, int64_t output, const Product *z) {             \
        if (p->outputs < PANEL)                                                                                       \
            finish_rows(sums, row, rows, row_scales, zeros, p, output, z, 0, p->added != NULL, BFLOAT16);             \
        else if (p->added) finish_rows(sums, row, rows, row_scales, zeros, p, output, z, 1, 1, BFLOAT16);             \
        else finish_rows(sums, row, rows, row_scales, zeros, p, output, z, 1, 0, BFLOAT16);                           \
    }
FINISH(f32, 0)
FINISH(bf16, 1)

/* y of numbers, with the scale and zero of each of their groups; added is like y, or NULL; weights in panels, with
 * scales, columns and bias of as many outputs; returns 1 where there is no memory */
int KERNEL(multiply_bytes)(const uint8_t *numbers, const float *row_scales, const int32_t *zeros, const int8_t *weights,
                           const float *scales, const int32_t *columns, const float *bias, const void *added, void *y,
                           const Product *z) {
    int64_t depth = z->side * z->side * z->depth, rows = z->batch * z->out_height * z->out_width;
    if (!rows) return 0;
    int64_t most = SPACE / depth < MOST ? SPACE / depth : MOST;
    if (most < 2 * TILE_ROWS) most = 2 * TILE_ROWS;
    int64_t turns = (rows + z->threads * most - 1) / (z->threads * most);
    int64_t block = (rows + z->threads * turns - 1) / (z->threads * turns);
    block = (block + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    int64_t blocks = (rows + block - 1) / block, panels = (z->outputs + PANEL - 1) / PANEL;
    /* few rows and many threads: threads share a block and each takes some of the outputs */
    int64_t shares = blocks < z->threads ? (z->threads < blocks * panels ? z->threads / blocks : panels) : 1;
    int64_t wide = (depth + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE * SIDE_BY_SIDE;
    int64_t space = block * (wide * sizeof(Number) + PANEL * sizeof(int32_t));
    char *scratch = aligned_alloc(64, (z->threads * space + 63) / 64 * 64);
    if (!scratch) return 1;
    _Pragma("omp parallel num_threads(z->threads)") {
        int32_t *sums = (int32_t *)(scratch + omp_get_thread_num() * space);
        Number *laid = (Number *)(sums + block * PANEL);
        begin_tiles();
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t i = 0; i < blocks * shares; i++) {
            int64_t first = i / shares * block, share = i % shares;
            int64_t here = rows - first < block ? rows - first : block;
            gather_rows(numbers, zeros, z, first, here, block, laid);
            for (int64_t p = share * panels / shares; p < (share + 1) * panels / shares; p++) {
                int64_t o = p * PANEL;
                Panel panel = {scales + o, bias + o, columns + o, added, y, z->outputs - o};
                for (int64_t c = 0; c < depth; c += DEPTH) {
                    int64_t chunks = (depth - c < DEPTH ? depth - c : DEPTH) / CHUNK;
                    for (int64_t t = 0; t < here; t += TILE_ROWS) {
                        int64_t tile = here - t < TILE_ROWS ? here - t : TILE_ROWS;
                        multiply_rows(tile, chunk_of(laid, c, t, block), block * SIDE_BY_SIDE,
                                      weights + (p * depth + c) * PANEL, chunks, sums + t * PANEL, c > 0);
                        if (c + DEPTH >= depth)
                            (z->bfloat16 ? finish_bf16 : finish_f32)(sums + t * PANEL, first + t, tile, row_scales, zeros,
                                                                     &panel, o, z);
                    }
                }
            }
        }
        end_tiles();
    }
    free(scratch);
    return 0;
}
