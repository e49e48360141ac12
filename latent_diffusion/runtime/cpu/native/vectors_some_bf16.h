/* The first n bfloat16 numbers of a Vector, where no instruction reads or writes so few: through memory. */

INLINE Vector vload_some_bf16(const uint16_t *x, int64_t n) {
    if (n >= LANES) return vload_bf16(x);
    uint16_t all[LANES] = {0};
    memcpy(all, x, n * sizeof *x);
    return vload_bf16(all);
}
INLINE void vstore_some_bf16(uint16_t *x, int64_t n, Vector y) {
    if (n >= LANES) {
        vstore_bf16(x, y);
        return;
    }
    uint16_t all[LANES];
    vstore_bf16(all, y);
    memcpy(x, all, n * sizeof *x);
}
