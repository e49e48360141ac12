/* vectors.h for AVX-512 (F, BW, DQ, VL): one register. */

#include <immintrin.h>

typedef __m512 Vector;

INLINE Vector vall(float x) { return _mm512_set1_ps(x); }
INLINE Vector vload(const float *x) { return _mm512_loadu_ps(x); }
INLINE void vstore(float *x, Vector y) { _mm512_storeu_ps(x, y); }
INLINE Vector vadd(Vector a, Vector b) { return _mm512_add_ps(a, b); }
INLINE Vector vsub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
INLINE Vector vmul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
INLINE Vector vdiv(Vector a, Vector b) { return _mm512_div_ps(a, b); }
INLINE Vector vmax(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE Vector vmin(Vector a, Vector b) { return _mm512_min_ps(a, b); }
INLINE Vector vabs(Vector a) { return _mm512_abs_ps(a); }
INLINE Vector vfma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }  /* a b + c */
INLINE Vector vfms(Vector a, Vector b, Vector c) { return _mm512_fmsub_ps(a, b, c); }  /* a b - c */
INLINE Vector vround(Vector a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vector vscale(Vector a, Vector whole) { return _mm512_scalef_ps(a, whole); }    /* a 2^whole */

/* the power of two whose exponent is in the last bits */
INLINE Vector vpower(Vector bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(bits), 23)); }

/* in each lane: x < 0 ? a : b */
INLINE Vector vnegative(Vector x, Vector a, Vector b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), a);
}

/* whether a lane of the two differs, and neither is NaN */
INLINE int vdiffer(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ) != 0; }

INLINE float vtop(Vector a) { return _mm512_reduce_max_ps(a); } /* the largest lane */
INLINE float vsum(Vector a) { return _mm512_reduce_add_ps(a); }

#define SIDE 4 /* rows and columns of a block whose lanes are summed at once */
/* out[i] = the sum of the lanes of v[i] */
INLINE void vsums(const Vector v[SIDE * SIDE], float out[SIDE * SIDE]) {
    __m512 a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++) { /* v[4 (i % 4) + i / 4] and the one two further */
        __m512 first = v[4 * (i % 4) + i / 4], second = v[4 * (i % 4) + i / 4 + 2];
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(first, second), _mm512_unpackhi_ps(first, second));
    }
    UNROLL for (int i = 0; i < 4; i++) /* in each quarter: sums of v[4 i] .. v[4 i + 3] over that quarter */
        b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 4]), _mm512_unpackhi_ps(a[i], a[i + 4]));
    UNROLL for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xee));
    vstore(out, _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd)));
}

/* whole numbers of 32 bits as float32; float32 >= 0 as the nearest byte, larger ones as 255 */
INLINE Vector vload_whole(const int32_t *x) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(x)); }
INLINE void vstore_bytes(uint8_t *x, Vector y) {
    _mm_storeu_si128((__m128i *)x, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(y)));
}

INLINE __mmask16 first_lanes(int64_t n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }
INLINE Vector vload_some(const float *x, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), x); }
INLINE void vstore_some(float *x, int64_t n, Vector y) { _mm512_mask_storeu_ps(x, first_lanes(n), y); }

INLINE Vector vwide(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
INLINE __m256i vnarrow(Vector y) { /* to the nearest bfloat16, halves to even */
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(y); /* numbers under 2^-126 become 0 */
#else
    __m512i bits = _mm512_castps_si512(y), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(near, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), 0x7fc0));
#endif
}
INLINE Vector vload_bf16(const uint16_t *x) { return vwide(_mm256_loadu_si256((const __m256i *)x)); }
INLINE void vstore_bf16(uint16_t *x, Vector y) { _mm256_storeu_si256((__m256i *)x, vnarrow(y)); }
INLINE Vector vload_some_bf16(const uint16_t *x, int64_t n) {
    return vwide(_mm256_maskz_loadu_epi16(first_lanes(n), x));
}
INLINE void vstore_some_bf16(uint16_t *x, int64_t n, Vector y) {
    _mm256_mask_storeu_epi16(x, first_lanes(n), vnarrow(y));
}

#ifdef __AVX512BF16__
/* in each lane: sum + the products of two pairs of bfloat16 numbers; `pair` is the same in all lanes */
INLINE Vector vfma_pairs(uint32_t pair, Vector pairs, Vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)pairs);
}

/* pairs of bfloat16 numbers: (first, second) in each lane */
INLINE Vector vpair(Vector first, Vector second) {
    const __m512i merge = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (Vector)_mm512_permutexvar_epi16(merge, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* turns 16 rows of 16 numbers of 32 bits into columns */
INLINE void vturn(Vector rows[16]) {
    __m512i a[16], *r = (__m512i *)rows;
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* r[i + c] has columns c, 4 + c, 8 + c, 12 + c of rows i .. i + 3 */
        r[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i later = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88), last = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        a[c] = _mm512_shuffle_i32x4(even, later, 0x88);
        a[4 + c] = _mm512_shuffle_i32x4(odd, last, 0x88);
        a[8 + c] = _mm512_shuffle_i32x4(even, later, 0xdd);
        a[12 + c] = _mm512_shuffle_i32x4(odd, last, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) r[i] = a[i];
}
#endif
