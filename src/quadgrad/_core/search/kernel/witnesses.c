/* What f at places that arguments name holds against cells: the other body of Witnesses.ask in search/witnesses.py. */

#include "tiles.h"

/* The numbers of witnesses.py; of each row k places, NaN where there is none or it is done, and which of the values of f
 * times the slope is there; the largest cell of each integral; the weights of the polynomial's barycentric form; how
 * many are left. */
typedef struct {
    double rtol, atol, spacing, rounding, settles;
    double *place;
    const int64_t *slot;
    const double *value;
    double *size;
    const double *weights;
    int64_t k, left;
} Witnesses;

/* The arguments of f that are looked at: k pointers, and what to add for the next integral. */
typedef struct {
    const double *const *arguments;
    const int64_t *steps;
    int64_t k, batch;
    double away;
} Named;

/* x as a fraction of a piece, and dx/dfraction there; see interval.py. */
INLINE double fraction_of(Piece p, double x, double *slope) {
    if (p.up > 0.0 && p.down > 0.0) {
        double root = hypot(x, 2.0), from = 2.0 / (2.0 - x + root), rest = 2.0 / (2.0 + x + root);
        *slope = 1.0 / (rest * rest) + 1.0 / (from * from);
        return from;
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
            if (!(here > lower && here < upper)) continue;
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

/* Where a witness is in a cell, and by what f times the slope there is multiplied; 0 where it is not in sight. */
INLINE double locate(const Cell *cell, int64_t logarithmic, double rate, double place, double *tau) {
    double width = cell->stop - cell->start, begin = cell->start < 0.0 ? 1.0 + cell->start : cell->start;
    if (!(place > begin && place < begin + width)) return 0.0;
    *tau = (place - begin) / width;
    if (!logarithmic) return width;
    double fraction = cell->start < 0.0 ? place - 1.0 : place;
    *tau = log(fraction / (cell->start < 0.0 ? cell->start : cell->stop)) / rate;
    return *tau < 1.0 ? fabs(fraction * rate) : 0.0;
}

/* How far f, `value` at tau, is from the polynomial through `nodes`, values at the nodes, less what is to be expected;
 * of one component, a step apart. */
INLINE double unexplained(const Rule *rule, int64_t parts, const double *part, const double *nodes, int64_t step,
                          const double *value, double beyond, double rounding) {
    double gap[2] = {0}, high[2] = {0}, next[2] = {0}, largest = 0.0;
    for (int64_t i = 0; i < rule->m; i++) {
        const double *y = nodes + i * step;
        for (int64_t p = 0; p < parts; p++) {
            gap[p] += part[i] * y[p];
            high[p] += rule->all[rule->m + i] * y[p], next[p] += rule->all[2 * rule->m + i] * y[p];
        }
        largest = larger(largest, parts == 2 ? modulus(y[0], y[1]) : fabs(y[0]));
    }
    for (int64_t p = 0; p < parts; p++) gap[p] -= value[p];
    double off = parts == 2 ? modulus(gap[0], gap[1]) : fabs(gap[0]);
    double highest = parts == 2 ? modulus(high[0], high[1]) + modulus(next[0], next[1]) : fabs(high[0]) + fabs(next[0]);
    off -= beyond * highest + rounding * largest;
    return off > 0.0 && off < INFINITY ? off : 0.0;
}

/* Have the witnesses in a cell, the number c of n, say how far f is off, and add that to its error. */
static void ask_cell(const Setting *set, Witnesses *all, double noise, int64_t logarithmic, Cell *cell, int64_t c,
                     int64_t n, const double *y, const double *slope, const Layout *layout) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, columns = set->columns, parts = set->parts, done = 0;
    double *place = all->place + cell->row * all->k, more = 0.0, nodes[2 * MOST_NODES], part[MOST_NODES];
    double scale = layout->scale[c], shaken = fabs(layout->reach[c] / scale) + 1.0;
    for (int64_t j = 0; j < all->k; j++) {
        double tau, own = locate(cell, logarithmic, logarithmic ? layout->rate[c] : 0.0, place[j], &tau);
        if (own == 0.0) continue;
        double sum = 0.0, most = 0.0;
        for (int64_t i = 0; i < m; i++) {
            double apart = tau - rule->nodes[i];
            part[i] = all->weights[i] / (apart == 0.0 ? 1e-300 : apart), sum += part[i];
        }
        for (int64_t i = 0; i < m; i++) part[i] /= sum;
        for (int64_t q = 0; q < columns; q += parts) {
            const double *at = all->value + all->slot[cell->row * all->k + j] * columns + q;
            double value[2] = {at[0] * own, parts == 2 ? at[1] * own : 0.0};
            for (int64_t i = 0; i < m; i++) {
                double factor = slope ? slope[i * n + c] * scale : scale;
                for (int64_t p = 0; p < parts; p++) nodes[2 * i + p] = y[(i * n + c) * columns + q + p] * factor;
            }
            double off = unexplained(rule, parts, part, nodes, 2, value, C.beyond, all->rounding * noise * shaken);
            most = larger(most, off);
        }
        if (most > 0.0) more += all->spacing * most;
        else place[j] = NAN, done++;
    }
    if (more > 0.0) cell->error += more, cell->refinable = 1;
    if (done) __atomic_fetch_sub(&all->left, done, __ATOMIC_RELAXED);
}

/* Have the witnesses in each of n new cells say how far f is off, if the cell is about to be believed. Values y (m, n,
 * columns) and the slope (m, n) at the nodes; layout as in `place`, with rows that are `stride` long. */
EXPORT void ask(const Setting *set, Witnesses *all, double noise, int64_t logarithmic, Cell *cells, int64_t n,
                const double *y, const double *slope, double *layout, int64_t stride) {
    const Layout rows = rows_of(layout, stride);
    int64_t tail = tail_of(set);
    for (int64_t c = 0; c < n; c++) {
        const Cell *cell = cell_at(cells, c, tail);
        double *size = all->size + cell->row / set->count;
        *size = larger(*size, fabs(cell->value));
    }
    PARALLEL(sharing(n, set->threads))
    for (int64_t c = 0; c < n; c++) {
        Cell *cell = cell_at(cells, c, tail);
        double allowed = larger(all->rtol * all->size[cell->row / set->count], all->atol);
        if (cell->error <= all->settles * allowed)
            ask_cell(set, all, noise, logarithmic, cell, c, n, y, slope, &rows);
    }
}
