/* Where f is called on boxes, and what linear functionals make of its values: the inside of mesh/boxes.py, and of what
 * estimates/boxes.py reads. */

#include "boxes.h"

enum { NUMBERS = 32, MOST_ORBITS = 64 }; /* so many columns at a time, which stay in registers */

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

/* Values of f on a block of n cells, with several columns each, and where what is read of them goes: the matrices of
 * `Readings`, of which the rows have room for `room` cells. */
typedef struct {
    const double *y;
    double *values, *sizes;
    int64_t n, room;
} Reading;

/* The sums over all orbits of `width` columns. A NaN anywhere shows in the sum of the sizes, and need be looked for
 * there alone. */
INLINE void sum_orbits(const BoxRule *rule, const double *y, int64_t stride, int64_t width, double (*sums)[NUMBERS],
                       double *size, double *height) {
    double most[NUMBERS] = {0.0}, total[NUMBERS] = {0.0};
    for (int64_t g = 0; g < rule->g; g++) {
        double sum[NUMBERS] = {0.0}, moduli[NUMBERS] = {0.0};
        for (int64_t k = 0; k < rule->orbits[g]; k++, y += stride)
            for (int64_t i = 0; i < width; i++) {
                double modulus = fabs(y[i]);
                sum[i] += y[i];
                moduli[i] += modulus;
                most[i] = larger(most[i], modulus);
            }
        for (int64_t i = 0; i < width; i++) total[i] += rule->sizes[g] * moduli[i];
        memcpy(sums[g], sum, sizeof sum);
    }
    for (int64_t i = 0; i < width; i++) size[i] = total[i], height[i] = total[i] == total[i] ? most[i] : NAN;
}

/* The functionals of `width` columns from the number `first` of their block on. */
INLINE void read_columns(const BoxSetting *set, const Reading *to, int64_t first, int64_t width, double *height) {
    const BoxRule *rule = set->rule;
    int64_t stride = to->n * set->columns, room = to->room * set->columns, rows = 1 + rule->nulls;
    const double *y = to->y + first;
    double sums[MOST_ORBITS][NUMBERS], size[NUMBERS], *out = to->values + first;
    sum_orbits(rule, y, stride, width, sums, size, height);
    for (int64_t r = 0; r < rows; r++) {
        double sum[NUMBERS] = {0.0};
        for (int64_t g = 0; g < rule->g; g++)
            for (int64_t i = 0; i < width; i++) sum[i] += rule->functionals[r * rule->g + g] * sums[g][i];
        memcpy(out + r * room, sum, (size_t)width * sizeof *sum);
    }
    memcpy(out + rows * room, size, (size_t)width * sizeof *size);
    out += (rows + 1) * room;
    for (int64_t axis = 0; axis < rule->d; axis++)
        for (int64_t r = 0; r < 6; r++) {
            double sum[NUMBERS] = {0.0};
            const double *face = y + (rule->m + 2 * axis + r) * stride;
            for (int64_t k = 0; k < rule->s; k++)
                for (int64_t i = 0; i < width; i++)
                    sum[i] += rule->along[r * rule->s + k] * y[rule->lines[axis * rule->s + k] * stride + i];
            for (int64_t i = 0; r < 2 && i < width; i++) sum[i] -= face[i];
            memcpy(out + (r * rule->d + axis) * room, sum, (size_t)width * sizeof *sum);
        }
}

/* The largest size of f in cells, and close to each of their faces. */
INLINE void read_sizes(const BoxSetting *set, const Reading *to, int64_t first, int64_t count) {
    const BoxRule *rule = set->rule;
    int64_t c = set->columns;
    for (int64_t r = 0; r < 2 * rule->d; r++)
        for (int64_t i = first; i < first + count; i++) {
            double most = 0.0;
            for (int64_t j = 0; j < c; j++) most = worse(most, fabs(to->y[((rule->m + r) * to->n + i) * c + j]));
            to->sizes[(1 + r) * to->room + i] = most;
        }
}

EXPORT void read_boxes(const BoxSetting *set, const Reading *to) {
    int64_t c = set->columns, some = c < NUMBERS ? NUMBERS / (c ? c : 1) : 1;
    int threads = sharing(set->rule->rows * to->n, set->threads);
    PARALLEL(threads)
    for (int64_t first = 0; first < to->n; first += some) {
        int64_t count = to->n - first < some ? to->n - first : some;
        double height[NUMBERS];
        for (int64_t i = first; i < first + count; i++) to->sizes[i] = 0.0;
        for (int64_t at = first * c; at < (first + count) * c; at += NUMBERS) {
            int64_t left = (first + count) * c - at, width = left < NUMBERS ? left : NUMBERS;
            if (left >= NUMBERS) read_columns(set, to, at, NUMBERS, height);
            else read_columns(set, to, at, left, height);
            for (int64_t i = 0; i < width; i++)
                to->sizes[(at + i) / c] = worse(to->sizes[(at + i) / c], height[i]);
        }
        read_sizes(set, to, first, count);
    }
}
