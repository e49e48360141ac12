/* vectors.h in plain C with the vector types of GCC and Clang: four registers of 128 bits (SSE2, NEON and others). */

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Bits __attribute__((vector_size(16)));
typedef struct { Four part[4]; } Vector;

#define PARTS(EXPRESSION)                                          \
    Vector y;                                                      \
    UNROLL for (int p = 0; p < 4; p++) y.part[p] = (EXPRESSION);   \
    return y

INLINE Four four(float x) { return (Four){x, x, x, x}; }
INLINE Four where(Bits yes, Four a, Four b) { return (Four)(((Bits)a & yes) | ((Bits)b & ~yes)); }

INLINE Vector vall(float x) { PARTS(four(x)); }
INLINE Vector vload(const float *x) {
    Vector y;
    memcpy(&y, x, sizeof y);
    return y;
}
INLINE void vstore(float *x, Vector y) { memcpy(x, &y, sizeof y); }
INLINE Vector vadd(Vector a, Vector b) { PARTS(a.part[p] + b.part[p]); }
INLINE Vector vsub(Vector a, Vector b) { PARTS(a.part[p] - b.part[p]); }
INLINE Vector vmul(Vector a, Vector b) { PARTS(a.part[p] * b.part[p]); }
INLINE Vector vdiv(Vector a, Vector b) { PARTS(a.part[p] / b.part[p]); }
INLINE Vector vmax(Vector a, Vector b) { PARTS(where(a.part[p] > b.part[p], a.part[p], b.part[p])); }
INLINE Vector vmin(Vector a, Vector b) { PARTS(where(a.part[p] < b.part[p], a.part[p], b.part[p])); }
INLINE Vector vabs(Vector a) { PARTS((Four)((Bits)a.part[p] & 0x7fffffff)); }
#ifdef __FP_FAST_FMAF /* an instruction of its own, as on ARM */
INLINE Four fma_of(Four a, Four b, Four c) {
    Four y;
    UNROLL for (int i = 0; i < 4; i++) y[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return y;
}
#else
INLINE Four fma_of(Four a, Four b, Four c) { return a * b + c; }
#endif
INLINE Vector vfma(Vector a, Vector b, Vector c) { PARTS(fma_of(a.part[p], b.part[p], c.part[p])); }  /* a b + c */
INLINE Vector vfms(Vector a, Vector b, Vector c) { PARTS(fma_of(a.part[p], b.part[p], -c.part[p])); } /* a b - c */

INLINE Four round_of(Four a) { /* adding 1.5 * 2^23 rounds; numbers of 2^22 and more (or NaN) stay as they are */
    Four rounded = (a + 12582912.0f) - 12582912.0f, size = (Four)((Bits)a & 0x7fffffff);
    return where(size < 4194304.0f, rounded, a);
}
INLINE Vector vround(Vector a) { PARTS(round_of(a.part[p])); }

/* the power of two whose exponent is in the last bits */
INLINE Vector vpower(Vector bits) { PARTS((Four)((Bits)bits.part[p] << 23)); }

/* a 2^whole, in two factors, since one would underflow before the product does */
INLINE Four scale_of(Four a, Four whole) {
    whole = where(whole > -252.0f, whole, four(-252.0f));
    Bits n = (Bits)(whole + 12582912.0f) - (Bits)four(12582912.0f), half = n >> 1;
    return a * (Four)((half + 127) << 23) * (Four)((n - half + 127) << 23);
}
INLINE Vector vscale(Vector a, Vector whole) { PARTS(scale_of(a.part[p], whole.part[p])); }

/* in each lane: x < 0 ? a : b */
INLINE Vector vnegative(Vector x, Vector a, Vector b) { PARTS(where(x.part[p] < 0.0f, a.part[p], b.part[p])); }

/* whether a lane of the two differs, and neither is NaN */
INLINE int vdiffer(Vector a, Vector b) {
    Bits any = {0};
    UNROLL for (int p = 0; p < 4; p++) any |= (a.part[p] < b.part[p]) | (a.part[p] > b.part[p]);
    return (any[0] | any[1] | any[2] | any[3]) != 0;
}

INLINE float vtop(Vector a) { /* the largest lane */
    float all[LANES], top;
    memcpy(all, &a, sizeof all), top = all[0];
    for (int i = 1; i < LANES; i++) top = all[i] > top ? all[i] : top;
    return top;
}

/* the order of the sums is that of the other levels */
INLINE float vsum(Vector a) {
    Four x = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
    return (x[0] + x[2]) + (x[1] + x[3]);
}

#define SIDE 2 /* rows and columns of a block whose lanes are summed at once */
/* out[i] = the sum of the lanes of v[i] */
INLINE void vsums(const Vector v[SIDE * SIDE], float out[SIDE * SIDE]) {
    UNROLL for (int i = 0; i < SIDE * SIDE; i++) {
        float sum[4];
        UNROLL for (int p = 0; p < 4; p++) {
            Four x = v[i].part[p];
            sum[p] = (x[0] + x[2]) + (x[1] + x[3]);
        }
        out[i] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    }
}

/* whole numbers of 32 bits as float32; float32 >= 0 as the nearest byte, larger ones as 255 */
INLINE Vector vload_whole(const int32_t *x) {
    float all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = (float)x[i];
    return vload(all);
}
INLINE void vstore_bytes(uint8_t *x, Vector y) {
    float all[LANES];
    vstore(all, vround(y));
    for (int i = 0; i < LANES; i++) x[i] = all[i] < 255.0f ? (uint8_t)all[i] : 255;
}

INLINE Vector vload_some(const float *x, int64_t n) {
    if (n >= LANES) return vload(x);
    Vector y = {0};
    memcpy(&y, x, n * sizeof *x);
    return y;
}
INLINE void vstore_some(float *x, int64_t n, Vector y) { memcpy(x, &y, (n < LANES ? n : LANES) * sizeof *x); }

INLINE Vector vload_bf16(const uint16_t *x) {
    uint32_t bits[LANES];
    for (int i = 0; i < LANES; i++) bits[i] = (uint32_t)x[i] << 16;
    return vload((const float *)bits);
}
INLINE void vstore_bf16(uint16_t *x, Vector y) { /* to the nearest, halves to even */
    uint32_t bits[LANES];
    memcpy(bits, &y, sizeof bits);
    for (int i = 0; i < LANES; i++) {
        uint32_t near = (bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16;
        x[i] = (bits[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)near;
    }
}
#include "vectors_some_bf16.h"
