/* Values at single nodes that nothing around them explains: spikes.py in estimates, for one column of a cell. */

#pragma once

#include "tiles.h"

/* Where they are written: row, place, distance between nodes; in an order that threads leave to chance. */
typedef struct {
    int64_t *count;
    double *room;
} Spikes;

enum { SPIKE = 3, SPIKE_NULLS = 6, RISES = 3 };

INLINE double known_size(double y) { return isnan(y) ? 0.0 : fabs(y); }

/* Write that the node `at` of a cell, whose nodes are logarithmic if the rate is not 0, or an edge (-1, m) saw more than
 * its neighbours `before` and `after`, which may be edges too. */
INLINE void write_spike(const Spikes *to, const Cell *cell, double rate, double before, double at, double after) {
    double *out = to->room + SPIKE * __atomic_fetch_add(to->count, 1, __ATOMIC_RELAXED);
    double span = cell->stop - cell->start, outer = cell->start >= 0.0 ? cell->stop : cell->start;
    double places[3] = {before, at, after};
    for (int i = 0; i < 3; i++)
        places[i] = rate == 0.0 ? cell->start + span * places[i] : outer * exp(rate * places[i]);
    out[0] = (double)cell->row, out[1] = places[1];
    out[2] = larger(fabs(places[1] - places[0]), fabs(places[2] - places[1]));
}

/* The node by its number, or an edge. */
INLINE double tau_of(const Rule *rule, int64_t at) {
    return at < 0 ? 0.0 : at < rule->m ? rule->nodes[at] : 1.0;
}

INLINE void write_node(const Spikes *to, const Rule *rule, const Cell *cell, double rate, int64_t at) {
    write_spike(to, cell, rate, tau_of(rule, at - 1), tau_of(rule, at), tau_of(rule, at + 1));
}

/* Which columns of a tile may have values that rise from both neighbours. What is below a root of the smallest number
 * is not compared here. */
INLINE void see_rising(int64_t m, const double *y, int64_t stride, double *seen) {
    Tile most = {0};
    for (int64_t j = 1; j < m - 1; j++)
        for (int c = 0; c < WIDE; c++) {
            double before = fabs(y[(j - 1) * stride + c]), here = fabs(y[j * stride + c]);
            double after = fabs(y[(j + 1) * stride + c]), steep = here * here - C.sharp * C.sharp * before * after;
            most[c] = larger(most[c], smaller(steep, smaller(here - before, here - after) * here));
        }
    memcpy(seen, most, sizeof most);
}

/* Note the highest values that rise from both their neighbours, or from their one where they are f at an edge; return
 * how many. Where f at an edge is not known it is taken for 0; only one column of linear nodes knows it at all. */
INLINE int note_rising(const Setting *set, const double *y, int64_t stride, const Cell *cell, double rate,
                       const Spikes *to) {
    int64_t m = set->rule->m;
    int n = 0, edges = set->columns == 1 && rate == 0.0;
    double limit = INFINITY;
    for (; n < RISES; n++) {
        int64_t at = -1;
        double most = set->tiny, before = 0.0, here = edges ? known_size(cell->at_start) : INFINITY;
        for (int64_t j = 0; j < m + 2; j++) {
            double after = j < m ? fabs(y[j * stride]) : j == m && edges ? known_size(cell->at_stop) : INFINITY;
            if (j == m + 1) after = 0.0;
            double side = j == 0 ? after : j == m + 1 ? before : sqrt(before) * sqrt(after);
            if (here > most && here < limit && here >= before && here >= after && here > C.sharp * side)
                at = j, most = here;
            before = here, here = after;
        }
        if (at < 0) break;
        limit = most;
        write_node(to, set->rule, cell, rate, at - 1);
    }
    return n;
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

/* Note the spikes of a column: values that rise, or the one that alone makes its coefficients what they are. */
INLINE void note_column(const Setting *set, const Tile *nulls, const double *y, int64_t stride, int64_t c, int steep,
                        int unresolved, double quiet, const Cell *cell, double rate, const Spikes *to) {
    if ((steep || unresolved) && note_rising(set, y + c, stride, cell, rate, to)) return;
    int64_t at = unresolved ? alone(set->rule, nulls, c, quiet) : -1;
    if (at >= 0) write_node(to, set->rule, cell, rate, at);
}

/* Note the looks of a cell. */
INLINE void note_looks(const Rule *rule, const Cell *cell, const Spikes *to) {
    for (int k = 0; k < LOOKS; k++) {
        int64_t j = 0;
        while (rule->nodes[j] < rule->looks[k]) j++;
        write_spike(to, cell, 0.0, rule->nodes[j - 1], rule->looks[k], rule->nodes[j]);
    }
}
