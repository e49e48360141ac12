/* The processor's level, found by code that any processor runs. */

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* whether AMX multiplies bytes and bfloat16 here: the processor has it, the system saves its tiles, and lets this process
 * use them, which Linux has to be asked for */
static int has_tiles(void) {
    enum { OSXSAVE = 1 << 27, STATES = 3 << 17, ASK = 0x1023, DATA = 18 };
    const unsigned amx = 1 << 22 | 1 << 24 | 1 << 25; /* products of bfloat16, tiles, products of bytes */
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & amx) != amx) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & STATES) != STATES) return 0;
    static int allowed = -1; /* threads that ask at once get the same answer */
    if (allowed < 0) allowed = syscall(SYS_arch_prctl, ASK, DATA) == 0;
    return allowed;
}
#else
static int has_tiles(void) { return 0; }
#endif

/* 1 = plain C, 2 = AVX2, 3 = AVX-512, 4 = AVX-512 with products of bytes (VNNI), 5 = with those of bfloat16 pairs too,
 * 6 = with tiles too (AMX): `Level` in library.py */
int processor_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 1;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) return 2;
    if (!__builtin_cpu_supports("avx512vnni")) return 3;
    if (!__builtin_cpu_supports("avx512bf16")) return 4;
    return has_tiles() ? 6 : 5;
#else
    return 1;
#endif
}
