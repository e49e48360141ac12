/* GroupNorm, and SiLU after it where asked for, of maps (B, H, W, C): one pass for the statistics, one to apply them.
 *
 * Channels lie in the vector lanes. Each block of pixels gives two sums for each channel, of the values minus those of
 * the first pixel (so that a large mean takes no digits from the variance) and of their squares; blocks and channels
 * are joined in float64. The order of the sums depends on the size of the map alone: not on threads or on the batch.
 *
 * Wu & He 2018, arXiv:1803.08494; Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
 * sample variances".
 */

#include <stdlib.h>

#include "vectors.h"

#define PIXELS 256 /* pixels a block */
/* vectors of channels summed at once: three registers' worth each (12 of the 16 of AVX2) */
#if defined(__AVX512F__)
#define SPAN 8
#elif defined(__AVX2__)
#define SPAN 2
#else
#define SPAN 1
#endif

typedef struct {
    int64_t batch, pixels, channels, groups; /* channels: a multiple of LANES */
    float eps;
    int silu, bfloat16, threads; /* maps are bfloat16, else float32; the rest is float32 */
} Norm;

/* mean and variance of each group of one image, from the blocks' sums; scale and shift of each channel.
 * `added` (C) joins every pixel before the norm; NULL = nothing */
static void join(const float *sums, const float *first, const float *added, const float *weight, const float *bias,
                 const Norm *z, float *scale, float *shift) {
    int64_t blocks = (z->pixels + PIXELS - 1) / PIXELS, each = z->channels / z->groups;
    double pixels = (double)z->pixels;
    for (int64_t g = 0; g < z->groups; g++) {
        double mean = 0, spread = 0, means[each];
        for (int64_t i = 0; i < each; i++) {
            int64_t c = g * each + i;
            double sum = 0, squares = 0;
            for (int64_t b = 0; b < blocks; b++)
                sum += sums[2 * b * z->channels + c], squares += sums[(2 * b + 1) * z->channels + c];
            means[i] = first[c] + (added ? added[c] : 0.0) + sum / pixels;
            spread += squares - sum * sum / pixels;
            mean += means[i] / each;
        }
        for (int64_t i = 0; i < each; i++) spread += pixels * (means[i] - mean) * (means[i] - mean);
        double factor = 1.0 / sqrt(fmax(spread, 0.0) / (pixels * each) + z->eps);
        for (int64_t c = g * each; c < (g + 1) * each; c++) {
            scale[c] = (float)(factor * weight[c]);
            shift[c] = (float)(bias[c] + ((added ? added[c] : 0.0) - mean) * factor * weight[c]);
        }
    }
}

/* sums and sums of squares of V vectors of channels over some pixels, of the values minus those of `first` */
INLINE void sum_channels(int V, const void *x, int64_t at, const float *first, int64_t pixels, int64_t channels,
                         float *sums, int bfloat16) {
    Vector sum[SPAN], squares[SPAN], zero[SPAN];
    UNROLL for (int l = 0; l < V; l++) zero[l] = vload(first + l * LANES), sum[l] = squares[l] = vall(0.0f);
    for (int64_t i = 0; i < pixels; i++)
        UNROLL for (int l = 0; l < V; l++) {
            Vector v = vsub(load_vector(x, at + i * channels + l * LANES, bfloat16), zero[l]);
            sum[l] = vadd(sum[l], v), squares[l] = vfma(v, v, squares[l]);
        }
    UNROLL for (int l = 0; l < V; l++) {
        vstore(sums + l * LANES, sum[l]);
        vstore(sums + channels + l * LANES, squares[l]);
    }
}

INLINE void sum(const void *x, int64_t at, const float *first, int64_t pixels, int64_t channels, float *sums,
                int bfloat16) {
    int64_t c = 0;
    for (; c + SPAN * LANES <= channels; c += SPAN * LANES)
        sum_channels(SPAN, x, at + c, first + c, pixels, channels, sums + c, bfloat16);
    for (; c < channels; c += LANES) sum_channels(1, x, at + c, first + c, pixels, channels, sums + c, bfloat16);
}

INLINE void apply(const void *x, int64_t at, const float *scale, const float *shift, int64_t pixels, const Norm *z,
                  void *y, int bfloat16) {
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < z->channels; c += LANES, at += LANES) {
            Vector v = vfma(load_vector(x, at, bfloat16), vload(scale + c), vload(shift + c));
            store_vector(y, at, z->silu ? silu(v) : v, bfloat16);
        }
}

#define FOR_FORMAT(FORMAT, BFLOAT16)                                                                                  \
    static void sum_##FORMAT(const void *x, int64_t at, const float *first, int64_t pixels, int64_t channels,         \
                             float *sums) {                                                                           \
        sum(x, at, first, pixels, channels, sums, BFLOAT16);                                                          \
    }                                                                                                                 \
    static void apply_##FORMAT(const void *x, int64_t at, const float *scale, const float *shift, int64_t pixels,     \
                               const Norm *z, void *y) {                                                              \
        apply(x, at, scale, shift, pixels, z, y, BFLOAT16);                                                           \
    }
FOR_FORMAT(f32, 0)
FOR_FORMAT(bf16, 1)

/* added (B, C) or NULL; weight and bias (C); returns 1 where there is no memory */
int KERNEL(group_norm)(const void *x, const float *added, const float *weight, const float *bias, void *y,
                       const Norm *z) {
    int64_t C = z->channels, blocks = (z->pixels + PIXELS - 1) / PIXELS, all = z->batch * blocks;
    float *sums = malloc(sizeof(float) * C * (2 * all + 3 * z->batch));
    if (!sums) return 1;
    float *first = sums + 2 * all * C, *scale = first + z->batch * C, *shift = scale + z->batch * C;
    _Pragma("omp parallel num_threads(z->threads)") {
        _Pragma("omp for") for (int64_t b = 0; b < z->batch; b++) for (int64_t c = 0; c < C; c += LANES)
            vstore(first + b * C + c, load_vector(x, b * z->pixels * C + c, z->bfloat16));
        _Pragma("omp for") for (int64_t i = 0; i < all; i++) {
            int64_t b = i / blocks, from = i % blocks * PIXELS, left = z->pixels - from;
            (z->bfloat16 ? sum_bf16 : sum_f32)(x, (b * z->pixels + from) * C, first + b * C,
                                               left < PIXELS ? left : PIXELS, C, sums + 2 * i * C);
        }
        _Pragma("omp for") for (int64_t b = 0; b < z->batch; b++)
            join(sums + 2 * b * blocks * C, first + b * C, added ? added + b * C : NULL, weight, bias, z, scale + b * C,
                 shift + b * C);
        _Pragma("omp for") for (int64_t i = 0; i < all; i++) {
            int64_t b = i / blocks, from = i % blocks * PIXELS, left = z->pixels - from;
            (z->bfloat16 ? apply_bf16 : apply_f32)(x, (b * z->pixels + from) * C, scale + b * C, shift + b * C,
                                                   left < PIXELS ? left : PIXELS, z, y);
        }
    }
    free(sums);
    return 0;
}
