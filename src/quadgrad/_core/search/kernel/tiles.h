/* What both kinds of cells have in common: weighted sums of many columns of values at a time, and null rules. */

#pragma once

#include "kernel.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef double Lanes __attribute__((vector_size(BYTES), aligned(8), may_alias));
typedef int64_t Bits __attribute__((vector_size(BYTES), aligned(8), may_alias));
/* The larger numbers, as in `larger`: of vectors compilers make two instructions of that. */
#if defined(__AVX512F__)
INLINE Lanes largest_of(Lanes a, Lanes b) { return (Lanes)_mm512_max_pd((__m512d)b, (__m512d)a); }
#elif defined(__AVX2__)
INLINE Lanes largest_of(Lanes a, Lanes b) { return (Lanes)_mm256_max_pd((__m256d)b, (__m256d)a); }
#else
INLINE Lanes largest_of(Lanes a, Lanes b) {
    Bits is_b = b > a;
    return (Lanes)(((Bits)b & is_b) | ((Bits)a & ~is_b));
}
#endif

enum { LANES = BYTES / 8, WIDE = 2 * LANES, MOST_NODES = 256 };

/* Numbers of as many cells as are worked on at a time; loops over them are left to the compiler to vectorise. */
typedef double Tile[WIDE];

/* Weighted sums of m values on a tile: `rows` rows of m weights. Four at a time stay in registers. */
INLINE void weigh(const double *weights, int64_t rows, int64_t m, const Tile *y, Tile *sums) {
    const Lanes *values = (const Lanes *)y;
    Lanes *out = (Lanes *)sums;
    for (; rows >= 4; rows -= 4, weights += 4 * m, out += 8) {
        Lanes a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, c0 = {0}, c1 = {0}, d0 = {0}, d1 = {0};
        const double *a = weights, *b = a + m, *c = b + m, *d = c + m;
        for (int64_t i = 0; i < m; i++) {
            Lanes t0 = values[2 * i], t1 = values[2 * i + 1];
            a0 += a[i] * t0, a1 += a[i] * t1, b0 += b[i] * t0, b1 += b[i] * t1;
            c0 += c[i] * t0, c1 += c[i] * t1, d0 += d[i] * t0, d1 += d[i] * t1;
        }
        out[0] = a0, out[1] = a1, out[2] = b0, out[3] = b1, out[4] = c0, out[5] = c1, out[6] = d0, out[7] = d1;
    }
    for (; rows > 0; rows--, weights += m, out += 2) {
        Lanes a0 = {0}, a1 = {0};
        for (int64_t i = 0; i < m; i++) a0 += weights[i] * values[2 * i], a1 += weights[i] * values[2 * i + 1];
        out[0] = a0, out[1] = a1;
    }
}

/* null_rule_error in null_rules.py: the error on the unit interval, the decay, the highest pair of coefficients. What
 * is less than `tiny` is 0. */
INLINE void null_rule_error(const Tile *nulls, const double *size, const double *tiny, int64_t order_gap, double eps,
                            double *error, double *decay, double *highest) {
    Tile lowest, largest, base, power;
    for (int c = 0; c < WIDE; c++) {
        double quiet = 2.0 * eps * size[c] + tiny[c], slowest = 0.0;
        double before = larger(fabs(nulls[0][c]) + fabs(nulls[1][c]), tiny[c]), most = before;
        highest[c] = before;
        for (int j = 1; j < NULL_PAIRS; j++) {
            double pair = larger(fabs(nulls[2 * j][c]) + fabs(nulls[2 * j + 1][c]), tiny[c]);
            slowest = larger(slowest, (before - quiet) / pair);
            most = larger(most, pair);
            before = pair;
        }
        decay[c] = slowest, largest[c] = most, lowest[c] = before;
        base[c] = slowest / C.slow, power[c] = 1.0;
    }
    for (int64_t exponent = order_gap + NULL_PAIRS - 1; exponent; exponent >>= 1)
        for (int c = 0; c < WIDE; c++) {
            power[c] = exponent & 1 ? power[c] * base[c] : power[c];
            base[c] *= base[c];
        }
    for (int c = 0; c < WIDE; c++)
        error[c] = C.safety * (decay[c] < C.slow ? lowest[c] * power[c] : largest[c]);
}

/* How many cells are worked on together: as many as have their columns in a tile, or one that has several tiles. */
INLINE int64_t group_of(int64_t columns) { return columns < WIDE ? WIDE / columns : 1; }

/* Up to WIDE columns of values, of `width` cells' columns from `first` on, times the slope, by nodes; 0 beyond. */
INLINE void load(const double *y, const double *slope, int64_t m, int64_t n, int64_t columns, int64_t low,
                 int64_t first, int64_t width, Tile *to) {
    int64_t cell[WIDE];
    for (int64_t c = 0; c < width; c++) cell[c] = low + (columns == 1 ? c : (first + c) / columns);
    for (int64_t i = 0; i < m; i++) {
        const double *from = y + (i * n + low) * columns + first;
        if (width < WIDE) memset(to[i], 0, sizeof(Tile));
        if (slope)
            for (int64_t c = 0; c < width; c++) to[i][c] = from[c] * slope[i * n + cell[c]];
        else
            memcpy(to[i], from, width * sizeof(double));
    }
}

/* What is more than what is to be expected. What is not finite tells nothing. */
INLINE double excess(double seen, double expected) {
    double more = seen - expected;
    return more > 0.0 && more < INFINITY ? more : 0.0;
}

/* By how much f at the looks differs most from what the polynomial of the nodes is there, but for rounding, in columns
 * from c on that are one component. */
INLINE double largest_gap(int64_t m, const Tile *nodes, const Tile *looks, const Tile *seen, int64_t c, int64_t parts,
                          double eps, double blur) {
    double most = 0.0, largest = 0.0;
    for (int64_t i = 0; i < m; i++)
        largest = larger(largest, parts == 2 ? modulus(nodes[i][c], nodes[i][c + 1]) : fabs(nodes[i][c]));
    for (int k = 0; k < LOOKS; k++) {
        double a = looks[k][c] - seen[k][c], b = parts == 2 ? looks[k][c + 1] - seen[k][c + 1] : 0.0;
        most = worse(most, parts == 2 ? modulus(a, b) : fabs(a));
    }
    return excess(most, eps * largest + blur);
}

/* _splittable in interval.py */
INLINE int splittable(const Setting *set, int worth, int blunt, int narrow, double width) {
    int deep = narrow | (blunt & (set->eps <= DBL_EPSILON) & (width <= C.singular));
    return worth * (1 - (blunt | narrow) - deep);
}

/* Scale a cell's columns, and enter their sizes' sum. */
INLINE void scale_columns(Cell *cell, double factor, int64_t columns, int64_t parts) {
    cell->value = 0.0;
    for (int64_t j = 0; j < columns; j++) cell->columns[j] = factor == 0.0 ? 0.0 : cell->columns[j] * factor;
    for (int64_t j = 0; j < columns; j += parts) cell->value += size_at(cell->columns, j, parts);
}
