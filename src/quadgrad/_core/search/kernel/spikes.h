/* Values at single nodes that nothing around them explains: spikes.py in estimates, for one column of a cell. */

#pragma once

#include "tiles.h"

/* Where they are written: row, place, distance between nodes; in an order that threads leave to chance. */
typedef struct {
    int64_t *count;
    double *room;
} Spikes;

enum { SPIKE = 3, SPIKE_NULLS = 6 };

/* The highest value that rises from both neighbours, or -1. */
INLINE int64_t rising(const Setting *set, const double *y, int64_t stride, double quiet) {
    int64_t at = -1;
    double most = larger(quiet, set->tiny);
    for (int64_t j = 1; j < set->rule->m - 1; j++) {
        double here = fabs(y[j * stride]), before = fabs(y[(j - 1) * stride]), after = fabs(y[(j + 1) * stride]);
        if (!(here > most && here >= before && here >= after)) continue;
        if (here > C.sharp * sqrt(before) * sqrt(after)) at = j, most = here;
    }
    return at;
}

/* The node where one value that is off would make the highest coefficients what they are, or -1. */
INLINE int64_t alone(const Rule *rule, const Tile *nulls, int64_t c, double quiet) {
    const double *rows = rule->all + rule->m;
    double whole = 0.0, most = 0.0, off = 0.0;
    int64_t at = -1;
    for (int k = 0; k < SPIKE_NULLS; k++) whole = larger(whole, fabs(nulls[k][c]));
    if (!(whole > 0.0 && whole < INFINITY)) return -1;
    double part[SPIKE_NULLS], squares = 0.0;
    for (int k = 0; k < SPIKE_NULLS; k++) part[k] = nulls[k][c] / whole, squares += part[k] * part[k];
    for (int64_t j = 0; j < rule->m; j++) {
        double product = 0.0, own = 0.0;
        for (int k = 0; k < SPIKE_NULLS; k++)
            product += part[k] * rows[k * rule->m + j], own += rows[k * rule->m + j] * rows[k * rule->m + j];
        double share = product * product / own;
        if (share > most) most = share, at = j, off = fabs(product) / own * whole;
    }
    return most > C.alike * squares && off > quiet ? at : -1;
}

/* Note a spike of column c; values stand at y, `largest` is the largest of them, `unseen` what rounding hides. */
INLINE void note_spike(const Setting *set, double eps, const Tile *nulls, const double *y, int64_t stride, int64_t c,
                       double largest, double unseen, const Cell *cell, const Spikes *to) {
    const Rule *rule = set->rule;
    double quiet = C.above * eps * larger(largest, unseen), span = cell->stop - cell->start;
    int64_t at = rising(set, y + c, stride, 0.0);
    if (at < 0) at = alone(rule, nulls, c, quiet);
    if (at < 0) return;
    int64_t before = at > 0 ? at - 1 : 0, after = at < rule->m - 1 ? at + 1 : at;
    double *out = to->room + SPIKE * __atomic_fetch_add(to->count, 1, __ATOMIC_RELAXED);
    out[0] = (double)cell->row, out[1] = cell->start + span * rule->nodes[at];
    out[2] = 0.5 * span * (rule->nodes[after] - rule->nodes[before]);
}
