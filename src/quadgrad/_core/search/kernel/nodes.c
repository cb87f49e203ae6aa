/* Where f is called: first cells, nodes of either kind, places between cells. */

#include "kernel.h"

Constants C;

/* Return which source this was built from. */
EXPORT int64_t source(void) { return SOURCE; }

/* Return whether the caller's rules are those it was made for. */
EXPORT int64_t configure(const Constants *constants) {
    C = *constants;
    return C.functionals == FUNCTIONALS && C.shares == SHARES && C.levels == LEVELS && C.looks == LOOKS;
}

/* The integrals of cells that were not yet searched, and where those with linear nodes lie. */
EXPORT void open_books(const Setting *set, const Cell *linear, int64_t n_linear, const Cell *ends, int64_t n_ends,
                       int64_t batch, Integral *integrals, double *layout) {
    int64_t tail = tail_of(set), count = set->count;
    Layout to = rows_of(layout, n_linear);
    for (int64_t i = 0; i < n_linear; i++) lay_out(set, cell_at(linear, i, tail), &to, i);
    for (int64_t i = 0; i < batch; i++) integrals[i] = (Integral){.who = i};
    for (int64_t i = 0; i < n_linear + n_ends; i++) {
        const Cell *cell = i < n_linear ? cell_at(linear, i, tail) : cell_at(ends, i - n_linear, tail);
        int64_t beside = i >= n_linear ? C.beside_end : cell->stop - cell->start == 1.0 ? C.whole : C.beside;
        integrals[cell->row / count].count++, integrals[cell->row / count].nfev += set->rule->m + beside;
    }
}

INLINE int is_empty(const Setting *set, int64_t row) {
    return !(set->upper[row * set->upper_step] > set->lower[row * set->lower_step]);
}

/* One cell for each piece that is not empty, and where it lies; return how many they are. Integrals that are fresh, see
 * Round, are not written. */
EXPORT int64_t begin(const Setting *set, int64_t batch, Cell *cells, Integral *integrals, double *layout) {
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
    Layout to = rows_of(layout, n);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t next = found[t];
        for (int64_t who = batch * t / threads; who < batch * (t + 1) / threads; who++) {
            int64_t before = next;
            for (int64_t row = who * count; row < (who + 1) * count; row++) {
                if (is_empty(set, row)) continue;
                Cell *cell = cell_at(cells, next, tail);
                *cell = (Cell){.stop = 1.0, .row = row};
                lay_out(set, cell, &to, next++);
            }
            if (!integrals || (n == batch && count == 1)) continue;
            integrals[who] = (Integral){
                .who = who, .count = next - before, .nfev = (next - before) * (set->rule->m + C.whole)};
        }
    }
    return n;
}

/* From a fraction of an infinite piece to x, and dx/dfraction; see interval.py. */
INLINE double map_fraction(double fraction, int from_lower, Piece piece, double *slope) {
    double p = from_lower ? fraction : 1.0 + fraction, q = from_lower ? 1.0 - fraction : -fraction;
    *slope = piece.up / (q * q) + piece.down / (p * p);
    return piece.lower + piece.upper + piece.up * (p / q) - piece.down * (q / p);
}

/* x and, if any piece is infinite, the slope at one place of each of some cells, which lie where the layout says: at the
 * same tau of all, or with a `step` at one of each. */
INLINE void put_row(const Layout *at, const Piece *pieces, const double *starts, int64_t low, int64_t here,
                    const double *tau, int64_t step, double *x, double *slope) {
    const double *left = at->reach + low, *width = at->scale + low;
    for (int64_t c = 0; c < here; c++) x[c] = left[c] + tau[c * step] * width[c];
    if (!slope) return;
    for (int64_t c = 0; c < here; c++) {
        double along, fraction = starts[c] + tau[c * step] * width[c];
        double mapped = map_fraction(fraction, starts[c] >= 0.0, pieces[c], &along);
        int bounded = !(pieces[c].up + pieces[c].down > 0.0);
        x[c] = bounded ? x[c] : mapped, slope[c] = bounded ? 1.0 : along;
    }
}

/* Where in a first cell f is called beside its nodes: at its edges or, where these are ends of the piece, right beside
 * them, or, where that cannot be told from the end, and next to infinity, in the middle: there f is then not known. */
INLINE void choose_edges(const Setting *set, Cell *cell, Piece p, double left, double width, double *first,
                         double *last) {
    double away = p.up + p.down > 0.0 ? p.lower + p.upper : left, middle = set->rule->nodes[set->rule->m / 2];
    double near = beside_ends(set, away, width);
    int beside = near < 0.25 * set->rule->nodes[0];
    int inner_start = cell->start != 0.0, inner_stop = cell->stop != 0.0 && cell->stop != 1.0;
    int at_start = inner_start || (beside && !(p.down > 0.0)), at_stop = inner_stop || (beside && !(p.up > 0.0));
    *first = inner_start ? 0.0 : at_start ? near : middle;
    *last = inner_stop ? 1.0 : at_stop ? 1.0 - near : middle;
    cell->at_start = at_start ? 0.0 : NAN, cell->at_stop = at_stop ? 0.0 : NAN;
}

enum { TOGETHER = 64 };

/* Nodes x (m, n) of cells with linear nodes, or (m + 2, n) with their edges, or with the looks behind these; the slope
 * there, if any piece is infinite. The cells lie where the layout says, whose rows are `stride` long. */
EXPORT void place(const Setting *set, int64_t edges, int64_t looks, Cell *cells, int64_t n, double *x, double *slope, double *layout,
                  int64_t stride) {
    Layout at = rows_of(layout, stride);
    int64_t tail = tail_of(set), m = set->rule->m;
    PARALLEL(sharing(n, set->threads))
    for (int64_t low = 0; low < n; low += TOGETHER) {
        int64_t here = n - low < TOGETHER ? n - low : TOGETHER, to = low;
        double first[TOGETHER], last[TOGETHER], starts[TOGETHER];
        Piece pieces[TOGETHER];
        for (int64_t c = 0; c < here && (slope || edges); c++) {
            Cell *cell = cell_at(cells, low + c, tail);
            pieces[c] = piece_of(set, cell->row), starts[c] = cell->start;
            if (edges)
                choose_edges(set, cell, pieces[c], at.reach[low + c], at.scale[low + c], &first[c], &last[c]);
        }
        for (int64_t i = edges ? -1 : 0; i < m + (edges ? 1 : 0) + (looks ? LOOKS : 0); i++, to += n) {
            const double *tau = i < 0 ? first : i < m ? set->rule->nodes + i : i == m ? last : set->rule->looks + i - m - 1;
            int64_t step = i < 0 || i == m;
            put_row(&at, pieces, starts, low, here, tau, step, x + to, slope ? slope + to : slope);
        }
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

/* Where the cells at the given indices begin, the slope there, if any piece is infinite, and whose they are. */
EXPORT void place_starts(const Setting *set, const Cell *cells, const int64_t *index, int64_t n, double *x,
                         double *slope, int64_t *owner, double *layout, int64_t stride) {
    Layout at = rows_of(layout, stride);
    PARALLEL(sharing(n, set->threads))
    for (int64_t i = 0; i < n; i++) {
        x[i] = at.reach[index[i]], owner[i] = at.owner[index[i]];
        if (!slope) continue;
        const Cell *cell = cell_at(cells, index[i], tail_of(set));
        Piece p = piece_of(set, cell->row);
        slope[i] = 1.0;
        if (p.up + p.down > 0.0) x[i] = map_fraction(cell->start, cell->start >= 0.0, p, &slope[i]);
    }
}

/* Enter f between the cells at the given indices and the ones before them. */
EXPORT void enter_starts(const Setting *set, Cell *cells, const int64_t *index, int64_t n, const double *y,
                         const double *slope) {
    int64_t tail = tail_of(set), columns = set->columns;
    PARALLEL(sharing(n, set->threads))
    for (int64_t i = 0; i < n; i++) {
        double sum = sum_of(y + i * columns, columns) * (slope ? slope[i] : 1.0);
        cell_at(cells, index[i], tail)->at_start = cell_at(cells, index[i] - 1, tail)->at_stop = sum;
    }
}

/* Places (m + 3 + LOOKS, n) of cells with logarithmic nodes and what f has to be multiplied by there, but for the scale:
 * a cell's outer edge, the nodes, the inner edge or, where that is an end, a place as close to it as numbers allow,
 * the looks, and where first cells look. See _look_deep in mesh/bisection.py. */
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
        to.rate[c] = rate, to.span[c] = span, to.steps[c] = 0.0, to.near[c] = 0.0;
        if (inner == 0.0 && !(from_lower ? p.down : p.up)) { /* out there exp(x) overflows */
            double least = C.ulps * set->eps * reach / span;
            double depth = larger(least, larger(C.deepest, sqrt(set->tiny)));
            double near = larger(least, larger(C.limit, C.ulps * set->eps));
            double octaves = log2(fabs(outer) / depth) - C.depth, nearer = log2(fabs(outer) / near) - C.depth;
            if (octaves > C.depth) deepest = copysign(depth, outer), to.steps[c] = octaves * (SHARES / C.depth);
            if (nearer > 1.0) to.near[c] = nearer * (SHARES / C.depth);
        }
        for (int64_t i = 0; i < m + 3 + LOOKS; i++) {
            double where = i == 0 ? 0.0 : i <= m ? tau[i - 1] : i == m + 1 ? 1.0
                         : i < m + 2 + LOOKS ? set->rule->looks[i - m - 2] : 1.0 + to.near[c] / SHARES;
            double along = 1.0, fraction = outer * exp(rate * where);
            if (i == m + 1 && deepest != 0.0) fraction = deepest;
            x[i * n + c] = bounded ? end + span * fraction
                                   : map_fraction(fraction, from_lower, p, &along);
            slope[i * n + c] = along * fabs(fraction);
        }
    }
}
