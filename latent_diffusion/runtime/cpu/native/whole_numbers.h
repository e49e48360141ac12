/* Sums of products of whole numbers, four inputs at a time, for each level of processor: 0 .. 255 times -127 .. 127.
 *
 * All sums are exact, so that every level gives the same ones. AMX and AVX-512 VNNI multiply the bytes themselves. The
 * other levels multiply 16-bit numbers: products of bytes summed in 16 bits (vpmaddubsw) would overflow.
 *
 * Sums hold OUTPUTS outputs. two_sums writes those of two of them, in order.
 */

#pragma once

#include "vectors.h"

#define PANEL 32 /* outputs whose weights lie together, [inputs / 4][PANEL][4] */
#define CHUNK 16 /* inputs are rounded up to it */

#if defined(__AMX_INT8__)
#include "whole_numbers_amx.h"
#elif defined(__AVX512VNNI__)
typedef uint8_t Number;
typedef __m512i Sums, Numbers, Weights;
#define OUTPUTS 16
#define TILE_ROWS 12
INLINE Sums no_sums(void) { return _mm512_setzero_si512(); }
INLINE Sums four_numbers(const Number *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}
INLINE Sums weights_of(const int8_t *w) { return _mm512_loadu_si512(w); }
INLINE Sums add_products(Sums sums, Sums numbers, Sums weights) { return _mm512_dpbusd_epi32(sums, numbers, weights); }
INLINE void two_sums(int32_t *out, Sums a, Sums b, int add) {
    if (add) a = _mm512_add_epi32(a, _mm512_loadu_si512(out)), b = _mm512_add_epi32(b, _mm512_loadu_si512(out + 16));
    _mm512_storeu_si512(out, a), _mm512_storeu_si512(out + 16, b);
}
#elif defined(__AVX512BW__)
typedef int16_t Number;
typedef __m512i Sums, Numbers, Weights; /* two sums for each output, side by side */
#define OUTPUTS 8
#define TILE_ROWS 12
INLINE Sums no_sums(void) { return _mm512_setzero_si512(); }
INLINE Sums four_numbers(const Number *x) {
    int64_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi64(four);
}
INLINE Sums weights_of(const int8_t *w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w)); }
INLINE Sums add_products(Sums sums, Sums numbers, Sums weights) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(numbers, weights));
}
INLINE void two_sums(int32_t *out, Sums a, Sums b, int add) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    __m512i sums = _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
    if (add) sums = _mm512_add_epi32(sums, _mm512_loadu_si512(out));
    _mm512_storeu_si512(out, sums);
}
#elif defined(__AVX2__)
typedef int16_t Number;
typedef __m256i Sums, Numbers, Weights; /* two sums for each output, side by side */
#define OUTPUTS 4
#define TILE_ROWS 6
INLINE Sums no_sums(void) { return _mm256_setzero_si256(); }
INLINE Sums four_numbers(const Number *x) {
    int64_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi64x(four);
}
INLINE Sums weights_of(const int8_t *w) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)); }
INLINE Sums add_products(Sums sums, Sums numbers, Sums weights) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(numbers, weights));
}
INLINE void two_sums(int32_t *out, Sums a, Sums b, int add) {
    __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8); /* quarters 0 2 1 3 */
    if (add) sums = _mm256_add_epi32(sums, _mm256_loadu_si256((const __m256i *)out));
    _mm256_storeu_si256((__m256i *)out, sums);
}
#else
typedef int16_t Number;
typedef struct { int32_t sum[8]; } Sums;
#define OUTPUTS 8
#define TILE_ROWS 2
typedef struct { int16_t four[4]; } Numbers;
typedef struct { int16_t weight[32]; } Weights;
INLINE Sums no_sums(void) { return (Sums){{0}}; }
INLINE Numbers four_numbers(const Number *x) { return (Numbers){{x[0], x[1], x[2], x[3]}}; }
INLINE Weights weights_of(const int8_t *w) {
    Weights wide;
    for (int i = 0; i < 32; i++) wide.weight[i] = w[i];
    return wide;
}
INLINE Sums add_products(Sums sums, Numbers numbers, Weights weights) {
    for (int o = 0; o < 8; o++)
        for (int i = 0; i < 4; i++) sums.sum[o] += numbers.four[i] * weights.weight[4 * o + i];
    return sums;
}
INLINE void two_sums(int32_t *out, Sums a, Sums b, int add) {
    for (int o = 0; o < 8; o++) {
        out[o] = a.sum[o] + (add ? out[o] : 0);
        out[8 + o] = b.sum[o] + (add ? out[8 + o] : 0);
    }
}
#endif

#if !defined(TILES)
#define SIDE_BY_SIDE CHUNK /* numbers of a row that lie together when it is multiplied */
#define DEPTH 256          /* inputs multiplied at a time */
INLINE void begin_tiles(void) {}
INLINE void end_tiles(void) {}
#endif
