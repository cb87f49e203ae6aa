/* What f's values say about cells with logarithmic nodes, and series summed to the end. */

#include "spikes.h"

/* One component of a value; the second part is 0 where values are real. */
typedef struct {
    double a, b;
} Number;

INLINE double size_of(Number z) { return z.b == 0.0 ? fabs(z.a) : modulus(z.a, z.b); }
INLINE Number minus(Number x, Number y) { return (Number){x.a - y.a, x.b - y.b}; }

/* What begins in a column, times a factor. */
INLINE Number number_at(const double *columns, int64_t j, int64_t parts, double factor) {
    return (Number){columns[j] * factor, parts == 2 ? columns[j + 1] * factor : 0.0};
}

INLINE Number reciprocal(Number z, double rest) {
    double size = size_of(z);
    if (!(size > 0x1p-511 && size < INFINITY)) return (Number){rest, 0.0};
    if (z.b == 0.0) return (Number){1.0 / z.a, 0.0};
    return (Number){z.a / size / size, -z.b / size / size};
}

/* What the components of one cell's value amount to, each the largest; see to_the_end in singular_ends.py. */
typedef struct {
    double doubts[COLUMNS], limits[COLUMNS], apart[COLUMNS], ratio, total, last, value, error, decay, size, blur, hidden;
    double missed[COLUMNS];
    int lawless;
} EndSummary;

/* extrapolate in epsilon.py: the last entries of the columns, and by how much the entries around are apart. */
static void extrapolate(const Number *terms, Number *limits, EndSummary *s) {
    Number table[2][SHARES + 2] = {{{0}}}, columns[COLUMNS + 1][3], sum = {0};
    double size = 0.0;
    for (int i = 0; i < SHARES; i++) size = larger(size, size_of(terms[i]));
    if (!(size > 0.0)) size = 1.0;
    Number *before = table[0], *now = table[1];
    for (int i = 0; i < SHARES; i++) {
        now[i + 1] = (Number){now[i].a + terms[i].a / size, now[i].b + terms[i].b / size};
        sum.a += terms[i].a, sum.b += terms[i].b;
    }
    for (int k = 0, length = SHARES + 1; k <= COLUMNS; k++) {
        for (int i = 0; i < 3; i++) {
            Number entry = length > i ? now[length - 1 - i] : (Number){NAN, NAN};
            columns[k][i] = (Number){entry.a * size, entry.b * size};
        }
        for (int half = 0; half < 2 && k < COLUMNS; half++, length--) {
            for (int i = 0; i < length - 1; i++) {
                Number step = reciprocal(minus(now[i + 1], now[i]), half ? 0.0 : INFINITY);
                before[i] = (Number){before[i + 1].a + step.a, before[i + 1].b + step.b};
            }
            Number *swap = before;
            before = now, now = swap;
        }
    }
    for (int k = 0; k < COLUMNS; k++) {
        const Number *column = columns[k], *higher = columns[k + 1];
        double apart = size_of(minus(higher[0], column[0]));
        if (k + 1 < COLUMNS)
            apart += size_of(minus(higher[0], higher[1]));
        else
            apart += size_of(minus(column[0], column[1])) + size_of(minus(column[1], column[2])) / C.safety;
        limits[k] = column[0], s->doubts[k] = worse(s->doubts[k], C.safety * apart);
        s->limits[k] = worse(s->limits[k], size_of(column[0]));
        s->apart[k] = worse(s->apart[k], size_of(minus(column[0], sum)));
    }
}

/* _breaks_the_law in singular_ends.py */
static int breaks_the_law(const Number *terms, double deep, double steps) {
    if (!(steps > 0.0)) return 0;
    double earlier = log(size_of(terms[SHARES - 3])), before = log(size_of(terms[SHARES - 2]));
    double last = log(size_of(terms[SHARES - 1])), rate = last - before, drift = fabs(last - 2.0 * before + earlier);
    double expected = last + log(SHARES) + steps * rate;
    double off = fabs(log(deep) - expected);
    return fabs(expected) < INFINITY && off > C.lawless + 2.0 * SHARES * steps * drift;
}

/* unexplained in singular_ends.py, of one component, for each column */
INLINE void add_unexplained(const Number *terms, int64_t parts, Number edge, Number value, double steps, double shaken,
                            double error, const Number *limits, EndSummary *s) {
    double rates[3], logs[4], remainder[COLUMNS];
    Number sum = {0};
    for (int i = 0; i < SHARES; i++) sum.a += terms[i].a, sum.b += terms[i].b;
    for (int k = 0; k < COLUMNS; k++) remainder[k] = size_of(minus(limits[k], sum));
    for (int i = 0; i < 4; i++) logs[i] = log(larger(size_of(terms[SHARES - 4 + i]), DBL_MIN));
    for (int i = 0; i < 3; i++) rates[i] = logs[i + 1] - logs[i];
    double before = rates[1] - rates[0], drift = rates[2] - rates[1];
    double settles = before == 0.0 ? 0.0 : smaller(larger(drift / before, 0.0), C.settling), left = 1.0 - settles;
    double ahead = drift * settles / left;
    double rate = ahead * steps + steps * rates[2];
    rate -= ahead * settles * sqrt(settles) * (1.0 - pow(settles, steps)) / left;
    double expected = rates[2] >= 0.0 ? 0.0 : size_of(edge) * exp(rate), last = larger(size_of(terms[SHARES - 1]), DBL_MIN);
    int emerges = fabs(drift) > larger(C.emerges * fabs(before), C.at_least);
    double slack = emerges ? 0.0 : expm1(smaller(2.0 * steps * (C.drifting * fabs(drift) / left + error / last), C.far));
    double power = fabs(rates[2] * (SHARES / (C.depth * M_LN2)) + 1.0);
    double near = size_of(value), least = smaller(expected, near);
    /* Sizes may agree where signs do not; the phase of a complex power turns with the distance. */
    double is = parts == 1 && terms[SHARES - 1].a * value.a < 0.0 ? -near : near;
    double gap = larger(fabs(is - expected) - shaken * power * larger(near, expected), 0.0);
    double layer = gap * exp2(steps * (C.depth / SHARES)) * (C.layer / (C.depth * M_LN2));
    for (int k = 0; k < COLUMNS; k++) {
        int beside_logarithm = settles > C.settled && !emerges && gap <= C.logarithm * least;
        double whole = layer + (emerges && gap > least ? remainder[k] : 0.0);
        double part = beside_logarithm ? 0.0 : smaller(whole, remainder[k] * (gap / larger(least, DBL_MIN)));
        double missed = gap > slack * least ? whole : part;
        if (missed > 0.0 && missed < INFINITY) s->missed[k] = larger(s->missed[k], missed);
    }
}

/* A component of a cell that touches its end: the series that goes on there, of which `deep` is one value. */
INLINE void add_series(const Number *terms, double deep, double steps, Number *limits, EndSummary *s) {
    double last = size_of(terms[SHARES - 1]), before = size_of(terms[SHARES - 2]), total = 0.0;
    for (int i = 0; i < SHARES; i++) total += size_of(terms[i]);
    s->total = worse(s->total, total), s->last = worse(s->last, last);
    s->ratio = worse(s->ratio, before > 0.0 ? last / before : last > 0.0 ? 2.0 : 0.0);
    s->lawless |= breaks_the_law(terms, deep, steps);
    extrapolate(terms, limits, s);
}

/* The column of the epsilon table that sums the series, the one that is held if any is; the limit's error, and what
 * amplifies the terms' errors. */
INLINE int choose_column(const EndSummary *s, double rtol, int held, double *doubt, double *gain) {
    int best = held > 0 ? held : 0, diverges = s->ratio >= 1.0;
    for (int k = 1; k < COLUMNS && !diverges && held < 0; k++)
        if (s->doubts[k] < s->doubts[best] && !(s->doubts[best] <= C.close * rtol * s->limits[best])) best = k;
    double room = larger(1.0 - s->ratio, DBL_EPSILON);
    *doubt = diverges ? C.safety * s->total : s->doubts[best];
    *gain = best == 0 ? 1.0 : 1.0 / (room * room);
    if (s->lawless) *doubt = larger(*doubt, C.safety * s->apart[best]);
    *doubt += s->missed[best];
    return best;
}

/* A cell's estimates from those of its components; what is left to enter is its value. Return the column taken. */
INLINE int estimate_end(const Setting *set, double eps, double rtol, const EndSummary *s, const Layout *layout,
                        int64_t at, Cell *cell) {
    int touches = cell->start == 0.0 || cell->stop == 0.0, column = -1;
    double doubt = 0.0, gain = 1.0, value = s->value, reach = layout->reach[at];
    if (touches)
        column = choose_column(s, rtol, cell->kind - HELD - EXTRAPOLATED, &doubt, &gain), value = s->limits[column];
    double whole = larger(s->size, value), multiplied = (column > 1 ? gain * sqrt(sqrt(gain)) : gain) - 1.0;
    double floor = C.floor * eps * (whole + multiplied * s->last), place = smaller(gain * s->blur, whole);
    double rounding = floor + place, curable = doubt + gain * s->error + s->hidden;
    double all = larger(curable + place, rounding);
    int lost = !(all < INFINITY) || !(rounding < INFINITY);
    if (lost) all = INFINITY;
    int worth = curable > rounding && (touches ? place / C.step : 0.0) < 0.5 * all;
    double edge = fabs((cell->start >= 0.0 ? cell->stop : cell->start) * exp(layout->rate[at]));
    if (touches) edge *= C.step;
    /* In single precision a cell not resolved farther out can be halved where nodes closer to the end are blunt. */
    int halved = set->eps > DBL_EPSILON && s->decay >= C.unresolved;
    double closest = halved ? C.step * (cell->stop - cell->start) : edge;
    int blunt = !(closest * layout->span[at] > 4.0 * set->eps * reach);
    int narrow = !(edge > larger(C.nearest, sqrt(set->tiny)) && -layout->rate[at] > C.shortest);
    /* Rounding as large as all that is there is no reason to take that for nothing: `allowed_error` in decide.py. */
    if (5.0 * floor > whole) floor = C.floor * eps * whole;
    cell->error = all, cell->floor = lost ? 0.0 : floor;
    cell->refinable = (int8_t)splittable(set, lost || worth, blunt, narrow, edge);
    cell->lean = s->decay >= C.unresolved;
    cell->kind = (int8_t)(LOGARITHMIC + 1 + column);
    return column;
}

/* The means of the sizes of values on a tile, of both parts of a complex one together where they are `whole`. */
INLINE void weigh_sizes(const Rule *rule, const Tile *y, int64_t whole, double *sums) {
    memset(sums, 0, sizeof(Tile));
    for (int64_t i = 0; i < rule->m; i++)
        for (int64_t c = 0; c < WIDE; c++)
            sums[c] += rule->all[i] * (whole == 2 ? size_at(y[i], c & -2, 2) : fabs(y[i][c]));
}

/* Enter what a component is like, which begins in column c of the tile. */
INLINE void add_component(const Setting *set, const Cell *cell, const Tile *sums, int64_t c, int64_t parts,
                          double highest, double error, const Number *values, double steps, double near,
                          double shaken, Number *limits, EndSummary *s) {
    const Tile *edges = sums + FUNCTIONALS - 2, *shares = sums + FUNCTIONALS;
    Number terms[SHARES], at_edges[2];
    for (int i = 0; i < SHARES; i++) terms[i] = number_at(shares[i], c, parts, 1.0);
    for (int i = 0; i < 2; i++) at_edges[i] = number_at(edges[i], c, parts, 1.0);
    double hidden = larger(size_of(minus(at_edges[0], values[0])) - C.beyond * highest, 0.0);
    if (cell->start == 0.0 || cell->stop == 0.0) {
        add_series(terms, size_of(values[1]), steps, limits, s);
        error += hidden * set->rule->nodes[0];
        if (near > 0.0) add_unexplained(terms, parts, at_edges[1], values[2], near, shaken, error, limits, s);
    } else {
        hidden += larger(size_of(minus(at_edges[1], values[1])) - C.beyond * highest, 0.0);
    }
    s->hidden = worse(s->hidden, hidden * set->rule->nodes[0]);
    s->value = worse(s->value, size_at(sums[0], c, parts));
}

/* Whether all of f is: where it cancels so close to the end that it is not, it says nothing of a series. */
INLINE int is_finite(const double *y, int64_t columns) {
    for (int64_t j = 0; j < columns; j++)
        if (!isfinite(y[j])) return 0;
    return 1;
}

/* Enter f at both edges of a cell with logarithmic nodes, in case that it is halved after all; at an end, f as close to
 * it as a first cell looks. */
INLINE void enter_edges(const Setting *set, Cell *cell, const double *y, const double *slope, int64_t n, int64_t at,
                        const Layout *rows) {
    int64_t m = set->rule->m, columns = set->columns, touches = cell->start == 0.0 || cell->stop == 0.0;
    int64_t last = touches ? m + 2 + LOOKS : m + 1;
    double outer = cell->start >= 0.0 ? cell->stop : cell->start;
    double inner = outer * exp(rows->rate[at] * (1.0 + (touches ? rows->near[at] / SHARES : 0.0)));
    double far = sum_of(y + at * columns, columns) * slope[at] / fabs(outer);
    double close = sum_of(y + (last * n + at) * columns, columns) * slope[last * n + at] / fabs(inner);
    if (touches && rows->near[at] == 0.0) close = NAN;
    cell->at_start = cell->start >= 0.0 ? close : far, cell->at_stop = cell->start >= 0.0 ? far : close;
}

/* Apply the rule to a group of cells, `here` of n, from `low` on; see `measure_ends`. */
INLINE void measure_end_group(const Setting *set, int64_t parts, double eps, double rtol, Cell *cells, int64_t low,
                              int64_t here, int64_t n, const double *y, const double *slope, const Layout *rows,
                              const Spikes *spikes) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, columns = set->columns, tail = tail_of(set), all = here * columns;
    EndSummary summary[WIDE];
    memset(summary, 0, here * sizeof(EndSummary));
    Tile tiny;
    for (int c = 0; c < WIDE; c++) tiny[c] = DBL_MIN;
    Number *limits = (Number *)rows->limits + low * columns / parts * COLUMNS;
    for (int64_t first = 0; first < all; first += WIDE) {
        int64_t width = all - first < WIDE ? all - first : WIDE, own[WIDE];
        Tile flat[MOST_NODES], sums[FUNCTIONALS + SHARES + LOOKS], looks[LOOKS], blur, size, unseen = {0}, error, decay, highest, alone, alike, off;
        for (int64_t c = 0; c < width; c++) own[c] = low + (first + c) / columns;
        load(y + n * columns, NULL, m, n, columns, low, first, width, flat);
        weigh_sizes(rule, flat, parts, blur);
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < width; c++) flat[i][c] *= slope[(i + 1) * n + own[c]] * rows->scale[own[c]];
        weigh_sizes(rule, flat, parts, size);
        weigh(rule->all, FUNCTIONALS + SHARES + LOOKS, m, flat, sums);
        load(y + (m + 2) * n * columns, NULL, LOOKS, n, columns, low, first, width, looks);
        for (int64_t i = 0; i < LOOKS; i++)
            for (int64_t c = 0; c < width; c++) looks[i][c] *= slope[(m + 2 + i) * n + own[c]] * rows->scale[own[c]];
        /* In the moduli of both parts' null rules: beside a singularity one decays less evenly. */
        for (int i = 1; parts == 2 && i <= 2 * NULL_PAIRS; i++)
            for (int64_t c = 0; c < WIDE; c += 2) sums[i][c] = sums[i][c + 1] = size_at(sums[i], c, 2);
        for (int64_t c = 0; c < width; c++) {
            blur[c] *= C.place * set->eps * rows->reach[own[c]] * -rows->rate[own[c]];
            unseen[c] = size[c] + blur[c] / (2.0 * eps);
        }
        null_rule_error(sums + 1, unseen, tiny, rule->order_gap, eps, error, decay, highest);
        see_alone(rule->alone, rule->lengths, m, SPIKE_NULLS, sums + 1, alone, alike, off);
        for (int64_t c = 0; c < width; c++) {
            double largest = 0.0;
            for (int64_t i = 0; i < m; i++) largest = worse(largest, fabs(flat[i][c]));
            if (!(largest < INFINITY)) continue;
            double quiet = C.above * eps * larger(largest, unseen[c]);
            int64_t at = decay[c] >= C.unresolved && alike[c] > C.alike && off[c] > quiet ? (int64_t)alone[c] : -1;
            note_column(set, flat[0], WIDE, c, 1, at, cell_at(cells, own[c], tail), rows->rate[own[c]], spikes);
        }
        for (int64_t c = 0; c < width; c += parts) {
            int64_t j = (first + c) % columns, at = own[c], last = (m + 1) * n + at, near = last + (LOOKS + 1) * n;
            Number ends[3] = {number_at(y + at * columns, j, parts, slope[at] * rows->scale[at]),
                              number_at(y + last * columns, j, parts, slope[last] * rows->scale[at]),
                              number_at(y + near * columns, j, parts, slope[near] * rows->scale[at])};
            Cell *cell = cell_at(cells, at, tail);
            EndSummary *s = &summary[at - low];
            double between = largest_gap(m, flat, sums + FUNCTIONALS + SHARES, looks, c, parts, C.floor * eps,
                                         C.rounded * blur[c]);
            error[c] = larger(error[c], between);
            s->error = worse(s->error, error[c]), s->blur = worse(s->blur, blur[c]);
            s->size = worse(s->size, size[c]), s->decay = worse(s->decay, decay[c]);
            double steps = is_finite(y + last * columns, columns) ? rows->steps[at] : 0.0;
            double steps_near = is_finite(y + near * columns, columns) ? rows->near[at] : 0.0;
            double close = fabs((cell->start >= 0.0 ? cell->stop : cell->start) *
                                exp(rows->rate[at] * (1.0 + rows->near[at] / SHARES)));
            double shaken = set->eps * rows->reach[at] / (rows->span[at] * close);
            add_component(set, cell, sums, c, parts, highest[c], error[c], ends, steps, steps_near, shaken,
                          limits + (first + c) / parts * COLUMNS, s);
            double *value = tail ? cell->columns + j : &cell->value;
            for (int64_t k = 0; k < parts; k++) value[k] = sums[0][c + k];
        }
    }
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(cells, low + c, tail);
        const Number *limit = limits + c * columns / parts * COLUMNS;
        enter_edges(set, cell, y, slope, n, low + c, rows);
        int column = estimate_end(set, eps, rtol, &summary[c], rows, low + c, cell);
        double *value = tail ? cell->columns : &cell->value;
        for (int64_t j = 0; j < columns && column >= 0; j += parts, limit += COLUMNS) {
            value[j] = limit[column].a;
            if (parts == 2) value[j + 1] = limit[column].b;
        }
        double factor = cell->error < INFINITY ? 1.0 : 0.0;
        if (tail) scale_columns(cell, factor, columns, parts);
        else cell->value = factor == 0.0 ? 0.0 : cell->value;
    }
}

/* Apply the rule to cells with logarithmic nodes: estimate_ends in singular_ends.py. Values y (m + 3 + LOOKS, n,
 * columns). Spikes as in `measure`. */
EXPORT void measure_ends(const Setting *set, double eps, double rtol, Cell *cells, int64_t n, const double *y,
                         const double *slope, double *layout, int64_t *spiky, double *room) {
    int64_t group = group_of(set->columns);
    const Layout rows = rows_of(layout, n);
    const Spikes spikes = {spiky, room};
    PARALLEL(sharing(COSTLY * n * set->columns, set->threads))
    for (int64_t low = 0; low < n; low += group) {
        int64_t here = n - low < group ? n - low : group;
        if (set->parts == 1) measure_end_group(set, 1, eps, rtol, cells, low, here, n, y, slope, &rows, &spikes);
        else measure_end_group(set, 2, eps, rtol, cells, low, here, n, y, slope, &rows, &spikes);
    }
}
