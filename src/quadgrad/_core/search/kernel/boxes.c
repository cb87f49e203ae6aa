/* In which boxes points are: the inside of neighbours.py, which explains it. */

#include "boxes.h"

/* Put those that are in the upper half behind the others, and return how many are not. */
INLINE int64_t part_cells(const Locating *to, int64_t *cell, int64_t count, int64_t axis, int64_t depth) {
    int64_t lower = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t c = cell[i], at = axis * to->n + c;
        int64_t upper = (to->place[at] >> (to->level[at] - depth - 1)) & 1;
        cell[i] = cell[lower], cell[lower] = c;
        lower += !upper;
    }
    return lower;
}

/* The same, from one place to another: each number is written to both ends, and stays where it belongs. */
INLINE int64_t part_points(const Locating *to, const int64_t *restrict at, int64_t *restrict other, int64_t count,
                           int64_t axis, double middle) {
    const double *restrict point = to->point + axis * to->k;
    int64_t lower = 0, upper = count - 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t p = at[i], above = point[p] >= middle;
        other[lower] = p, other[upper] = p;
        lower += !above, upper -= above;
    }
    return lower;
}

/* Find the bisections of a box again, whose depth along each axis and lower corner (in boxes of that depth) are given.
 * There is `other` room for as many points. To walk down a tree of boxes with one point after another is slower: 40 ns
 * each, and 30 so, as each step waits for memory. */
static void locate(const Locating *to, int64_t *cell, int64_t cells, int64_t *at, int64_t *other, int64_t points,
                   int64_t *depth, double *corner) {
    if (points == 0 || cells == 0) return;
    int64_t axis = 0;
    for (int deeper = 0; cells > 1 && axis < to->d; axis += !deeper) {
        deeper = 1;
        for (int64_t i = 0; i < cells && deeper; i++) deeper = to->level[axis * to->n + cell[i]] > depth[axis];
        if (deeper) break;
    }
    if (cells == 1 || axis == to->d) {
        for (int64_t i = 0; i < points; i++) to->answer[at[i]] = cell[0];
        return;
    }
    double before = corner[axis], middle = ldexp(before + 0.5, (int)-depth[axis]);
    int64_t lower = part_cells(to, cell, cells, axis, depth[axis]);
    int64_t near = part_points(to, at, other, points, axis, middle);
    depth[axis]++;
    corner[axis] = 2.0 * before;
    locate(to, cell, lower, other, at, near, depth, corner);
    corner[axis] = 2.0 * before + 1.0;
    locate(to, cell + lower, cells - lower, other + near, at + near, points - near, depth, corner);
    depth[axis]--;
    corner[axis] = before;
}

/* Find for points, whose numbers are given, the cells that they are in, whose numbers are put in order. */
void locate_all(const Locating *to, int64_t *cell, int64_t cells, int64_t *at, int64_t *other, int64_t points) {
    int64_t depth[MOST_AXES] = {0};
    double corner[MOST_AXES] = {0.0};
    locate(to, cell, cells, at, other, points, depth, corner);
}

/* For `batch` integrals, of which each has the numbers of its cells and points between `first` and the next: find the
 * cells that the points are in. */
EXPORT void locate_boxes(const Locating *to, int64_t batch, int64_t *cell, const int64_t *first_cell, int64_t *at,
                         int64_t *other, const int64_t *first_point) {
    for (int64_t i = 0; i < batch; i++)
        locate_all(to, cell + first_cell[i], first_cell[i + 1] - first_cell[i], at + first_point[i],
                   other + first_point[i], first_point[i + 1] - first_point[i]);
}
