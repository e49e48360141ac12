/* The eight tiles of AMX, each 16 rows of 64 bytes. */

#pragma once

#include "vectors.h"

/* each thread, before its first product and after its last one */
INLINE void begin_tiles(void) {
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } form = {.palette = 1};
    for (int i = 0; i < 8; i++) form.bytes[i] = 64, form.rows[i] = 16;
    __asm__ volatile("" : : "r"(&form) : "memory"); /* the compiler does not see what tile instructions read */
    _tile_loadconfig(&form);
}
INLINE void end_tiles(void) { _tile_release(); }
