/* What f's values say about cells: the rule's sums, errors, and series summed to the end. */

#include "kernel.h"

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef double Lanes __attribute__((vector_size(BYTES), aligned(8), may_alias));
typedef int64_t Bits __attribute__((vector_size(BYTES), aligned(8), may_alias));
enum { LANES = BYTES / 8, WIDE = 2 * LANES, MOST_NODES = 256 };

/* Numbers of as many cells as are worked on at a time; loops over them are left to the compiler to vectorise. */
typedef double Tile[WIDE];

/* Weighted sums of m values on a tile: `rows` rows of m weights. Four at a time stay in registers. */
INLINE void weigh(const double *weights, int64_t rows, int64_t m, const Tile *y, Tile *sums) {
    const Lanes *values = (const Lanes *)y;
    Lanes *out = (Lanes *)sums;
    for (; rows >= 4; rows -= 4, weights += 4 * m, out += 8) {
        Lanes a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, c0 = {0}, c1 = {0}, d0 = {0}, d1 = {0};
        const double *a = weights, *b = a + m, *c = b + m, *d = c + m;
        for (int64_t i = 0; i < m; i++) {
            Lanes t0 = values[2 * i], t1 = values[2 * i + 1];
            a0 += a[i] * t0, a1 += a[i] * t1, b0 += b[i] * t0, b1 += b[i] * t1;
            c0 += c[i] * t0, c1 += c[i] * t1, d0 += d[i] * t0, d1 += d[i] * t1;
        }
        out[0] = a0, out[1] = a1, out[2] = b0, out[3] = b1, out[4] = c0, out[5] = c1, out[6] = d0, out[7] = d1;
    }
    for (; rows > 0; rows--, weights += m, out += 2) {
        Lanes a0 = {0}, a1 = {0};
        for (int64_t i = 0; i < m; i++) a0 += weights[i] * values[2 * i], a1 += weights[i] * values[2 * i + 1];
        out[0] = a0, out[1] = a1;
    }
}

/* The rule's functionals, but for the shares, of values y on a tile, and the integral of their size. All but four are even or odd about the middle node, and these four are two that mirror two: half the products suffice
 * for sums and differences of values at mirrored nodes. */
INLINE void fold(const Rule *rule, const double *y, int64_t stride, Tile *sums, double *size) {
    enum { EVEN = 4 + NULL_PAIRS, ODD = 3 + NULL_PAIRS };
    int64_t half = rule->m / 2;
    Tile plus[MOST_NODES / 2 + 1], minus[MOST_NODES / 2], even[EVEN], odd[ODD];
    Lanes s0 = {0}, s1 = {0};
    for (int64_t i = 0; i <= half; i++) {
        const double *front = y + i * stride, *back = y + (rule->m - 1 - i) * stride;
        for (int k = 0; k < 2; k++) {
            Lanes a = *(const Lanes *)(front + k * LANES), b = *(const Lanes *)(back + k * LANES), zero = {0};
            Lanes sizes = (Lanes)((Bits)a & INT64_MAX) + (Lanes)((Bits)b & INT64_MAX);
            if (i == half) b = zero, sizes *= 0.5;
            ((Lanes *)plus)[2 * i + k] = a + b;
            if (i < half) ((Lanes *)minus)[2 * i + k] = a - b;
            if (k) s1 += rule->all[i] * sizes; else s0 += rule->all[i] * sizes;
        }
    }
    *(Lanes *)size = s0, *(Lanes *)(size + LANES) = s1;
    weigh(rule->even, EVEN, half + 1, plus, even);
    weigh(rule->odd, ODD, half, minus, odd);
    /* even: weights, nulls, slope, sums of halves and edges; odd: nulls, slope, their differences. */
    Tile *halves = sums + 1 + 2 * NULL_PAIRS;
    for (int c = 0; c < WIDE; c++) {
        sums[0][c] = even[0][c];
        for (int j = 0; j < NULL_PAIRS; j++)
            sums[1 + 2 * j][c] = even[1 + j][c], sums[2 + 2 * j][c] = odd[j][c];
        halves[2][c] = odd[NULL_PAIRS][c], halves[3][c] = even[NULL_PAIRS + 1][c];
        for (int pair = 0; pair < 2; pair++) {
            double total = even[NULL_PAIRS + 2 + pair][c], apart = odd[NULL_PAIRS + 1 + pair][c];
            halves[4 * pair][c] = 0.5 * (total + apart), halves[4 * pair + 1][c] = 0.5 * (total - apart);
        }
    }
}

/* null_rule_error in estimate.py: the error on the unit interval, the decay, the highest pair of coefficients. Sums are
 * double, and so is the smallest one, whatever x is. */
INLINE void null_rule_error(const Tile *nulls, const double *size, int64_t order_gap, double eps, double *error,
                            double *decay, double *highest) {
    const double tiny = DBL_MIN;
    Tile lowest, largest, base, power;
    for (int c = 0; c < WIDE; c++) {
        double quiet = 2.0 * eps * size[c] + tiny, slowest = 0.0;
        double before = larger(fabs(nulls[0][c]) + fabs(nulls[1][c]), tiny), most = before;
        highest[c] = before;
        for (int j = 1; j < NULL_PAIRS; j++) {
            double pair = larger(fabs(nulls[2 * j][c]) + fabs(nulls[2 * j + 1][c]), tiny);
            slowest = larger(slowest, (before - quiet) / pair);
            most = larger(most, pair);
            before = pair;
        }
        decay[c] = slowest, largest[c] = most, lowest[c] = before;
        base[c] = slowest / C.slow, power[c] = 1.0;
    }
    for (int64_t exponent = order_gap + NULL_PAIRS - 1; exponent; exponent >>= 1)
        for (int c = 0; c < WIDE; c++) {
            power[c] = exponent & 1 ? power[c] * base[c] : power[c];
            base[c] *= base[c];
        }
    for (int c = 0; c < WIDE; c++)
        error[c] = C.safety * (decay[c] < C.slow ? lowest[c] * power[c] : largest[c]);
}

/* What a group of cells, or their columns, are like; of several columns error, size, variation, decay and the halves'
 * null rules are the largest, the others, for which one number stands for f, the sum. */
typedef struct {
    Tile error, size, variation, decay, left, right, start, stop, highest, middle;
} Summary;

/* How many cells are worked on together: as many as have their columns in a tile, or one that has several tiles. */
INLINE int64_t group_of(int64_t columns) { return columns < WIDE ? WIDE / columns : 1; }

/* Up to WIDE columns of values, of `width` cells' columns from `first` on, times the slope, by nodes; 0 beyond. */
INLINE void load(const double *y, const double *slope, int64_t m, int64_t n, int64_t columns, int64_t low,
                 int64_t first, int64_t width, Tile *to) {
    int64_t cell[WIDE];
    for (int64_t c = 0; c < width; c++) cell[c] = low + (columns == 1 ? c : (first + c) / columns);
    for (int64_t i = 0; i < m; i++) {
        const double *from = y + (i * n + low) * columns + first;
        if (width < WIDE) memset(to[i], 0, sizeof(Tile));
        if (slope)
            for (int64_t c = 0; c < width; c++) to[i][c] = from[c] * slope[i * n + cell[c]];
        else
            memcpy(to[i], from, width * sizeof(double));
    }
}

/* What the rule's sums say about columns, on the unit interval; `blur` is of each. */
INLINE void judge_columns(const Rule *rule, double eps, const Tile *sums, const double *size, const double *blur,
                          const double *middle, Summary *of) {
    const Tile *nulls = sums + 1, *halves = nulls + 2 * NULL_PAIRS, *slopes = halves + 2, *edges = slopes + 2;
    Tile unseen;
    for (int c = 0; c < WIDE; c++) {
        of->size[c] = size[c], of->variation[c] = fabs(slopes[0][c]) + fabs(slopes[1][c]);
        unseen[c] = size[c] + of->variation[c] * (blur[c] / (2.0 * eps));
        of->left[c] = fabs(halves[0][c]), of->right[c] = fabs(halves[1][c]);
        of->start[c] = edges[0][c], of->stop[c] = edges[1][c], of->middle[c] = middle[c];
    }
    null_rule_error(nulls, unseen, rule->order_gap, eps, of->error, of->decay, of->highest);
}

/* Add what `width` columns from `first` on are like to the cells they belong to. */
INLINE void add_columns(const Setting *set, const Summary *columns, int64_t first, int64_t width, Summary *cells) {
    int64_t pair = set->parts == 2;
    for (int64_t c = 0; c < width; c++) {
        int64_t i = (first + c) / set->columns;
        if (!pair) {
            cells->error[i] = worse(cells->error[i], columns->error[c]);
            cells->size[i] = worse(cells->size[i], columns->size[c]);
        } else if (c % 2) {
            cells->error[i] = worse(cells->error[i], modulus(columns->error[c - 1], columns->error[c]));
            cells->size[i] = worse(cells->size[i], columns->size[c - 1] + columns->size[c]);
        }
        cells->variation[i] = worse(cells->variation[i], columns->variation[c]);
        cells->decay[i] = worse(cells->decay[i], columns->decay[c]);
        cells->left[i] = worse(cells->left[i], columns->left[c]);
        cells->right[i] = worse(cells->right[i], columns->right[c]);
        cells->start[i] += columns->start[c], cells->stop[i] += columns->stop[c];
        cells->highest[i] += columns->highest[c], cells->middle[i] += columns->middle[c];
    }
}

/* By how much f differs at an edge from what the cell's polynomial makes of it; 0 where it is not known. */
INLINE double gap(double polynomial, double known, double allowed) {
    double found = fabs(polynomial - known) - allowed;
    return found > 0.0 && found < INFINITY ? found : 0.0;
}

/* see_pole in null_rules.py, from f's sizes at the nodes: the steps by which its height is below 1, 0 if none is seen,
 * and where it is. */
INLINE uint8_t see_pole(const Rule *rule, double blind, const double *size, double largest, float *place) {
    const double *tau = rule->nodes;
    int64_t m = rule->m, i = 0;
    while (i < m - 1 && !(size[i] >= C.near * largest)) i++;
    int at_edge = i == 0 || i == m - 1;
    i = i < 1 ? 1 : i > m - 2 ? m - 2 : i;
    double before = 1.0 / size[i - 1], here = 1.0 / size[i], after = 1.0 / size[i + 1];
    double span = tau[i + 1] - tau[i - 1], off = 0.0;
    double rise = (here - before) / (tau[i] - tau[i - 1]);
    double bend = ((after - here) / (tau[i + 1] - tau[i]) - rise) / span;
    rise += bend * (tau[i] - tau[i - 1]);
    int64_t beside[2] = {i > 1 ? i - 2 : i + 3, i < m - 2 ? i + 2 : i - 3};
    for (int k = 0; k < 2; k++) {
        double away = tau[beside[k]] - tau[i];
        double ratio = (here + away * (rise + bend * away)) * size[beside[k]];
        double found = fabs(ratio - 1.0) / (at_edge ? larger(smaller(ratio, 1.0), 0.0) : 1.0);
        off = found <= off ? off : found; /* NaN stays */
    }
    double least = (here - rise * (rise / (4.0 * bend))) / bend, unsure = C.unsure * off * span;
    double square = larger(larger(least, unsure * unsure), blind * span * span);
    *place = (float)(tau[i] - rise / (2.0 * bend));
    int sees = bend > 0.0 && bend < INFINITY && off < INFINITY && square < 1.0;
    return sees ? (uint8_t)(-0.5 * C.steps * log2(square)) : 0;
}

/* The same from f's values. Of complex ones the modulus counts, of several components the sum. */
INLINE uint8_t look_for_pole(const Rule *rule, double eps, const double *y, const double *slope, int64_t n,
                             int64_t columns, int64_t parts, float *place) {
    double size[MOST_NODES], largest = 0.0;
    for (int64_t i = 0; i < rule->m; i++) {
        const double *at = y + i * n * columns;
        size[i] = 0.0;
        for (int64_t j = 0; j < columns; j += parts) size[i] += parts == 2 ? modulus(at[j], at[j + 1]) : fabs(at[j]);
        size[i] *= slope ? slope[i * n] : 1.0;
        largest = larger(largest, size[i]);
    }
    return see_pole(rule, cbrt(eps * eps), size, largest, place); /* its root hides how high a pole is */
}

/* Estimates of cells from those on the unit interval; see scale_estimates in null_rules.py. */
INLINE void estimate_cells(const Setting *set, double eps, const Summary *s, const double *scale, const double *reach,
                           int64_t here, int64_t tail, Cell *cells, Tile factor) {
    Tile at_start = {0}, at_stop = {0}, width = {0}, noise, floor, side, error;
    int64_t refinable[WIDE];
    double inmost = set->rule->nodes[0], finest = 4.0 * set->eps / inmost, narrowest = sqrt(set->tiny);
    for (int64_t c = 0; c < here; c++) {
        const Cell *cell = cell_at(cells, c, tail);
        at_start[c] = cell->at_start, at_stop[c] = cell->at_stop, width[c] = cell->stop - cell->start;
    }
    for (int c = 0; c < WIDE; c++) {
        double whole = s->size[c] * scale[c];
        floor[c] = C.floor * eps * whole;
        noise[c] = smaller(C.place * set->eps * reach[c] * s->variation[c], whole) + floor[c];
        side[c] = (s->right[c] > C.rougher * s->left[c] ? 1.0 : 0.0) - (s->left[c] > C.rougher * s->right[c] ? 1.0 : 0.0);
        side[c] *= s->decay[c] >= C.unresolved ? 2.0 : 1.0;
        double allowed = C.beyond * s->highest[c];
        double hidden = gap(s->start[c], at_start[c], allowed) + gap(s->stop[c], at_stop[c], allowed);
        error[c] = larger(noise[c], (s->error[c] + hidden * inmost) * scale[c]);
    }
    for (int c = 0; c < WIDE; c++) {
        int lost = !(s->size[c] * scale[c] < INFINITY) | !(error[c] < INFINITY);
        int resolvable = (scale[c] > reach[c] * finest) & (width[c] > narrowest);
        refinable[c] = resolvable & (lost | (error[c] > noise[c]));
        factor[c] = lost ? 0.0 : scale[c];
        error[c] = lost ? INFINITY : error[c];
        floor[c] = !(scale[c] > 0.0) ? set->tiny : lost ? 0.0 : floor[c];
        side[c] = lost ? 0.0 : side[c];
    }
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(cells, c, tail);
        cell->error = error[c], cell->floor = floor[c], cell->at_middle = s->middle[c];
        cell->lean = (int8_t)side[c], cell->refinable = (int8_t)refinable[c];
    }
}

/* Scale a cell's columns, and enter their sizes' sum. */
INLINE void scale_columns(Cell *cell, double factor, int64_t columns, int64_t parts) {
    cell->value = 0.0;
    for (int64_t j = 0; j < columns; j++) cell->columns[j] = factor == 0.0 ? 0.0 : cell->columns[j] * factor;
    for (int64_t j = 0; j < columns; j += parts)
        cell->value += parts == 2 ? modulus(cell->columns[j], cell->columns[j + 1]) : fabs(cell->columns[j]);
}

/* Apply the rule to a group of cells, `here` of n, from `low` on; see `measure`. */
INLINE void measure_group(const Setting *set, int64_t columns, double eps, Cell *cells, int64_t low, int64_t here,
                          int64_t n, const double *y, const double *slope, const Layout *layout) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, tail = columns > 1 ? columns : 0;
    Tile sums[FUNCTIONALS], size, few[MOST_NODES], scale = {0}, reach = {0}, blur = {0}, blurs = {0}, factor;
    Summary summary = {0}, part;
    for (int64_t c = 0; c < here; c++) {
        scale[c] = layout->scale[low + c], reach[c] = fabs(layout->reach[low + c]);
        blur[c] = smaller(C.place * set->eps * reach[c] / larger(set->tiny, scale[c]), 1.0);
    }
    for (int64_t first = 0; first < here * columns; first += WIDE) {
        int64_t width = here * columns - first < WIDE ? here * columns - first : WIDE, stride = n * columns;
        const double *values = y + low * columns + first;
        if (slope || width < WIDE) load(y, slope, m, n, columns, low, first, width, few), values = few[0], stride = WIDE;
        fold(rule, values, stride, sums, size);
        for (int64_t c = 0; c < width && columns > 1; c++) blurs[c] = blur[(first + c) / columns];
        judge_columns(rule, eps, sums, size, columns > 1 ? blurs : blur, values + m / 2 * stride, columns > 1 ? &part : &summary);
        if (columns == 1) continue;
        add_columns(set, &part, first, width, &summary);
        for (int64_t c = 0; c < width; c++)
            cell_at(cells, low + (first + c) / columns, tail)->columns[(first + c) % columns] = sums[0][c];
    }
    Cell *group = cell_at(cells, low, tail);
    estimate_cells(set, eps, &summary, scale, reach, here, tail, group, factor);
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(group, c, tail);
        if (columns > 1) scale_columns(cell, factor[c], columns, set->parts);
        else cell->value = factor[c] == 0.0 ? 0.0 : sums[0][c] * factor[c];
        int looks = summary.decay[c] >= C.unresolved && cell->error < INFINITY;
        cell->height = !looks ? 0 : look_for_pole(rule, eps, y + (low + c) * columns, slope ? slope + low + c : slope, n,
                                                 columns, columns > 1 ? set->parts : 1, &cell->pole);
    }
}

INLINE double sum_of(const double *y, int64_t columns) {
    double sum = 0.0;
    for (int64_t j = 0; j < columns; j++) sum += y[j];
    return sum;
}

/* Apply the rule to f's values y (m, n, columns) on n cells, times the slope (m, n), if there is one. With edges there
 * are two rows more: f at the edges of first cells is entered, too, where it is not NaN. Layout as in `place`. */
EXPORT void measure(const Setting *set, int64_t edges, double eps, Cell *cells, int64_t n, const double *y,
                    const double *slope, double *layout, int64_t stride) {
    const Layout rows = rows_of(layout, stride);
    int64_t columns = set->columns, tail = tail_of(set), group = group_of(columns), last = set->rule->m + 1;
    const double *inner = y + (edges ? n * columns : 0);
    const double *along = slope && edges ? slope + n : slope;
    PARALLEL(sharing(n * columns, set->threads))
    for (int64_t low = 0; low < n; low += group) {
        int64_t here = n - low < group ? n - low : group;
        for (int64_t c = low; edges && c < low + here; c++) {
            Cell *cell = cell_at(cells, c, tail);
            double before = sum_of(y + c * columns, columns) * (slope ? slope[c] : 1.0);
            double after = sum_of(y + (last * n + c) * columns, columns) * (slope ? slope[last * n + c] : 1.0);
            cell->at_start = isnan(cell->at_start) ? NAN : before;
            cell->at_stop = isnan(cell->at_stop) ? NAN : after;
        }
        if (columns == 1) measure_group(set, 1, eps, cells, low, here, n, inner, along, &rows);
        else measure_group(set, columns, eps, cells, low, here, n, inner, along, &rows);
    }
}

/* One component of a value; the second part is 0 where values are real. */
typedef struct {
    double a, b;
} Number;

INLINE double size_of(Number z) { return z.b == 0.0 ? fabs(z.a) : modulus(z.a, z.b); }
INLINE Number minus(Number x, Number y) { return (Number){x.a - y.a, x.b - y.b}; }

INLINE Number reciprocal(Number z, double rest) {
    double size = size_of(z);
    if (!(size > 0x1p-511 && size < INFINITY)) return (Number){rest, 0.0};
    if (z.b == 0.0) return (Number){1.0 / z.a, 0.0};
    return (Number){z.a / size / size, -z.b / size / size};
}

/* What the components of one cell's value amount to, each the largest; see to_the_end in singular_ends.py. */
typedef struct {
    double doubts[COLUMNS], limits[COLUMNS], apart[COLUMNS], ratio, total, value, error, decay, size, blur, hidden;
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

/* A component of a cell that touches its end: the series that goes on there, of which `deep` is one value. */
INLINE void add_series(const Number *terms, double deep, double steps, Number *limits, EndSummary *s) {
    double last = size_of(terms[SHARES - 1]), before = size_of(terms[SHARES - 2]), total = 0.0;
    for (int i = 0; i < SHARES; i++) total += size_of(terms[i]);
    s->total = worse(s->total, total);
    s->ratio = worse(s->ratio, before > 0.0 ? last / before : last > 0.0 ? 2.0 : 0.0);
    s->lawless |= breaks_the_law(terms, deep, steps);
    extrapolate(terms, limits, s);
}

/* The column of the epsilon table that sums the series, the limit's error, and what amplifies the terms' errors. */
INLINE int choose_column(const EndSummary *s, double rtol, double *doubt, double *gain) {
    int best = 0, diverges = s->ratio >= 1.0;
    for (int k = 1; k < COLUMNS && !diverges; k++)
        if (s->doubts[k] < s->doubts[best] && !(s->doubts[best] <= C.close * rtol * s->limits[best])) best = k;
    double room = larger(1.0 - s->ratio, 1e-8);
    *doubt = diverges ? C.safety * s->total : s->doubts[best];
    *gain = best == 0 ? 1.0 : 1.0 / (room * room);
    if (s->lawless) *doubt = larger(*doubt, C.safety * s->apart[best]);
    return best;
}

/* A cell's estimates from those of its components; what is left to enter is its value. Return the column taken. */
INLINE int estimate_end(const Setting *set, double eps, double rtol, const EndSummary *s, const Layout *layout, int64_t at,
                        Cell *cell) {
    int touches = cell->start == 0.0 || cell->stop == 0.0, column = -1;
    double doubt = 0.0, gain = 1.0, value = s->value, reach = layout->reach[at];
    if (touches) column = choose_column(s, rtol, &doubt, &gain), value = s->limits[column];
    double whole = larger(s->size, value), floor = C.floor * eps * whole, place = smaller(gain * s->blur, whole);
    double rounding = floor + place, curable = doubt + gain * s->error + s->hidden;
    double all = larger(curable + place, rounding);
    int lost = !(all < INFINITY) || !(rounding < INFINITY);
    if (lost) all = INFINITY;
    int worth = curable > rounding && (touches ? place / C.step : 0.0) < 0.5 * all;
    double edge = fabs((cell->start >= 0.0 ? cell->stop : cell->start) * exp(layout->rate[at]));
    if (touches) edge *= C.step;
    int wide = edge * layout->span[at] > 4.0 * set->eps * reach && edge > larger(C.nearest, sqrt(set->tiny)) &&
               -layout->rate[at] > C.shortest;
    cell->error = all, cell->floor = lost ? 0.0 : floor;
    cell->refinable = wide && (lost || worth);
    cell->lean = s->decay >= C.unresolved;
    cell->kind = (int8_t)(LOGARITHMIC + 1 + column);
    return column;
}

/* The size of what stands in a row at a component. */
INLINE double size_at(const double *row, int64_t c, int64_t parts) {
    return parts == 2 ? modulus(row[c], row[c + 1]) : fabs(row[c]);
}

/* The means of the sizes of values on a tile, of both parts of a complex one together where they are `whole`. */
INLINE void weigh_sizes(const Rule *rule, const Tile *y, int64_t whole, double *sums) {
    memset(sums, 0, sizeof(Tile));
    for (int64_t i = 0; i < rule->m; i++)
        for (int64_t c = 0; c < WIDE; c++)
            sums[c] += rule->all[i] * (whole == 2 ? size_at(y[i], c & -2, 2) : fabs(y[i][c]));
}

/* Enter what a component is like, which begins at column j of the cell `at`, and in column c of the tile. */
INLINE void add_component(const Setting *set, const Cell *cell, const Tile *sums, int64_t c, int64_t parts,
                          double highest, const Number *values, double steps, Number *limits, EndSummary *s) {
    const Tile *edges = sums + FUNCTIONALS - 2, *shares = sums + FUNCTIONALS;
    Number terms[SHARES], at_edges[2];
    for (int i = 0; i < SHARES; i++) terms[i] = (Number){shares[i][c], parts == 2 ? shares[i][c + 1] : 0.0};
    for (int i = 0; i < 2; i++) at_edges[i] = (Number){edges[i][c], parts == 2 ? edges[i][c + 1] : 0.0};
    double hidden = larger(size_of(minus(at_edges[0], values[0])) - C.beyond * highest, 0.0);
    if (cell->start == 0.0 || cell->stop == 0.0)
        add_series(terms, size_of(values[1]), steps, limits, s);
    else
        hidden += larger(size_of(minus(at_edges[1], values[1])) - C.beyond * highest, 0.0);
    s->hidden = worse(s->hidden, hidden * set->rule->nodes[0]);
    s->value = worse(s->value, size_at(sums[0], c, parts));
}

/* Apply the rule to a group of cells, `here` of n, from `low` on; see `measure_ends`. */
INLINE void measure_end_group(const Setting *set, int64_t parts, double eps, double rtol, Cell *cells, int64_t low,
                              int64_t here, int64_t n, const double *y, const double *slope, const Layout *rows) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, columns = set->columns, tail = tail_of(set), all = here * columns;
    EndSummary summary[WIDE];
    memset(summary, 0, here * sizeof(EndSummary));
    Number *limits = (Number *)rows->limits + low * columns / parts * COLUMNS;
    for (int64_t first = 0; first < all; first += WIDE) {
        int64_t width = all - first < WIDE ? all - first : WIDE, own[WIDE];
        Tile flat[MOST_NODES], sums[FUNCTIONALS + SHARES], blur, size, unseen = {0}, error, decay, highest;
        for (int64_t c = 0; c < width; c++) own[c] = low + (first + c) / columns;
        load(y + n * columns, NULL, m, n, columns, low, first, width, flat);
        weigh_sizes(rule, flat, parts, blur);
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < width; c++) flat[i][c] *= slope[(i + 1) * n + own[c]] * rows->scale[own[c]];
        weigh_sizes(rule, flat, 1, size);
        weigh(rule->all, FUNCTIONALS + SHARES, m, flat, sums);
        for (int64_t c = 0; c < width; c++) {
            blur[c] *= C.place * set->eps * rows->reach[own[c]] * -rows->rate[own[c]];
            unseen[c] = size[c] + blur[c] / (2.0 * eps);
        }
        null_rule_error(sums + 1, unseen, rule->order_gap, eps, error, decay, highest);
        for (int64_t c = 0; c < width; c += parts) {
            int64_t j = (first + c) % columns, at = own[c], last = (m + 1) * n + at;
            const double *before = y + at * columns + j, *after = y + last * columns + j;
            double outer = slope[at] * rows->scale[at], inner = slope[last] * rows->scale[at];
            Cell *cell = cell_at(cells, at, tail);
            Number ends[2] = {{before[0] * outer, parts == 2 ? before[1] * outer : 0.0},
                              {after[0] * inner, parts == 2 ? after[1] * inner : 0.0}};
            EndSummary *s = &summary[at - low];
            s->error = worse(s->error, size_at(error, c, parts)), s->blur = worse(s->blur, blur[c]);
            s->size = worse(s->size, parts == 2 ? size[c] + size[c + 1] : size[c]);
            s->decay = worse(s->decay, parts == 2 ? larger(decay[c], decay[c + 1]) : decay[c]);
            add_component(set, cell, sums, c, parts, size_at(highest, c, parts), ends, rows->steps[at],
                          limits + (first + c) / parts * COLUMNS, s);
            double *value = tail ? cell->columns + j : &cell->value;
            for (int64_t k = 0; k < parts; k++) value[k] = sums[0][c + k];
        }
    }
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(cells, low + c, tail);
        const Number *limit = limits + c * columns / parts * COLUMNS;
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

/* Apply the rule to cells with logarithmic nodes: estimate_ends in singular_ends.py. Values y (m + 2, n, columns). */
EXPORT void measure_ends(const Setting *set, double eps, double rtol, Cell *cells, int64_t n, const double *y,
                         const double *slope, double *layout) {
    int64_t group = group_of(set->columns);
    const Layout rows = rows_of(layout, n);
    PARALLEL(sharing(COSTLY * n * set->columns, set->threads))
    for (int64_t low = 0; low < n; low += group) {
        int64_t here = n - low < group ? n - low : group;
        if (set->parts == 1) measure_end_group(set, 1, eps, rtol, cells, low, here, n, y, slope, &rows);
        else measure_end_group(set, 2, eps, rtol, cells, low, here, n, y, slope, &rows);
    }
}
