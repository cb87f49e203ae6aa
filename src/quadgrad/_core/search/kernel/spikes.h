/* Values at single nodes that nothing around them explains: spikes.py in estimates, for one column of a cell. */

#pragma once

#include "tiles.h"

/* Where they are written: row, place, distance between nodes; in an order that threads leave to chance. */
typedef struct {
    int64_t *count;
    double *room;
} Spikes;

enum { SPIKE = 3, SPIKE_NULLS = 6, JOINT = 3, JOINT_PLACES = 2 + LOOKS, RISES = 4, BESIDE_EDGE = 4 };

/* At most so many of a column: nodes that rise, or one alone; looks; one that all places of a first cell tell of. */
enum { MOST_SPIKES = RISES + LOOKS + 1 };

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

/* Mark columns of a tile where f at an edge and the nodes beside it do, `step` numbers from one to the next. */
INLINE void see_rising_at_edge(const double *edge, const double *y, int64_t step, double *seen) {
    for (int c = 0; c < WIDE; c++) {
        double e = fabs(edge[c]), a = fabs(y[c]), b = fabs(y[step + c]), d = fabs(y[2 * step + c]);
        double most = larger(above(0.0, e, a), above(0.0, larger(e, a), b));
        most = larger(most, larger(above(e, a, b), above(e, larger(a, b), d)));
        seen[c] = larger(seen[c], most);
    }
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

INLINE Lanes choose(Bits first, Lanes a, Lanes b) { return (Lanes)(((Bits)a & first) | ((Bits)b & ~first)); }

/* For each column of a tile the one of m values that, were it off, would make `rows` null rules what they are, as near
 * as that can be: which part of their squares it explains, 0 where they are not finite, and by how much it is off. */
INLINE void see_alone(const double *directions, const double *lengths, int64_t m, int rows, const Tile *nulls,
                      double *node, double *alike, double *off) {
    Tile whole, part[SPIKE_NULLS], squares, at, best, parts[MOST_NODES + JOINT_PLACES];
    for (int c = 0; c < WIDE; c++) whole[c] = squares[c] = 0.0;
    for (int k = 0; k < rows; k++)
        for (int c = 0; c < WIDE; c++) whole[c] = larger(whole[c], fabs(nulls[k][c]));
    for (int k = 0; k < rows; k++)
        for (int c = 0; c < WIDE; c++) part[k][c] = nulls[k][c] / whole[c], squares[c] += part[k][c] * part[k][c];
    weigh(directions, m, rows, part, parts);
    Lanes zero = {0}, most[2] = {zero, zero}, chosen[2] = {zero, zero}, where[2] = {zero - 1.0, zero - 1.0};
    for (int64_t j = 0; j < m; j++)
        for (int k = 0; k < 2; k++) {
            Lanes product = ((const Lanes *)parts[j])[k], share = product * product;
            Bits is_more = share > most[k];
            where[k] = choose(is_more, zero + (double)j, where[k]), chosen[k] = choose(is_more, product, chosen[k]);
            most[k] = choose(is_more, share, most[k]);
        }
    memcpy(at, where, sizeof at), memcpy(best, chosen, sizeof best);
    for (int c = 0; c < WIDE; c++) {
        int is_one = whole[c] > 0.0 && whole[c] < INFINITY && at[c] >= 0.0;
        node[c] = is_one ? at[c] : 0.0;
        alike[c] = is_one ? best[c] * best[c] / squares[c] : 0.0;
        off[c] = is_one ? fabs(best[c]) * lengths[(int64_t)at[c]] * whole[c] : 0.0;
    }
}

/* Note the spikes of a column: values that rise, or the one that `alone` makes its coefficients what they are, or -1. */
INLINE void note_column(const Setting *set, const double *y, int64_t stride, int64_t c, int steep, int64_t alone,
                        const Cell *cell, double rate, const Spikes *to) {
    if (steep && note_rising(set, y + c, stride, cell, rate, to)) return;
    if (alone >= 0) write_node(to, set->rule, cell, rate, alone);
}

/* Note a look of a cell. */
INLINE void note_look(const Rule *rule, const Cell *cell, int64_t look, const Spikes *to) {
    int64_t j = 0;
    while (rule->nodes[j] < rule->looks[look]) j++;
    write_spike(to, cell, 0.0, rule->nodes[j - 1], rule->looks[look], rule->nodes[j]);
}

/* Note the one value of first cells that is off what all others say, where both edges are known: find_alone in
 * spikes.py. `y` and `slope` begin with the edges. */
INLINE void note_alone(const Setting *set, int64_t columns, const double *y, const double *slope, int64_t n, int64_t low,
                       int64_t first, int64_t width, const double *reach, const double *scale, const double *quiet,
                       const Cell *cells, const Spikes *to) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, all = m + JOINT_PLACES, loud = 0;
    Tile values[MOST_NODES + JOINT_PLACES], nulls[JOINT], place, alike, off;
    load(y, slope, all, n, columns, low, first, width, values);
    for (int c = 0; c < WIDE; c++) {
        /* What was seen beside the ends is moved there along the slope to the nodes beside them. */
        double near = beside_ends(set, reach[c], scale[c]), part = near / (rule->nodes[0] - near);
        values[0][c] += part * (values[0][c] - values[1][c]);
        values[m + 1][c] += part * (values[m + 1][c] - values[m][c]);
    }
    weigh(rule->joint, JOINT, all, values, nulls);
    for (int k = 0; k < JOINT; k++)
        for (int c = 0; c < WIDE; c++) loud += fabs(nulls[k][c]) > 0.5 * quiet[c]; /* of three, one is that large */
    if (!loud) return;
    see_alone(rule->joint_alone, rule->joint_lengths, all, JOINT, nulls, place, alike, off);
    for (int64_t c = 0; c < width; c++) {
        const Cell *cell = cell_at(cells, (first + c) / columns, tail_of(set));
        int64_t at = (int64_t)place[c];
        double told = off[c] / rule->joint_lengths[at], left = told * sqrt(larger(1.0 / alike[c] - 1.0, 0.0)), most = 0.0;
        for (int64_t i = 0; i < all; i++) most = larger(most, fabs(values[i][c]));
        int smooth = left < larger(C.left * most, quiet[c]);
        if (!(alike[c] > (smooth ? C.nearly_alike : C.jointly_alike) && told > quiet[c])) continue;
        if (!isfinite(cell->at_start) || !isfinite(cell->at_stop)) continue;
        if (at < m + 2) write_node(to, rule, cell, 0.0, at - 1);
        else note_look(rule, cell, at - m - 2, to);
    }
}
