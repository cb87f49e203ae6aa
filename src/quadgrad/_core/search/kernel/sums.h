/* What an integral is, and may be off by, while it runs. */

#pragma once

#include "kernel.h"

INLINE void copy(const double *from, int64_t n, double *to) {
    for (int64_t j = 0; j < n; j++) to[j] = from[j];
}

INLINE void add(const double *from, int64_t n, double *to) {
    for (int64_t j = 0; j < n; j++) to[j] += from[j];
}

/* allowed_error in search/decide.py, of the value's largest component */
INLINE double allowed_error(const Round *round, double size, double floor) {
    double allowed = larger(round->rtol * size, round->atol);
    if (size <= 5.0 * floor) allowed = larger(allowed, 5.0 * floor);
    return larger(allowed, round->nothing);
}

/* An integral's sums over its cells at hand and those that have settled; of a value of several columns, which go to the
 * totals, the size of the largest component and the sum of all sizes. */
typedef struct {
    double value, largest, sizes, error, floor, narrow;
} Sums;

INLINE void add_cells(const Cell *cells, int64_t n, int64_t tail, int64_t beyond, int64_t *next, double *totals,
                      Sums *s) {
    int64_t i = *next;
    for (const Cell *cell = cell_at(cells, i, tail); i < n && cell->row < beyond; cell = cell_at(cells, ++i, tail)) {
        s->error += cell->error, s->floor += cell->floor, s->narrow += cell->refinable < 0 ? cell->error : 0.0;
        if (tail) add(cell->columns, tail, totals);
        else s->value += cell->value;
    }
    *next = i;
}

INLINE void size_up(const double *columns, int64_t tail, int64_t parts, Sums *s) {
    s->largest = s->sizes = tail ? 0.0 : fabs(s->value);
    for (int64_t j = 0; j < tail; j += parts) {
        double size = size_at(columns, j, parts);
        s->largest = worse(s->largest, size), s->sizes += size;
    }
}

/* The first of n cells in a row that is not before the given one. */
INLINE int64_t find(const Cell *cells, int64_t n, int64_t tail, int64_t row) {
    int64_t low = 0;
    while (low < n) {
        int64_t middle = (low + n) / 2;
        if (cell_at(cells, middle, tail)->row < row) low = middle + 1;
        else n = middle;
    }
    return low;
}
