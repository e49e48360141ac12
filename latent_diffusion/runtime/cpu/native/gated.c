/* Gated GELU with its gradient, for training on CPUs.
 *
 *     y = v gelu(g),   gelu(g) = g P,   P = (1 + erf(g / sqrt 2)) / 2
 *
 * One pass over memory each way. Forward keeps nothing but its input; backward makes both gradients at once:
 *
 *     dv = dy g P        dg = dy v (P + g p),   p = exp(-g^2 / 2) / sqrt(2 pi)
 *
 * erf from Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26 (absolute error 1.5e-7), which has p in it.
 */

#include "vectors.h"

static const float EXP2[] = {EXP2_TAYLOR};

/* e^x for x <= 0 */
INLINE Vector exp_of(Vector x) {
    return exp2_of_any(vmax(vall(-300.0f), vmul(x, vall((float)M_LOG2E))), EXP2, 7);
}

/* returns P of g; `bell` becomes exp(-g^2 / 2) */
INLINE Vector normal_below(Vector g, Vector *bell) {
    static const float series[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
    const Vector one = vall(1.0f);
    Vector t = vdiv(one, vfma(vall(0.3275911f * (float)M_SQRT1_2), vabs(g), one));
    *bell = exp_of(vmul(vmul(g, g), vall(-0.5f)));
    Vector beyond = vmul(vall(0.5f), vmul(vmul(polynomial(t, 1.0f, series, 5), t), *bell)); /* P of -|g| */
    return vnegative(g, beyond, vsub(one, beyond));
}

INLINE void forward_row(const void *x, void *y, int64_t row, int64_t hidden, int bfloat16) {
    for (int64_t c = 0; c < hidden; c += LANES) {
        int64_t value = 2 * row * hidden + c, gate = value + hidden, left = hidden - c;
        Vector bell, v = load_numbers(x, value, left, bfloat16), g = load_numbers(x, gate, left, bfloat16);
        store_numbers(y, row * hidden + c, left, vmul(v, vmul(g, normal_below(g, &bell))), bfloat16);
    }
}

INLINE void back_row(const void *x, const void *dy, void *dx, int64_t row, int64_t hidden, int bfloat16) {
    const Vector top = vall(0.3989422804f); /* 1 / sqrt(2 pi) */
    for (int64_t c = 0; c < hidden; c += LANES) {
        int64_t value = 2 * row * hidden + c, gate = value + hidden, left = hidden - c;
        Vector bell, v = load_numbers(x, value, left, bfloat16), g = load_numbers(x, gate, left, bfloat16);
        Vector d = load_numbers(dy, row * hidden + c, left, bfloat16), P = normal_below(g, &bell);
        store_numbers(dx, value, left, vmul(d, vmul(g, P)), bfloat16);
        store_numbers(dx, gate, left, vmul(vmul(d, v), vfma(vmul(g, bell), top, P)), bfloat16);
    }
}

static void forward_f32(const void *x, void *y, int64_t row, int64_t n) { forward_row(x, y, row, n, 0); }
static void forward_bf16(const void *x, void *y, int64_t row, int64_t n) { forward_row(x, y, row, n, 1); }
static void back_f32(const void *x, const void *dy, void *dx, int64_t row, int64_t n) { back_row(x, dy, dx, row, n, 0); }
static void back_bf16(const void *x, const void *dy, void *dx, int64_t row, int64_t n) {
    back_row(x, dy, dx, row, n, 1);
}

/* y (rows, hidden) of x (rows, 2 hidden): values, then gates */
void KERNEL(gated)(const void *x, void *y, int64_t rows, int64_t hidden, int bfloat16, int threads) {
    _Pragma("omp parallel for num_threads(threads)") for (int64_t row = 0; row < rows; row++)
        (bfloat16 ? forward_bf16 : forward_f32)(x, y, row, hidden);
}

/* dx (rows, 2 hidden) given x and dy (rows, hidden) */
void KERNEL(gated_back)(const void *x, const void *dy, void *dx, int64_t rows, int64_t hidden, int bfloat16,
                        int threads) {
    _Pragma("omp parallel for num_threads(threads)") for (int64_t row = 0; row < rows; row++)
        (bfloat16 ? back_bf16 : back_f32)(x, dy, dx, row, hidden);
}
