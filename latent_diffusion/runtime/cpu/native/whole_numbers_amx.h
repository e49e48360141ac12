/* whole_numbers.h for AMX: tiles of 16 rows of 64 bytes, multiplied by the processor's unit for them.
 *
 * Tiles 0 .. 3 hold the sums of 2 x 16 rows and 2 x 16 outputs, 4 and 5 the rows' numbers, 6 and 7 the weights. A tile
 * of weights has a panel's own layout, [64 inputs / 4][16 outputs][4], so weights are packed as for the other levels.
 */

#pragma once

#include "tiles.h"

typedef uint8_t Number;
#define TILES
#define SIDE_BY_SIDE 64
#define TILE_ROWS 32
#define DEPTH 512
#define ROW (4 * PANEL) /* bytes of weights of 4 inputs */

/* the sums (+)= the products of one row of tiles, or two, with two tiles of weights */
INLINE void add_tiles(const Number *x, const int8_t *w, int two) {
    _tile_loadd(4, x, SIDE_BY_SIDE);
    _tile_loadd(6, w, ROW);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, w + ROW / 2, ROW);
    _tile_dpbusd(1, 4, 7);
    if (!two) return;
    _tile_loadd(5, x + 16 * SIDE_BY_SIDE, SIDE_BY_SIDE);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
}

INLINE void multiply_tiles(const Number *numbers, int64_t step, const int8_t *weights, int64_t chunks, int32_t *sums,
                           int add, int two) {
    const int64_t row = PANEL * sizeof(int32_t);
    int32_t *below = sums + 16 * PANEL;
    int8_t last[SIDE_BY_SIDE / 4 * ROW];
    int64_t rest = chunks % (SIDE_BY_SIDE / CHUNK);
    __asm__ volatile("" : : : "memory");
    if (add) {
        _tile_loadd(0, sums, row);
        _tile_loadd(1, sums + 16, row);
        if (two) _tile_loadd(2, below, row);
        if (two) _tile_loadd(3, below + 16, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t c = 0; c < chunks / (SIDE_BY_SIDE / CHUNK); c++, numbers += step, weights += SIDE_BY_SIDE / 4 * ROW)
        add_tiles(numbers, weights, two);
    if (rest) { /* zeros in place of the weights of the next panel: the numbers there are of no input */
        memset(last, 0, sizeof last);
        memcpy(last, weights, rest * (CHUNK / 4) * ROW);
        __asm__ volatile("" : : "r"(last) : "memory");
        add_tiles(numbers, last, two);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + 16, row);
    if (two) _tile_stored(2, below, row);
    if (two) _tile_stored(3, below + 16, row);
    __asm__ volatile("" : : : "memory");
}

/* numbers and sums are there for 16 rows or 32, of which some may be no rows */
INLINE void multiply_rows(int64_t rows, const Number *numbers, int64_t step, const int8_t *weights, int64_t chunks,
                          int32_t *sums, int add) {
    if (rows > 16) multiply_tiles(numbers, step, weights, chunks, sums, add, 1);
    else multiply_tiles(numbers, step, weights, chunks, sums, add, 0);
}
