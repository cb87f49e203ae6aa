/* Where boxes lie, and where f is called on them: the inside of mesh/boxes.py. */

#include "boxes.h"

/* Where n cells lie in the boxes of their integrals: corner and side (d, n), and volume. */
EXPORT void lay_out_boxes(const BoxSetting *set, const int64_t *row, const int64_t *level, const int64_t *place,
                          int64_t n, double *corner, double *side, double *volume) {
    int threads = sharing(n, set->threads);
    PARALLEL(threads)
    for (int64_t i = 0; i < n; i++) {
        const double *a = set->a + row[i] * set->step, *b = set->b + row[i] * set->step;
        volume[i] = 1.0;
        for (int64_t axis = 0; axis < set->rule->d; axis++) {
            int64_t at = axis * n + i;
            double width = power_of_2(-level[at]), whole = b[axis] - a[axis];
            side[at] = whole * width;
            corner[at] = a[axis] + whole * ((double)place[at] * width);
            volume[i] *= side[at];
        }
    }
}

/* The nodes of `count` cells from `low` on, out of n: x (d, rows, count). One coordinate after another in memory: sums
 * over the coordinates, and functions of one, are quicker. */
EXPORT void place_boxes(const BoxSetting *set, const double *corner, const double *side, int64_t n, int64_t low,
                        int64_t count, double *x) {
    int64_t rows = set->rule->rows, all = set->rule->d * rows;
    int threads = sharing(rows * count, set->threads);
    PARALLEL(threads)
    for (int64_t r = 0; r < all; r++) {
        const double *restrict first = corner + r / rows * n + low, *restrict step = side + r / rows * n + low;
        double tau = set->rule->nodes[r], *restrict to = x + r * count;
        for (int64_t i = 0; i < count; i++) to[i] = first[i] + step[i] * tau;
    }
}
