/* Gated GELU with its gradient, for training on CPUs with AVX-512.
 *
 *     y = v gelu(g),   gelu(g) = g P,   P = (1 + erf(g / sqrt 2)) / 2
 *
 * One pass over memory each way. Forward keeps nothing but its input; backward makes both gradients at once:
 *
 *     dv = dy g P        dg = dy v (P + g p),   p = exp(-g^2 / 2) / sqrt(2 pi)
 *
 * erf from Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26 (absolute error 1.5e-7), which has p in it.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define LANES 16
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline))

/* e^x for x <= 0: 2^whole 2^f, Taylor series over f = -0.5 .. 0.5 */
AVX512 INLINE __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-300.0f), _mm512_mul_ps(x, _mm512_set1_ps((float)M_LOG2E)));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.540353039e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.333355815e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618129108e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550410866e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402265070e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931471806e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

/* returns P of g; `bell` becomes exp(-g^2 / 2) */
AVX512 INLINE __m512 normal_below(__m512 g, __m512 *bell) {
    const __m512 one = _mm512_set1_ps(1.0f), half = _mm512_set1_ps(0.5f);
    __m512 size = _mm512_abs_ps(g);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f * (float)M_SQRT1_2), size, one));
    *bell = exp_of(_mm512_mul_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(-0.5f)));
    __m512 series = _mm512_set1_ps(1.061405429f);
    series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-1.453152027f));
    series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(1.421413741f));
    series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(-0.284496736f));
    series = _mm512_fmadd_ps(series, t, _mm512_set1_ps(0.254829592f));
    __m512 beyond = _mm512_mul_ps(half, _mm512_mul_ps(_mm512_mul_ps(series, t), *bell)); /* P of -|g| */
    __mmask16 below = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_sub_ps(one, beyond), below, beyond);
}

AVX512 INLINE __m512 load(const void *x, int64_t at, __mmask16 some, int bfloat16) {
    if (!bfloat16) return _mm512_maskz_loadu_ps(some, (const float *)x + at);
    __m256i bits = _mm256_maskz_loadu_epi16(some, (const uint16_t *)x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

AVX512 INLINE void store(void *x, int64_t at, __mmask16 some, __m512 y, int bfloat16) {
    if (!bfloat16) {
        _mm512_mask_storeu_ps((float *)x + at, some, y);
        return;
    }
    __m512i bits = _mm512_castps_si512(y), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    near = _mm512_mask_set1_epi32(near, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), 0x7fc0);
    _mm256_mask_storeu_epi16((uint16_t *)x + at, some, _mm512_cvtepi32_epi16(near));
}

AVX512 INLINE __mmask16 lanes_of(int64_t n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

AVX512 INLINE void forward_row(const void *x, void *y, int64_t row, int64_t hidden, int bfloat16) {
    for (int64_t c = 0; c < hidden; c += LANES) {
        __mmask16 some = lanes_of(hidden - c);
        int64_t value = 2 * row * hidden + c, gate = value + hidden;
        __m512 bell, v = load(x, value, some, bfloat16), g = load(x, gate, some, bfloat16);
        store(y, row * hidden + c, some, _mm512_mul_ps(v, _mm512_mul_ps(g, normal_below(g, &bell))), bfloat16);
    }
}

AVX512 INLINE void back_row(const void *x, const void *dy, void *dx, int64_t row, int64_t hidden, int bfloat16) {
    const __m512 top = _mm512_set1_ps(0.3989422804f); /* 1 / sqrt(2 pi) */
    for (int64_t c = 0; c < hidden; c += LANES) {
        __mmask16 some = lanes_of(hidden - c);
        int64_t value = 2 * row * hidden + c, gate = value + hidden;
        __m512 bell, v = load(x, value, some, bfloat16), g = load(x, gate, some, bfloat16);
        __m512 d = load(dy, row * hidden + c, some, bfloat16), P = normal_below(g, &bell);
        store(dx, value, some, _mm512_mul_ps(d, _mm512_mul_ps(g, P)), bfloat16);
        __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(g, bell), top, P);
        store(dx, gate, some, _mm512_mul_ps(_mm512_mul_ps(d, v), slope), bfloat16);
    }
}

AVX512 static void forward_f32(const void *x, void *y, int64_t row, int64_t n) { forward_row(x, y, row, n, 0); }
AVX512 static void forward_bf16(const void *x, void *y, int64_t row, int64_t n) { forward_row(x, y, row, n, 1); }
AVX512 static void back_f32(const void *x, const void *dy, void *dx, int64_t row, int64_t n) {
    back_row(x, dy, dx, row, n, 0);
}
AVX512 static void back_bf16(const void *x, const void *dy, void *dx, int64_t row, int64_t n) {
    back_row(x, dy, dx, row, n, 1);
}

/* y (rows, hidden) of x (rows, 2 hidden): values, then gates */
void gated(const void *x, void *y, int64_t rows, int64_t hidden, int bfloat16, int threads) {
    _Pragma("omp parallel for num_threads(threads)") for (int64_t row = 0; row < rows; row++)
        (bfloat16 ? forward_bf16 : forward_f32)(x, y, row, hidden);
}

/* dx (rows, 2 hidden) given x and dy (rows, hidden) */
void gated_back(const void *x, const void *dy, void *dx, int64_t rows, int64_t hidden, int bfloat16, int threads) {
    _Pragma("omp parallel for num_threads(threads)") for (int64_t row = 0; row < rows; row++)
        (bfloat16 ? back_bf16 : back_f32)(x, dy, dx, row, hidden);
}
