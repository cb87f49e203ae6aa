/* What f at places that arguments name holds against cells: the other body of Witnesses.ask in search/looks/witnesses.py. */

#include "tiles.h"

/* The numbers of witnesses.py; of each row k places, NaN where there is none or it is done, and which of the values of f
 * times the slope is there; the largest cell of each integral; the weights of the polynomial's barycentric form; how
 * many are left. */
typedef struct {
    double rtol, atol, spacing, rounding, settles, matters;
    double *place;
    const int64_t *slot;
    const double *value;
    double *size;
    const double *weights;
    int64_t k, left;
} Witnesses;

/* The arguments of f that are looked at: k pointers, and what to add for the next integral; and, if it is not all, in
 * which pieces. */
typedef struct {
    const double *const *arguments;
    const int64_t *steps;
    const int8_t *mine;
    int64_t k, batch;
    double away;
} Named;

/* x as a fraction of a piece, and dx/dfraction there; see interval.py. */
INLINE double fraction_of(Piece p, double x, double *slope) {
    if (p.up > 0.0 && p.down > 0.0) {
        double root = hypot(x, 2.0), from = 2.0 / (2.0 - x + root), rest = 2.0 / (2.0 + x + root);
        *slope = 1.0 / (rest * rest) + 1.0 / (from * from);
        return x < 0.0 ? from : 1.0 - rest; /* neither cancels */
    }
    if (p.up + p.down > 0.0) {
        double away = p.up > 0.0 ? x - p.lower : p.upper - x;
        *slope = (1.0 + away) * (1.0 + away);
        return p.up > 0.0 ? away / (1.0 + away) : 1.0 / (1.0 + away);
    }
    *slope = p.upper - p.lower;
    return (x - p.lower) / *slope;
}

/* Enter the places (rows, k) that arguments name, and list what is at each: x, whose, the slope, and which of the places
 * it is; return how many there are. Equal ones of an integral are entered once. */
EXPORT int64_t name_places(const Setting *set, const Named *named, double *place, int64_t *slot, double *x,
                           int64_t *owner, double *slope, int64_t *at) {
    int64_t n = 0, k = named->k;
    for (int64_t row = 0; row < named->batch * set->count; row++, place += k, slot += k) {
        Piece p = piece_of(set, row);
        double lower = p.down > 0.0 ? -INFINITY : p.lower, upper = p.up > 0.0 ? INFINITY : p.upper;
        for (int64_t j = 0; j < k; j++) {
            double here = named->arguments[j][row / set->count * named->steps[j]], along;
            place[j] = NAN;
            if (!(here > lower && here < upper) || (named->mine && !named->mine[row])) continue;
            double part = fraction_of(p, here, &along);
            int again = !(part > named->away && part < 1.0 - named->away);
            for (int64_t i = 0; i < j; i++) again |= place[i] == part;
            if (again) continue;
            place[j] = part, slot[j] = n, x[n] = here, owner[n] = row / set->count, slope[n] = along;
            at[n++] = row * k + j;
        }
    }
    return n;
}

/* Witnesses in sight: in which cell, which of all, where in the cell, and by what f times the slope is multiplied. */
typedef struct {
    int64_t cell[WIDE], at[WIDE], count;
    Tile tau, own;
} Hits;

/* Where a witness is in a cell, and by what f times the slope there is multiplied; 0 where it is not in sight. Beyond 1
 * it lies between the innermost node and the end. */
INLINE double locate(const Cell *cell, int64_t logarithmic, double rate, double place, double *tau) {
    double width = cell->stop - cell->start, begin = cell->start < 0.0 ? 1.0 + cell->start : cell->start;
    if (!(place > begin && place < begin + width)) return 0.0;
    *tau = (place - begin) / width;
    if (!logarithmic) return width;
    double fraction = cell->start < 0.0 ? place - 1.0 : place;
    *tau = log(fraction / (cell->start < 0.0 ? cell->start : cell->stop)) / rate;
    return fabs(fraction * rate);
}

/* A question: the cells that are asked, f at their nodes, and what goes with it. */
typedef struct {
    const Setting *set;
    Witnesses *all;
    double noise;
    Cell *cells;
    int64_t n;
    const double *y, *slope;
    Layout layout;
} Question;

/* How far f at the witnesses is from the polynomials of their cells, less what is to be expected, of the component from
 * column q on; `part` are the nodes' shares in the polynomials there. */
INLINE void unexplained(const Question *ask, const Hits *hits, const Tile *part, int64_t q, int64_t parts, Tile most) {
    const Rule *rule = ask->set->rule;
    int64_t m = rule->m, columns = ask->set->columns;
    Tile off = {0}, highest = {0}, second = {0}, largest = {0}, within = {0};
    double size[MOST_NODES][WIDE];
    for (int64_t p = 0; p < parts; p++) {
        Tile gap = {0}, high = {0}, next = {0};
        for (int64_t i = 0; i < m; i++) {
            Tile y;
            for (int64_t l = 0; l < WIDE; l++) {
                int64_t c = hits->cell[l];
                double factor = ask->layout.scale[c] * (ask->slope ? ask->slope[i * ask->n + c] : 1.0);
                y[l] = ask->y[(i * ask->n + c) * columns + q + p] * factor;
            }
            double first = rule->all[m + i], other = rule->all[2 * m + i];
            for (int l = 0; l < WIDE; l++) {
                gap[l] += part[i][l] * y[l], high[l] += first * y[l], next[l] += other * y[l];
                size[i][l] = p ? modulus(size[i][l], y[l]) : fabs(y[l]);
            }
        }
        for (int64_t l = 0; l < WIDE; l++) {
            double value = ask->all->value[ask->all->slot[hits->at[l]] * columns + q + p] * hits->own[l];
            off[l] = p ? modulus(off[l], gap[l] - value) : fabs(gap[l] - value);
            highest[l] = p ? modulus(highest[l], high[l]) : fabs(high[l]);
            second[l] = p ? modulus(second[l], next[l]) : fabs(next[l]);
        }
    }
    for (int64_t i = 0; i < m; i++)
        for (int l = 0; l < WIDE; l++) largest[l] = larger(largest[l], size[i][l]);
    for (int64_t i = m - INNERMOST; i < m; i++)
        for (int l = 0; l < WIDE; l++) within[l] = larger(within[l], size[i][l]);
    for (int64_t l = 0; l < WIDE; l++) {
        if (hits->tau[l] >= 1.0) off[l] -= within[l];
        double shaken = fabs(ask->layout.reach[hits->cell[l]] / ask->layout.scale[hits->cell[l]]) + 1.0;
        off[l] -= C.beyond * (highest[l] + second[l]) + ask->all->rounding * ask->noise * shaken * largest[l];
        most[l] = larger(most[l], off[l] < INFINITY ? off[l] : 0.0);
    }
}

/* Have the witnesses in sight say how far f is off, and add that to the errors of their cells. */
static void settle(const Question *ask, Hits *hits) {
    const Rule *rule = ask->set->rule;
    Witnesses *all = ask->all;
    Tile part[MOST_NODES], sum = {0}, most = {0};
    for (int64_t l = hits->count; l < WIDE; l++) /* the rest of the tile says nothing */
        hits->cell[l] = hits->cell[0], hits->at[l] = hits->at[0], hits->tau[l] = hits->tau[0], hits->own[l] = hits->own[0];
    for (int64_t i = 0; i < rule->m; i++)
        for (int l = 0; l < WIDE; l++) {
            double apart = hits->tau[l] - rule->nodes[i];
            part[i][l] = all->weights[i] / (apart == 0.0 ? 1e-300 : apart), sum[l] += part[i][l];
        }
    /* beyond the innermost node there is no polynomial: f is no larger than at the last nodes */
    for (int l = 0; l < WIDE; l++) sum[l] = hits->tau[l] < 1.0 ? 1.0 / sum[l] : 0.0;
    for (int64_t i = 0; i < rule->m; i++)
        for (int l = 0; l < WIDE; l++) part[i][l] *= sum[l];
    for (int64_t q = 0; q < ask->set->columns; q += ask->set->parts) {
        if (ask->set->parts == 1) unexplained(ask, hits, part, q, 1, most);
        else unexplained(ask, hits, part, q, 2, most);
    }
    for (int64_t l = 0; l < hits->count; l++) {
        Cell *cell = cell_at(ask->cells, hits->cell[l], tail_of(ask->set));
        double size = all->size[cell->row / ask->set->count], more = all->spacing * most[l];
        if (more > all->matters * larger(all->rtol * size, all->atol)) cell->error += more, cell->refinable = 1;
        else all->place[hits->at[l]] = NAN, all->left--;
    }
    hits->count = 0;
}

/* Have the witnesses in each of n new cells say how far f is off, if the cell is about to be believed. Values y (m, n,
 * columns) and the slope (m, n) at the nodes; layout as in `place`, with rows that are `stride` long. */
EXPORT void ask(const Setting *set, Witnesses *all, double noise, int64_t logarithmic, Cell *cells, int64_t n,
                const double *y, const double *slope, double *layout, int64_t stride) {
    const Question question = {set, all, noise, cells, n, y, slope, rows_of(layout, stride)};
    int64_t tail = tail_of(set), k = all->k;
    Hits hits;
    hits.count = 0;
    for (int64_t c = 0; c < n; c++) { /* all sizes come first: what is large may lie in the last cell */
        const Cell *cell = cell_at(cells, c, tail);
        double *size = all->size + (set->count == 1 ? cell->row : cell->row / set->count);
        *size = larger(*size, fabs(cell->value));
    }
    for (int64_t c = 0; c < n; c++) {
        const Cell *cell = cell_at(cells, c, tail);
        double size = all->size[set->count == 1 ? cell->row : cell->row / set->count];
        if (!(cell->error <= all->settles * larger(all->rtol * size, all->atol))) continue;
        for (int64_t at = cell->row * k; at < (cell->row + 1) * k; at++) {
            double rate = logarithmic ? question.layout.rate[c] : 0.0, tau;
            double own = locate(cell, logarithmic, rate, all->place[at], &tau);
            if (own == 0.0) continue;
            hits.cell[hits.count] = c, hits.at[hits.count] = at, hits.tau[hits.count] = tau;
            hits.own[hits.count++] = own;
            if (hits.count == WIDE) settle(&question, &hits);
        }
    }
    if (hits.count) settle(&question, &hits);
}
