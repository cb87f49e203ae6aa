/* Boxes in several dimensions, in double precision: the same decisions as those of the tensor operations
 * (estimates/boxes.py, search/boxes/), which explain them and which the tests hold these to.
 *
 * Cells are columns of a few matrices, as in `Cells` of mesh/protocol.py, of which each row has `stride` numbers. */

#pragma once

#include "kernel.h"

enum { MOST_AXES = 16 }; /* more of them the caller leaves to tensors */

/* The constants of the Python modules, under their names there. */
typedef struct {
    double safety, slow, rough, straight, kink, rounded, smooth, hidden, tie, unresolved, narrowest;
    double caution, learnt, least, place, beyond, floor, rougher, share, negligible, kept, enough, faint;
    int64_t ahead, deepest, farthest, patience, bisections, most, max_nfev, roundoff, nonfinite, divergent, converged;
} BoxConstants;

/* A rule with m nodes, and places close to the centres of the faces behind them, `rows` in all, one axis after the
 * other. Nodes of one of the `g` orbits, one after another, share their weights: `functionals` (1 + nulls, g) are these
 * and the null rules', in three `levels`, `sizes` (g,) their absolute values. `lines` (d, s) are the nodes on each
 * axis, of which `along` (6, s) makes what is close to the faces and the highest coefficients. */
typedef struct {
    const double *nodes, *functionals, *sizes, *along;
    const int64_t *orbits, *lines;
    int64_t d, m, rows, g, nulls, s, levels[3];
    double outermost;
} BoxRule;

/* What stays the same during a search: values have so many real `columns`, of which a complex number has two `parts`.
 * Boxes from a to b, `step` numbers from one to the next, `flat` if no side is infinite. eps is that of x, `beside` how
 * close to a face f is called. */
typedef struct {
    const BoxConstants *c;
    const BoxRule *rule;
    const double *a, *b;
    int64_t step, flat, columns, parts, threads;
    double eps, beside;
} BoxSetting;

/* Cells: `sums` has a row for each column, the error and the floor; `whole` integral, can be split, integral among all,
 * axis, levels and places; `real` height, raw, trust, least, sizes close to the faces, and four of doubts. */
typedef struct {
    double *sums, *real;
    int64_t *whole, stride;
} BoxColumns;

/* 2 to a power that is no larger than the halvings of a cell. */
INLINE double power_of_2(int64_t power) {
    union { int64_t bits; double number; } made = {(power + 1023) << 52};
    return made.number;
}

enum { OWNER, SPLITTABLE, ROW, AXIS, LEVEL };
enum { HEIGHT, RAW, TRUST, LEAST, FACES };

/* Cells (d rows of n levels and places) and points (d rows of k); both as numbers that are put in order. */
typedef struct {
    int64_t d, n, k;
    const int64_t *level, *place;
    const double *point;
    int64_t *answer;
} Locating;

void locate_all(const Locating *to, int64_t *cell, int64_t cells, int64_t *at, int64_t *other, int64_t points);
