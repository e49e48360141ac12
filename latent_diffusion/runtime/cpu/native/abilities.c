/* The processor's level, found by code that any processor runs. */

/* 1 = plain C, 2 = AVX2, 3 = AVX-512, 4 = AVX-512 with products of bytes (VNNI), 5 = with those of bfloat16 pairs too:
 * `Level` in library.py */
int processor_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 1;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) return 2;
    if (!__builtin_cpu_supports("avx512vnni")) return 3;
    return __builtin_cpu_supports("avx512bf16") ? 5 : 4;
#else
    return 1;
#endif
}
