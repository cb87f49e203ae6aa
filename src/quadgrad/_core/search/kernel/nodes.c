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
EXPORT void open_books(const Cell *linear, int64_t n_linear, const Cell *ends, int64_t n_ends, int64_t count,
                       int64_t batch, int64_t m, Integral *integrals) {
    for (int64_t i = 0; i < batch; i++) integrals[i] = (Integral){.who = i};
    for (int64_t i = 0; i < n_linear; i++) integrals[linear[i].row / count].count++;
    for (int64_t i = 0; i < n_ends; i++) integrals[ends[i].row / count].count++;
    for (int64_t i = 0; i < batch; i++) integrals[i].nfev = integrals[i].count * (m + C.beside);
}

INLINE int is_empty(const Pieces *p, int64_t row) {
    return !(p->upper[row * p->upper_step] > p->lower[row * p->lower_step]);
}

/* One cell for each piece that is not empty; return how many they are. Integrals that are fresh, see Round, are not
 * written. */
EXPORT int64_t begin(const Pieces *pieces, int64_t batch, int64_t m, Cell *cells, Integral *integrals) {
    int64_t found[MOST_THREADS] = {0}, n = 0, count = pieces->count;
    int threads = sharing(batch, pieces->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++)
        for (int64_t row = batch * t / threads * count; row < batch * (t + 1) / threads * count; row++)
            found[t] += !is_empty(pieces, row);
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
                if (!is_empty(pieces, row)) cells[next++] = (Cell){.stop = 1.0, .row = row};
            if (n == batch && count == 1) continue;
            integrals[who] =
                (Integral){.who = who, .count = next - before, .nfev = (next - before) * (m + C.beside)};
        }
    }
    return n;
}

/* Nodes x (m, n) of cells that lie at n left ends and have n widths. */
EXPORT void place(const Rule *rule, const double *left, const double *scale, int64_t n, double *x, int64_t threads) {
    PARALLEL(sharing(n, threads))
    for (int64_t i = 0; i < rule->m; i++)
        for (int64_t c = 0; c < n; c++) x[i * n + c] = left[c] + rule->nodes[i] * scale[c];
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

/* Nodes x (m + 2, n) of first cells on finite pieces, and where these lie, see Layout. First and last are the cell's own
 * edges, or right beside a limit, or, where that cannot be told from the limit, the middle; f there is then not known. */
EXPORT void place_first(const Pieces *p, const Rule *rule, Cell *cells, int64_t n, double *x, double *layout) {
    Layout to = rows_of(layout, n);
    double *left = to.left, *scale = to.scale;
    const double *tau = rule->nodes, middle = tau[rule->m / 2];
    double near = larger(C.limit, C.ulps * p->eps), *first = x, *last = x + (rule->m + 1) * n;
    PARALLEL(sharing(n, p->threads))
    for (int64_t c = 0; c < n; c++) {
        Cell *cell = &cells[c];
        lay_out(p, cell, &to, c);
        int beside = near * scale[c] > 4.0 * p->eps * (fabs(left[c]) + scale[c]);
        int inner_start = cell->start != 0.0, inner_stop = cell->stop != 0.0 && cell->stop != 1.0;
        first[c] = left[c] + scale[c] * (inner_start ? 0.0 : beside ? near : middle);
        last[c] = left[c] + scale[c] * (inner_stop ? 1.0 : beside ? 1.0 - near : middle);
        cell->at_start = inner_start || beside ? 0.0 : NAN;
        cell->at_stop = inner_stop || beside ? 0.0 : NAN;
    }
    place(rule, left, scale, n, x + n, p->threads);
}

/* Enter f between the cells at the given indices and the ones before them. */
EXPORT void enter_starts(Cell *cells, const int64_t *index, int64_t n, const double *y, int64_t threads) {
    PARALLEL(sharing(n, threads))
    for (int64_t i = 0; i < n; i++) cells[index[i]].at_start = cells[index[i] - 1].at_stop = y[i];
}

/* Places (m + 2, n) on finite pieces and what f has to be multiplied by there: a cell's outer edge, the nodes, and the
 * inner edge or, where that is an end, a place as close to it as numbers allow. See evaluate_ends in ends.py. */
EXPORT void place_ends(const Pieces *p, const Rule *rule, const Cell *cells, int64_t n, double *x, double *slope,
                       const EndFrame *layout, int64_t *owner) {
    const double *tau = rule->nodes;
    int64_t m = rule->m;
    PARALLEL(sharing(COSTLY * n, p->threads))
    for (int64_t c = 0; c < n; c++) {
        const Cell *cell = &cells[c];
        double lower = p->lower[cell->row * p->lower_step], upper = p->upper[cell->row * p->upper_step];
        int from_lower = cell->start >= 0.0;
        double outer = from_lower ? cell->stop : cell->start, inner = from_lower ? cell->start : cell->stop;
        double end = from_lower ? lower : upper, span = upper - lower, reach = fabs(end);
        double rate = log(inner == 0.0 ? exp2(-C.depth) : inner / outer);
        owner[c] = cell->row / p->count;
        layout->scale[c] = -rate * span, layout->reach[c] = reach, layout->rate[c] = rate;
        layout->span[c] = span, layout->steps[c] = 0.0;
        for (int64_t i = 0; i < m + 2; i++) {
            double fraction = outer * exp(rate * (i == 0 ? 0.0 : i > m ? 1.0 : tau[i - 1]));
            x[i * n + c] = end + span * fraction, slope[i * n + c] = fabs(fraction);
        }
        if (inner != 0.0) continue;
        double depth = larger(C.ulps * p->eps * reach / span, larger(C.deepest, sqrt(p->tiny)));
        double octaves = log2(fabs(outer) / depth) - C.depth;
        if (!(octaves > C.depth)) continue;
        x[(m + 1) * n + c] = end + span * (from_lower ? depth : -depth), slope[(m + 1) * n + c] = depth;
        layout->steps[c] = octaves * (SHARES / C.depth);
    }
}
