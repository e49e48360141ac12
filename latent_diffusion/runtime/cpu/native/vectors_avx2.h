/* vectors.h for AVX2 with FMA: two registers. */

#include <immintrin.h>

typedef struct { __m256 low, high; } Vector;

#define BOTH(OF, ...) ((Vector){OF(low, __VA_ARGS__), OF(high, __VA_ARGS__)})
#define UNARY(HALF, NAME, A) NAME(A.HALF)
#define BINARY(HALF, NAME, A, B) NAME(A.HALF, B.HALF)
#define TERNARY(HALF, NAME, A, B, C) NAME(A.HALF, B.HALF, C.HALF)

INLINE Vector vall(float x) { return (Vector){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Vector vload(const float *x) { return (Vector){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
INLINE void vstore(float *x, Vector y) { _mm256_storeu_ps(x, y.low), _mm256_storeu_ps(x + 8, y.high); }
INLINE Vector vadd(Vector a, Vector b) { return BOTH(BINARY, _mm256_add_ps, a, b); }
INLINE Vector vsub(Vector a, Vector b) { return BOTH(BINARY, _mm256_sub_ps, a, b); }
INLINE Vector vmul(Vector a, Vector b) { return BOTH(BINARY, _mm256_mul_ps, a, b); }
INLINE Vector vdiv(Vector a, Vector b) { return BOTH(BINARY, _mm256_div_ps, a, b); }
INLINE Vector vmax(Vector a, Vector b) { return BOTH(BINARY, _mm256_max_ps, a, b); }
INLINE Vector vmin(Vector a, Vector b) { return BOTH(BINARY, _mm256_min_ps, a, b); }
INLINE Vector vfma(Vector a, Vector b, Vector c) { return BOTH(TERNARY, _mm256_fmadd_ps, a, b, c); } /* a b + c */
INLINE Vector vfms(Vector a, Vector b, Vector c) { return BOTH(TERNARY, _mm256_fmsub_ps, a, b, c); } /* a b - c */

INLINE __m256 abs_of(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE __m256 round_of(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vector vabs(Vector a) { return BOTH(UNARY, abs_of, a); }
INLINE Vector vround(Vector a) { return BOTH(UNARY, round_of, a); }

/* the power of two whose exponent is in the last bits */
INLINE __m256 power_of(__m256 bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(bits), 23)); }
INLINE Vector vpower(Vector bits) { return BOTH(UNARY, power_of, bits); }

/* a 2^whole, in two factors, since one would underflow before the product does */
INLINE __m256 scale_of(__m256 a, __m256 whole) {
    __m256i n = _mm256_cvtps_epi32(_mm256_max_ps(whole, _mm256_set1_ps(-252.0f))), half = _mm256_srai_epi32(n, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
INLINE Vector vscale(Vector a, Vector whole) { return BOTH(BINARY, scale_of, a, whole); }

/* in each lane: x < 0 ? a : b */
INLINE __m256 negative_of(__m256 x, __m256 a, __m256 b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
INLINE Vector vnegative(Vector x, Vector a, Vector b) { return BOTH(TERNARY, negative_of, x, a, b); }

/* whether a lane of the two differs, and neither is NaN */
INLINE int vdiffer(Vector a, Vector b) {
    __m256 low = _mm256_cmp_ps(a.low, b.low, _CMP_NEQ_OQ), high = _mm256_cmp_ps(a.high, b.high, _CMP_NEQ_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
}

INLINE float vtop(Vector a) { /* the largest lane */
    __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE float vsum(Vector a) {
    __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#define SIDE 2 /* rows and columns of a block whose lanes are summed at once */
/* in each half: sums of v0 .. v3 over that half */
INLINE __m256 sums_of(__m256 v0, __m256 v1, __m256 v2, __m256 v3) {
    __m256 even = _mm256_add_ps(_mm256_unpacklo_ps(v0, v2), _mm256_unpackhi_ps(v0, v2));
    __m256 odd = _mm256_add_ps(_mm256_unpacklo_ps(v1, v3), _mm256_unpackhi_ps(v1, v3));
    return _mm256_add_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
}
/* out[i] = the sum of the lanes of v[i] */
INLINE void vsums(const Vector v[SIDE * SIDE], float out[SIDE * SIDE]) {
    __m256 eight = _mm256_add_ps(sums_of(v[0].low, v[1].low, v[2].low, v[3].low),
                                 sums_of(v[0].high, v[1].high, v[2].high, v[3].high));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
}

/* whole numbers of 32 bits as float32; float32 >= 0 as the nearest byte, larger ones as 255 */
INLINE __m256 whole_of(const int32_t *x) { return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)x)); }
INLINE Vector vload_whole(const int32_t *x) { return (Vector){whole_of(x), whole_of(x + 8)}; }
INLINE void vstore_bytes(uint8_t *x, Vector y) {
    __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(y.low), _mm256_cvtps_epi32(y.high)); /* quarters 0 2 1 3 */
    pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
    _mm_storeu_si128((__m128i *)x, _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

/* ones in the bits of the lanes below n */
INLINE __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE __m256 load_half(const float *x, int64_t n) {
    return n >= 8 ? _mm256_loadu_ps(x) : n > 0 ? _mm256_maskload_ps(x, first_lanes(n)) : _mm256_setzero_ps();
}
INLINE void store_half(float *x, int64_t n, __m256 y) { /* processors of AMD store with a mask slowly */
    if (n >= 8) _mm256_storeu_ps(x, y);
    else if (n > 0) _mm256_maskstore_ps(x, first_lanes(n), y);
}
INLINE Vector vload_some(const float *x, int64_t n) { return (Vector){load_half(x, n), load_half(x + 8, n - 8)}; }
INLINE void vstore_some(float *x, int64_t n, Vector y) { store_half(x, n, y.low), store_half(x + 8, n - 8, y.high); }

INLINE __m256 wide_of(const uint16_t *x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16));
}
INLINE __m256i narrow_of(__m256 y) { /* to the nearest bfloat16, halves to even */
    __m256i bits = _mm256_castps_si256(y), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i no_number = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(near, _mm256_set1_epi32(0x7fc0), no_number);
}
INLINE Vector vload_bf16(const uint16_t *x) { return (Vector){wide_of(x), wide_of(x + 8)}; }
INLINE void vstore_bf16(uint16_t *x, Vector y) {
    __m256i packed = _mm256_packus_epi32(narrow_of(y.low), narrow_of(y.high)); /* quarters 0 2 1 3 */
    _mm256_storeu_si256((__m256i *)x, _mm256_permute4x64_epi64(packed, 0xd8));
}
#include "vectors_some_bf16.h"
