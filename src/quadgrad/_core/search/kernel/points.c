/* Points of the unit cube through the maps of all integrals, and onto their boxes: the inside of grid.py and box.py. */

#include "kernel.h"

enum { NEAR = 256 }; /* Points at a time: what is known of them stays in the nearest cache from one axis to the next. */

/* Points, maps and boxes; see mapping.py. Steps are in numbers: from one replicate and axis of `u` to the next, one
 * point, integral and axis of `x`, one integral's box to the next. `even` is the share of points that stay. */
typedef struct {
    int64_t d, batch, bins, replicates, count, threads, u_replicate, u_axis, x_point, x_integral, x_axis, box_integral;
    double even, below_one;
    const double *u, *grid, *table, *start, *side, *low, *high;
    double *x, *factor;
    int64_t *bin;
} Maps;

/* In which bin a place is: the last that does not begin behind it. */
INLINE int32_t bin_at(const double *ends, int64_t bins, double place) {
    int64_t at = 0;
    for (int64_t left = bins; left > 1; left -= left / 2) at += ends[at + left / 2] <= place ? left / 2 : 0;
    return (int32_t)at;
}

/* One axis of n points: where they come to lie, by what the map stretches there, and in which bin. */
INLINE void map_axis(const Maps *to, int64_t axis, int64_t who, const double *restrict u, int64_t n, const int *even,
                     int evens, double *restrict y, double *restrict stretch, int32_t *restrict bin) {
    int64_t bins = to->bins, column = axis * to->batch + who;
    const double *restrict ends = to->table + column * bins, *restrict stretches = ends + to->d * to->batch * bins;
    double scale = (double)bins * to->below_one, shift = axis ? 0.0 : to->even * (double)bins, each = 1.0 / (double)bins;
    double wider = axis ? 1.0 : to->below_one / (1.0 - to->even);
    for (int64_t i = 0; i < n; i++) {
        /* Those that stay may be negative on the first axis: their modulus is some bin. */
        double place = fabs((u[i] * scale - shift) * wider);
        int32_t at = (int32_t)place;
        bin[i] = at;
        stretch[i] = stretches[at];
        y[i] = ends[at] + (place - (double)at) * stretches[at] * each;
    }
    const double *grid = to->grid + column * (bins + 1);
    for (int k = 0; k < evens; k++) {
        int i = even[k];
        y[i] = axis ? u[i] : u[i] / to->even;
        bin[i] = bin_at(grid, bins, y[i]);
        stretch[i] = stretches[bin[i]];
    }
}

/* Points `first` to before `first + n` of a replicate for one integral. */
INLINE void map_some(const Maps *to, int64_t who, int64_t replicate, int64_t first, int64_t n) {
    double y[NEAR], stretch[NEAR], all[NEAR];
    int32_t bin[NEAR];
    int even[NEAR], evens = 0;
    const double *u = to->u + replicate * to->u_replicate + first;
    int64_t point = replicate * to->count + first;
    for (int i = 0; i < n; i++) {
        even[evens] = i;
        evens += u[i] < to->even;
        all[i] = 1.0;
    }
    for (int64_t axis = 0; axis < to->d; axis++, u += to->u_axis) {
        map_axis(to, axis, who, u, n, even, evens, y, stretch, bin);
        int64_t box = who * to->box_integral + axis, step = to->x_point;
        double start = to->start[box], side = to->side[box], low = to->low[box], high = to->high[box];
        double *x = to->x + point * step + who * to->x_integral + axis * to->x_axis;
        for (int64_t i = 0; i < n; i++) {
            all[i] *= stretch[i];
            x[i * step] = smaller(larger(y[i] * side + start, low), high);
        }
        if (!to->bin) continue;
        int64_t column = axis * to->batch + who, *bins = to->bin + column * to->replicates * to->count + point;
        for (int64_t i = 0; i < n; i++) bins[i] = column * to->bins + bin[i];
    }
    /* Written so that a product of stretches that overflows, or vanishes, is harmless. */
    double *factor = to->factor + point * to->batch + who;
    for (int64_t i = 0; i < n; i++) factor[i * to->batch] = 1.0 / ((1.0 / all[i]) * (1.0 - to->even) + to->even);
}

EXPORT void map_points(const Maps *to) {
    int64_t rows = to->batch * to->replicates;
    int threads = sharing(rows * to->count, to->threads);
    PARALLEL(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < to->count; first += NEAR)
            map_some(to, row / to->replicates, row % to->replicates, first,
                     to->count - first < NEAR ? to->count - first : NEAR);
}
