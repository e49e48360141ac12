/* GroupNorm, and SiLU after it where asked for, of maps (B, H, W, C): one pass for the statistics, one to apply them.
 *
 * Channels lie in the vector lanes. Each block of pixels gives two sums for each channel, of the values minus those of
 * the first pixel (so that a large mean takes no digits from the variance) and of their squares; blocks and channels
 * are joined in float64. The order of the sums depends on the size of the map alone: not on threads or on the batch.
 *
 * Wu & He 2018, arXiv:1803.08494; Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
 * sample variances".
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define PIXELS 256 /* pixels a block */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int64_t batch, pixels, channels, groups; /* channels: a multiple of LANES */
    float eps;
    int silu, threads;
} Norm;

TARGET INLINE __m512 load_f32(const float *x) { return _mm512_loadu_ps(x); }
TARGET INLINE void store_f32(float *x, __m512 v) { _mm512_storeu_ps(x, v); }
TARGET INLINE __m512 load_bf16(const uint16_t *x) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
}
TARGET INLINE void store_bf16(uint16_t *x, __m512 v) { /* to the nearest, halves to even */
    __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256((__m256i *)x, _mm512_cvtepi32_epi16(bits));
}

/* x / (1 + e^-x) with e^-|x| as 2^y, y <= 0: a polynomial of 2^f over f = y - round(y), relative error 8e-8 */
TARGET INLINE __m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 y = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-(float)M_LOG2E));
    __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(y, whole);
    __m512 p = _mm512_set1_ps(1.3276470967e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6755415963e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5507132790e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022119719e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314696706e-1f));
    p = _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000000717f)), whole);
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_mul_ps(x, negative, x, p), _mm512_add_ps(one, p));
}

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

/* added (B, C) or NULL; weight and bias (C); returns 1 where there is no memory */
#define GROUP_NORM(SUFFIX, T)                                                                                         \
    TARGET INLINE void sum_some_##SUFFIX(int V, const T *x, const float *first, int64_t pixels, int64_t channels,     \
                                         float *sums) {                                                               \
        __m512 sum[8], squares[8], zero[8];                                                                           \
        UNROLL for (int l = 0; l < V; l++)                                                                            \
            zero[l] = _mm512_loadu_ps(first + l * LANES), sum[l] = squares[l] = _mm512_setzero_ps();                  \
        for (int64_t i = 0; i < pixels; i++)                                                                          \
            UNROLL for (int l = 0; l < V; l++) {                                                                      \
                __m512 v = _mm512_sub_ps(load_##SUFFIX(x + i * channels + l * LANES), zero[l]);                       \
                sum[l] = _mm512_add_ps(sum[l], v), squares[l] = _mm512_fmadd_ps(v, v, squares[l]);                    \
            }                                                                                                         \
        UNROLL for (int l = 0; l < V; l++) {                                                                          \
            _mm512_storeu_ps(sums + l * LANES, sum[l]);                                                               \
            _mm512_storeu_ps(sums + channels + l * LANES, squares[l]);                                                \
        }                                                                                                             \
    }                                                                                                                 \
    TARGET static void sum_##SUFFIX(const T *x, const float *first, int64_t pixels, int64_t channels, float *sums) {  \
        int64_t c = 0;                                                                                                \
        for (; c + 8 * LANES <= channels; c += 8 * LANES)                                                             \
            sum_some_##SUFFIX(8, x + c, first + c, pixels, channels, sums + c);                                       \
        for (; c < channels; c += LANES) sum_some_##SUFFIX(1, x + c, first + c, pixels, channels, sums + c);          \
    }                                                                                                                 \
    TARGET static void apply_##SUFFIX(const T *x, const float *scale, const float *shift, int64_t pixels,             \
                                      const Norm *z, T *y) {                                                          \
        for (int64_t i = 0; i < pixels; i++)                                                                          \
            for (int64_t c = 0, at = i * z->channels; c < z->channels; c += LANES, at += LANES) {                     \
                __m512 v = load_##SUFFIX(x + at);                                                                     \
                v = _mm512_fmadd_ps(v, _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c));                       \
                store_##SUFFIX(y + at, z->silu ? silu(v) : v);                                                        \
            }                                                                                                         \
    }                                                                                                                 \
    TARGET int group_norm_##SUFFIX(const T *x, const float *added, const float *weight, const float *bias, T *y,      \
                                   const Norm *z) {                                                                   \
        int64_t C = z->channels, blocks = (z->pixels + PIXELS - 1) / PIXELS, all = z->batch * blocks;                 \
        float *sums = malloc(sizeof(float) * C * (2 * all + 3 * z->batch));                                           \
        if (!sums) return 1;                                                                                          \
        float *first = sums + 2 * all * C, *scale = first + z->batch * C, *shift = scale + z->batch * C;              \
        _Pragma("omp parallel num_threads(z->threads)") {                                                             \
            _Pragma("omp for") for (int64_t b = 0; b < z->batch; b++) for (int64_t c = 0; c < C; c += LANES)          \
                _mm512_storeu_ps(first + b * C + c, load_##SUFFIX(x + b * z->pixels * C + c));                        \
            _Pragma("omp for") for (int64_t i = 0; i < all; i++) {                                                    \
                int64_t b = i / blocks, from = i % blocks * PIXELS, left = z->pixels - from;                          \
                sum_##SUFFIX(x + (b * z->pixels + from) * C, first + b * C, left < PIXELS ? left : PIXELS, C,         \
                             sums + 2 * i * C);                                                                       \
            }                                                                                                         \
            _Pragma("omp for") for (int64_t b = 0; b < z->batch; b++)                                                 \
                join(sums + 2 * b * blocks * C, first + b * C, added ? added + b * C : NULL, weight, bias, z,         \
                     scale + b * C, shift + b * C);                                                                   \
            _Pragma("omp for") for (int64_t i = 0; i < all; i++) {                                                    \
                int64_t b = i / blocks, from = i % blocks * PIXELS, left = z->pixels - from;                          \
                int64_t at = (b * z->pixels + from) * C;                                                              \
                apply_##SUFFIX(x + at, scale + b * C, shift + b * C, left < PIXELS ? left : PIXELS, z, y + at);       \
            }                                                                                                         \
        }                                                                                                             \
        free(sums);                                                                                                   \
        return 0;                                                                                                     \
    }

GROUP_NORM(f32, float)
GROUP_NORM(bf16, uint16_t)
