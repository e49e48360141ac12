/* Attention in bfloat16 with AMX: keys and values are laid into tiles once for each head, and a tile of scores has 16
 * keys and the 16 queries of a vector, a tile of results 16 channels of them.
 *
 * Keys are [keys / 16][channels / 32] tiles of 16 keys of 32 channels, values [keys / 32][channels / 16] tiles of 16
 * channels of 32 keys. What fills the last tiles up is zero.
 */

#pragma once

#include "tiles.h"

#define SIDE_OF_TILE 16
#define DEPTH_OF_TILE 32
#define TILE_NUMBERS (SIDE_OF_TILE * DEPTH_OF_TILE)
#define VECTORS 4 /* of queries at once */
#define AT_ONCE (16 << 20) /* bytes of keys and values that are laid into tiles before they are read */

INLINE int64_t tiles_of(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

typedef struct {
    int64_t depth, side, keys, values; /* tiles of the channels, as depth and as side; numbers of a head's keys, values */
} Tiles;

INLINE Tiles tiles_of_head(const Shape *z) {
    Tiles t = {.depth = tiles_of(z->width, DEPTH_OF_TILE), .side = tiles_of(z->width, SIDE_OF_TILE)};
    t.keys = tiles_of(z->keys, DEPTH_OF_TILE) * 2 * t.depth * TILE_NUMBERS;
    t.values = tiles_of(z->keys, DEPTH_OF_TILE) * t.side * TILE_NUMBERS;
    return t;
}

/* lays 32 keys from `first` on, and their values, into tiles */
static void lay(const uint16_t *k, const uint16_t *v, const Shape *z, Tiles t, int64_t first, uint16_t *keys,
                uint16_t *values) {
    int64_t here = z->keys - first < DEPTH_OF_TILE ? z->keys - first : DEPTH_OF_TILE;
    keys += first * t.depth * DEPTH_OF_TILE;
    values += first * t.side * SIDE_OF_TILE;
    for (int64_t s = 0; s < DEPTH_OF_TILE; s++) {
        const uint16_t *key = k + (first + s) * z->k.row;
        uint16_t *row = keys + s / SIDE_OF_TILE * t.depth * TILE_NUMBERS + s % SIDE_OF_TILE * DEPTH_OF_TILE;
        for (int64_t c = 0; c < z->width; c += DEPTH_OF_TILE, row += TILE_NUMBERS)
            vstore((float *)row, s < here ? vload_some((const float *)(key + c), (z->width - c) / 2) : vall(0.0f));
    }
    for (int64_t c = 0; c < z->width; c += SIDE_OF_TILE, values += TILE_NUMBERS) {
        Vector rows[LANES], none = vall(0.0f);
        for (int64_t s = 0; s < DEPTH_OF_TILE; s += 2) {
            const uint16_t *value = v + (first + s) * z->v.row + c;
            Vector one = s < here ? vload_some_bf16(value, z->width - c) : none;
            rows[s / 2] = vpair(one, s + 1 < here ? vload_some_bf16(value + z->v.row, z->width - c) : none);
        }
        vturn(rows);
        UNROLL for (int i = 0; i < LANES; i++) vstore((float *)(values + i * DEPTH_OF_TILE), rows[i]);
    }
}

/* c[16 rows] (+)= the products of `depth` tiles, `along` numbers apart, with the pairs x[depth * 16], for two of the
 * VECTORS vectors of each row; one row of tiles, or two, `down` numbers apart */
INLINE void two_vectors(int two, const uint16_t *a, int64_t down, int64_t along, const uint32_t *x, int64_t depth,
                        float *c, int add) {
    const int64_t row = VECTORS * LANES * sizeof(float);
    float *below = c + SIDE_OF_TILE * VECTORS * LANES;
    if (add) {
        _tile_loadd(0, c, row);
        _tile_loadd(1, c + LANES, row);
        if (two) _tile_loadd(2, below, row);
        if (two) _tile_loadd(3, below + LANES, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i++, a += along, x += SIDE_OF_TILE * VECTORS * LANES) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, x, row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, x + LANES, row);
        _tile_dpbf16ps(1, 4, 7);
        if (!two) continue;
        _tile_loadd(5, a + down, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, row);
    _tile_stored(1, c + LANES, row);
    if (two) _tile_stored(2, below, row);
    if (two) _tile_stored(3, below + LANES, row);
}

/* the same of `rows` rows of tiles and all vectors */
INLINE void product_tiles(const uint16_t *a, int64_t down, int64_t along, const float *x, int64_t depth, float *c,
                          int64_t rows, int add) {
    __asm__ volatile("" : : : "memory"); /* the compiler does not see what tile instructions read and write */
    for (int l = 0; l < VECTORS; l += 2) {
        const uint32_t *pairs = (const uint32_t *)x + l * LANES;
        for (int64_t r = 0; r < rows; r += 2) {
            float *to = c + (r * SIDE_OF_TILE * VECTORS + l) * LANES;
            if (r + 1 < rows) two_vectors(1, a + r * down, down, along, pairs, depth, to, add);
            else two_vectors(0, a + r * down, down, along, pairs, depth, to, add);
        }
    }
    __asm__ volatile("" : : : "memory");
}

/* results of one block of `here` queries, at most VECTORS vectors of them */
static void block_tiles(const uint16_t *q, const uint16_t *keys, const uint16_t *values, uint16_t *out,
                        const Shape *z, Tiles t, int64_t here, Scratch *w) {
    int64_t d = z->width;
    turn_queries(VECTORS, q, z, here, t.depth * SIDE_OF_TILE, w->q);
    memset(w->out, 0, sizeof(float) * t.side * SIDE_OF_TILE * VECTORS * LANES);
    Vector top[4], total[4];
    for (int l = 0; l < VECTORS; l++) top[l] = vall(-INFINITY), total[l] = vall(0.0f);
    for (int64_t s = 0; s < z->keys; s += 2 * KEYS) { /* what fits into the scores */
        int64_t n = z->keys - s < 2 * KEYS ? z->keys - s : 2 * KEYS, deep = tiles_of(n, DEPTH_OF_TILE);
        product_tiles(keys + s * t.depth * DEPTH_OF_TILE, t.depth * TILE_NUMBERS, TILE_NUMBERS, w->q, t.depth, w->scores,
                      tiles_of(n, SIDE_OF_TILE), 0);
        softmax(VECTORS, w->scores, n, z->scale, top, total, w->out, d, EXP2_ROUGH, 4, 1);
        int64_t pairs = (n + 1) / 2;
        memset(w->scores + pairs * VECTORS * LANES, 0, sizeof(float) * (deep * SIDE_OF_TILE - pairs) * VECTORS * LANES);
        product_tiles(values + s * t.side * SIDE_OF_TILE, TILE_NUMBERS, t.side * TILE_NUMBERS, w->scores, deep, w->out,
                      t.side, 1);
    }
    write_results(VECTORS, w->out, total, out, z, here);
}

int KERNEL(attention_bf16)(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, const Shape *z) {
    int64_t step = VECTORS * LANES, heads = z->batch * z->heads;
    int64_t blocks = tiles_of(z->queries, step), parts = tiles_of(z->keys, DEPTH_OF_TILE);
    Tiles t = tiles_of_head(z);
    int64_t group = AT_ONCE / (sizeof(uint16_t) * (t.keys + t.values));
    group = group < 1 ? 1 : group > heads ? heads : group;
    Scratch *all = aligned_alloc(64, sizeof(Scratch) * z->threads);
    uint16_t *keys = aligned_alloc(64, sizeof(uint16_t) * (t.keys + t.values) * group), *values = keys + t.keys * group;
    if (!all || !keys) {
        free(all), free(keys);
        return 1;
    }
    _Pragma("omp parallel num_threads(z->threads)") {
        Scratch *w = all + omp_get_thread_num();
        begin_tiles();
        for (int64_t begin = 0; begin < heads; begin += group) {
            int64_t count = heads - begin < group ? heads - begin : group;
            _Pragma("omp for schedule(static)") for (int64_t i = 0; i < count * parts; i++) {
                int64_t g = i / parts, b = (begin + g) / z->heads, h = (begin + g) % z->heads;
                lay(k + b * z->k.batch + h * z->k.head, v + b * z->v.batch + h * z->v.head, z, t,
                    i % parts * DEPTH_OF_TILE, keys + g * t.keys, values + g * t.values);
            }
            _Pragma("omp for schedule(dynamic, 1)") for (int64_t i = 0; i < count * blocks; i++) {
                int64_t g = i / blocks, b = (begin + g) / z->heads, h = (begin + g) % z->heads, first = i % blocks * step;
                int64_t here = z->queries - first < step ? z->queries - first : step;
                const uint16_t *qi = q + b * z->q.batch + h * z->q.head + first * z->q.row;
                uint16_t *oi = out + b * z->out.batch + h * z->out.head + first * z->out.row;
                block_tiles(qi, keys + g * t.keys, values + g * t.values, oi, z, t, here, w);
            }
        }
        end_tiles();
    }
    free(all), free(keys);
    return 0;
}
