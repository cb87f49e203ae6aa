/* Where f is called: first cells, nodes of either kind, places between cells. */

#include "kernel.h"

Constants C;

/* Return which source this was built from. */
EXPORT int64_t source(void) { return SOURCE; }

/* Return whether the caller's rules are those it was made for. */
EXPORT int64_t configure(const Constants *constants) {
    C = *constants;
    return C.functionals == FUNCTIONALS && C.shares == SHARES && C.levels == LEVELS;
}

/* The integrals of cells that were not yet searched. */
EXPORT void open_books(const Setting *set, const Cell *linear, int64_t n_linear, const Cell *ends, int64_t n_ends,
                       int64_t batch, Integral *integrals) {
    int64_t tail = tail_of(set), count = set->count;
    for (int64_t i = 0; i < batch; i++) integrals[i] = (Integral){.who = i};
    for (int64_t i = 0; i < n_linear; i++) integrals[cell_at(linear, i, tail)->row / count].count++;
    for (int64_t i = 0; i < n_ends; i++) integrals[cell_at(ends, i, tail)->row / count].count++;
    for (int64_t i = 0; i < batch; i++) integrals[i].nfev = integrals[i].count * (set->rule->m + C.beside);
}

INLINE int is_empty(const Setting *set, int64_t row) {
    return !(set->upper[row * set->upper_step] > set->lower[row * set->lower_step]);
}

/* One cell for each piece that is not empty; return how many they are. Integrals that are fresh, see Round, are not
 * written. */
EXPORT int64_t begin(const Setting *set, int64_t batch, Cell *cells, Integral *integrals) {
    int64_t found[MOST_THREADS] = {0}, n = 0, count = set->count, tail = tail_of(set);
    int threads = sharing(batch, set->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++)
        for (int64_t row = batch * t / threads * count; row < batch * (t + 1) / threads * count; row++)
            found[t] += !is_empty(set, row);
    for (int t = 0; t < threads; t++) {
        int64_t here = found[t];
        found[t] = n, n += here;
    }
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t next = found[t];
        for (int64_t who = batch * t / threads; who < batch * (t + 1) / threads; who++) {
            int64_t before = next;
            for (int64_t row = who * count; row < (who + 1) * count; row++)
                if (!is_empty(set, row)) *cell_at(cells, next++, tail) = (Cell){.stop = 1.0, .row = row};
            if (!integrals || (n == batch && count == 1)) continue;
            integrals[who] = (Integral){
                .who = who, .count = next - before, .nfev = (next - before) * (set->rule->m + C.beside)};
        }
    }
    return n;
}

/* The piece of a cell: its ends, 0 where infinite, and whether they are. */
typedef struct {
    double lower, upper, down, up;
} Piece;

INLINE Piece piece_of(const Setting *set, int64_t row) {
    double lower = set->lower[row * set->lower_step], upper = set->upper[row * set->upper_step];
    int down = set->infinite && isinf(lower), up = set->infinite && isinf(upper);
    return (Piece){down ? 0.0 : lower, up ? 0.0 : upper, down, up};
}

enum { TOGETHER = 32 };

/* Cells that are placed together: where each is measured from, its width, its start, the kind of its piece. */
typedef struct {
    double origin[TOGETHER], width[TOGETHER], start[TOGETHER], up[TOGETHER], down[TOGETHER];
} Stretch;

INLINE void lay_out(const Setting *set, const Cell *cell, Stretch *s, int64_t c, const Layout *to, int64_t place) {
    Piece p = piece_of(set, cell->row);
    to->owner[place] = set->count == 1 ? cell->row : cell->row / set->count;
    s->start[c] = cell->start, s->up[c] = p.up, s->down[c] = p.down;
    if (p.up + p.down > 0.0) {
        double from = p.lower + p.upper, fraction = cell->start;
        double low = fraction >= 0.0 ? fraction : 1.0 + fraction, high = fraction >= 0.0 ? 1.0 - fraction : -fraction;
        s->origin[c] = from, s->width[c] = cell->stop - cell->start;
        to->reach[place] =
            fabs(fraction) + low * high + fabs(from) * (p.up * (high * high) + p.down * (low * low));
    } else {
        double end = cell->start < 0.0 ? p.upper : p.lower, span = p.upper - p.lower;
        double left = cell->start == -0.5 ? p.lower + span * 0.5 : end + span * cell->start;
        s->origin[c] = to->reach[place] = left;
        s->width[c] = (cell->stop == 1.0 ? p.upper : end + span * cell->stop) - left;
    }
    to->scale[place] = s->width[c];
}

/* From a fraction of an infinite piece to x, and dx/dfraction; see interval.py. */
INLINE double map_fraction(double fraction, int from_lower, double origin, double up, double down, double *slope) {
    double p = from_lower ? fraction : 1.0 + fraction, q = from_lower ? 1.0 - fraction : -fraction;
    *slope = up / (q * q) + down / (p * p);
    return origin + up * (p / q) - down * (q / p);
}

/* x, and the slope if any piece is infinite, at the same place tau of all cells, or with a `step` at one of each. */
INLINE void put_row(const Stretch *s, int64_t here, const double *tau, int64_t step, double *x, double *slope) {
    for (int64_t c = 0; c < here; c++) x[c] = s->origin[c] + tau[c * step] * s->width[c];
    if (!slope) return;
    for (int64_t c = 0; c < here; c++) {
        int bounded = !(s->up[c] + s->down[c] > 0.0);
        double along, fraction = s->start[c] + tau[c * step] * s->width[c];
        double mapped = map_fraction(fraction, s->start[c] >= 0.0, s->origin[c], s->up[c], s->down[c], &along);
        x[c] = bounded ? x[c] : mapped, slope[c] = bounded ? 1.0 : along;
    }
}

/* Where in a first cell f is called beside its nodes: at its edges or, where these are ends of the piece, right beside
 * them, or, where that cannot be told from the end, and next to infinity, in the middle: there f is then not known. */
INLINE void choose_edges(const Setting *set, Cell *cell, const Stretch *s, int64_t c, double *first, double *last) {
    const double *tau = set->rule->nodes, middle = tau[set->rule->m / 2], width = s->width[c];
    double near = larger(C.limit, C.ulps * set->eps);
    int beside = near * width > 4.0 * set->eps * (fabs(s->origin[c]) + width);
    int inner_start = cell->start != 0.0, inner_stop = cell->stop != 0.0 && cell->stop != 1.0;
    int at_start = inner_start || (beside && !(s->down[c] > 0.0));
    int at_stop = inner_stop || (beside && !(s->up[c] > 0.0));
    *first = inner_start ? 0.0 : at_start ? near : middle;
    *last = inner_stop ? 1.0 : at_stop ? 1.0 - near : middle;
    cell->at_start = at_start ? 0.0 : NAN, cell->at_stop = at_stop ? 0.0 : NAN;
}

/* Places x of cells with linear nodes, or of those at the given indices: (m, n), with their edges (m + 2, n), or of
 * their starts alone; the slope there, if any piece is infinite; and where they lie. */
EXPORT void place(const Setting *set, int64_t what, Cell *cells, const int64_t *index, int64_t n, double *x,
                  double *slope, double *layout) {
    Layout to = rows_of(layout, n);
    int64_t tail = tail_of(set), m = set->rule->m;
    const double start = 0.0;
    PARALLEL(sharing(n, set->threads))
    for (int64_t low = 0; low < n; low += TOGETHER) {
        int64_t here = n - low < TOGETHER ? n - low : TOGETHER, row = low;
        double first[TOGETHER], last[TOGETHER];
        Stretch s;
        for (int64_t c = 0; c < here; c++) {
            Cell *cell = cell_at(cells, index ? index[low + c] : low + c, tail);
            lay_out(set, cell, &s, c, &to, low + c);
            if (what == EDGES_TOO) choose_edges(set, cell, &s, c, &first[c], &last[c]);
        }
        if (what == EDGES_TOO) put_row(&s, here, first, 1, x + row, slope ? slope + row : 0), row += n;
        for (int64_t i = 0; i < (what == STARTS ? 1 : m); i++, row += n)
            put_row(&s, here, what == STARTS ? &start : set->rule->nodes + i, 0, x + row, slope ? slope + row : 0);
        if (what == EDGES_TOO) put_row(&s, here, last, 1, x + row, slope ? slope + row : 0);
    }
}

/* Columns (k, n) of k arguments of f, numbers of eight bytes whatever they mean, that each integral has its own of. */
EXPORT void spread(const int64_t *const *arguments, int64_t k, const int64_t *owner, int64_t n, int64_t *columns,
                   int64_t threads) {
    threads = sharing(n, threads);
    PARALLEL(threads)
    for (int64_t t = 0; t < threads; t++)
        for (int64_t j = 0; j < k; j++)
            for (int64_t c = n * t / threads; c < n * (t + 1) / threads; c++)
                columns[j * n + c] = arguments[j][owner[c]];
}

/* Enter f between the cells at the given indices and the ones before them. */
EXPORT void enter_starts(const Setting *set, Cell *cells, const int64_t *index, int64_t n, const double *y,
                         const double *slope) {
    int64_t tail = tail_of(set), columns = set->columns;
    PARALLEL(sharing(n, set->threads))
    for (int64_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (int64_t j = 0; j < columns; j++) sum += y[i * columns + j] * (slope ? slope[i] : 1.0);
        cell_at(cells, index[i], tail)->at_start = cell_at(cells, index[i] - 1, tail)->at_stop = sum;
    }
}

/* Places (m + 2, n) of cells with logarithmic nodes and what f has to be multiplied by there, but for the scale: a
 * cell's outer edge, the nodes, and the inner edge or, where that is an end, a place as close to it as numbers allow.
 * See place_ends in singular_ends.py. */
EXPORT void place_ends(const Setting *set, const Cell *cells, int64_t n, double *x, double *slope, double *layout) {
    const double *tau = set->rule->nodes;
    int64_t m = set->rule->m, tail = tail_of(set);
    Layout to = rows_of(layout, n);
    PARALLEL(sharing(COSTLY * n, set->threads))
    for (int64_t c = 0; c < n; c++) {
        const Cell *cell = cell_at(cells, c, tail);
        Piece p = piece_of(set, cell->row);
        int from_lower = cell->start >= 0.0, bounded = !(p.up + p.down > 0.0);
        double outer = from_lower ? cell->stop : cell->start, inner = from_lower ? cell->start : cell->stop;
        double end = from_lower ? p.lower : p.upper, span = bounded ? p.upper - p.lower : 1.0, reach = fabs(end);
        double rate = log(inner == 0.0 ? exp2(-C.depth) : inner / outer), deepest = 0.0;
        to.owner[c] = cell->row / set->count, to.scale[c] = -rate * span, to.reach[c] = reach;
        to.rate[c] = rate, to.span[c] = span, to.steps[c] = 0.0;
        if (inner == 0.0 && !(from_lower ? p.down : p.up)) { /* out there exp(x) overflows */
            double depth = larger(C.ulps * set->eps * reach / span, larger(C.deepest, sqrt(set->tiny)));
            double octaves = log2(fabs(outer) / depth) - C.depth;
            if (octaves > C.depth) deepest = copysign(depth, outer), to.steps[c] = octaves * (SHARES / C.depth);
        }
        for (int64_t i = 0; i < m + 2; i++) {
            double along = 1.0, fraction = outer * exp(rate * (i == 0 ? 0.0 : i > m ? 1.0 : tau[i - 1]));
            if (i > m && deepest != 0.0) fraction = deepest;
            x[i * n + c] = bounded ? end + span * fraction
                                   : map_fraction(fraction, from_lower, p.lower + p.upper, p.up, p.down, &along);
            slope[i * n + c] = along * fabs(fraction);
        }
    }
}
