/* Values at single nodes that nothing around them explains: spikes.py in estimates, for one column of a cell. */

#pragma once

#include "tiles.h"

/* Where they are written: row, place, distance between nodes; in an order that threads leave to chance. */
typedef struct {
    int64_t *count;
    double *room;
} Spikes;

enum { SPIKE = 3, SPIKE_NULLS = 6, RISES = 4, BESIDE_EDGE = 4 };

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

/* Beside an end of the piece f may be singular: nothing is written. */
INLINE void write_node(const Spikes *to, const Rule *rule, const Cell *cell, double rate, int64_t at) {
    int lower = cell->start == 0.0, upper = cell->stop == 0.0 || cell->stop == 1.0;
    if (rate == 0.0 ? (lower && at <= 0) || (upper && at >= rule->m - 1) : (lower || upper) && at >= rule->m - 1) return;
    /* An edge was seen by the cell on its other side too: nodes beside it are the closest of all. */
    int64_t beside = at < 0 || at == rule->m ? BESIDE_EDGE : 1;
    write_spike(to, cell, rate, tau_of(rule, at - beside), tau_of(rule, at), tau_of(rule, at + beside));
}

/* By how much one value, or two neighbours, are above so many times the values on both sides. */
INLINE double above(double before, double here, double after) {
    return here - C.sharp * larger(before, after);
}

/* Which columns of a tile have nodes that rise from the nodes around them. */
INLINE void see_rising(int64_t m, const double *y, int64_t stride, double *seen) {
    Tile most;
    for (int c = 0; c < WIDE; c++) most[c] = 0.0;
    for (int64_t j = 1; j < m - 1; j++)
        for (int c = 0; c < WIDE; c++) {
            double before = fabs(y[(j - 1) * stride + c]), here = fabs(y[j * stride + c]);
            double after = fabs(y[(j + 1) * stride + c]), next = j < m - 2 ? fabs(y[(j + 2) * stride + c]) : INFINITY;
            most[c] = larger(most[c], larger(above(before, here, after), above(before, larger(here, after), next)));
        }
    memcpy(seen, most, sizeof most);
}

/* Whether f at an edge and the nodes beside it do. */
INLINE int rises_at_edge(double edge, const double *y, int64_t step) {
    double e = fabs(edge), a = fabs(y[0]), b = fabs(y[step]), c = fabs(y[2 * step]);
    return (above(0.0, e, a) > 0.0) | (above(0.0, larger(e, a), b) > 0.0) | (above(e, a, b) > 0.0) |
           (above(e, larger(a, b), c) > 0.0);
}

/* Note values that rise from those around them, by themselves or with one neighbour, and return how many; none where
 * there are many: waves. f at an edge counts where it is known, which only one column of linear nodes knows. */
INLINE int note_rising(const Setting *set, const double *y, int64_t stride, const Cell *cell, double rate,
                       const Spikes *to) {
    int64_t m = set->rule->m, n = 0, chosen[RISES];
    double all[MOST_NODES + 4], *at = all + 2; /* at[-1] and at[m] are at the edges, nothing is beyond these */
    int edges = set->columns == 1 && rate == 0.0;
    all[0] = at[m + 1] = 0.0;
    at[-1] = !edges || isnan(cell->at_start) ? INFINITY : fabs(cell->at_start);
    at[m] = !edges || isnan(cell->at_stop) ? INFINITY : fabs(cell->at_stop);
    for (int64_t j = 0; j < m; j++) at[j] = fabs(y[j * stride]);
    for (int64_t j = -1; j <= m; j++) {
        int rises = above(at[j - 1], at[j], at[j + 1]) > 0.0;
        rises |= j < m && at[j] >= at[j + 1] && above(at[j - 1], at[j], at[j + 2]) > 0.0;
        rises |= j > -1 && at[j] > at[j - 1] && above(at[j - 2], at[j], at[j + 1]) > 0.0;
        if (!rises || !(at[j] > set->tiny) || !(at[j] < INFINITY)) continue;
        if (n == RISES) return 0;
        chosen[n++] = j;
    }
    for (int64_t i = 0; i < n; i++) write_node(to, set->rule, cell, rate, chosen[i]);
    return (int)n;
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
    const double *front = y + c, *back = front + (set->rule->m - 1) * stride;
    if (set->columns == 1 && rate == 0.0)
        steep |= rises_at_edge(cell->at_start, front, stride) | rises_at_edge(cell->at_stop, back, -stride);
    if (steep && note_rising(set, y + c, stride, cell, rate, to)) return;
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
