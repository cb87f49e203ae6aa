/* Where cells pile up while a search runs: the other body of look_for_piles in search/piles/watch.py. */

#include "sums.h"

/* Neighbouring cells in which bisection closes in on something: the row, and the ends of the first and the last. */
typedef struct {
    int64_t row;
    double start[2], stop[2];
} Stretch;

/* The end of a piece at which error is left: from what fraction of the piece on, and whether the cell there is singular. */
typedef struct {
    int64_t row, upper, singular;
    double distance;
} End;

/* The numbers of piles.py, and room for what is found. */
typedef struct {
    double worst, worst_at_end, far;
    int64_t together, most;
    Stretch *stretches;
    End *ends;
    int64_t n_stretches, n_ends;
} Piles;

enum { MOST_BAD = 256 };

INLINE double error_of(const Cell *cell) { return cell->error == cell->error ? cell->error : INFINITY; }

/* Whether a cell comes before another; both are measured from the nearer end. */
INLINE int is_before(const Cell *a, const Cell *b) {
    if (a->row != b->row) return a->row < b->row;
    int upper_a = a->start < 0.0, upper_b = b->start < 0.0;
    return upper_a != upper_b ? upper_b : a->start < b->start;
}

INLINE int touches(const Cell *cell) { return cell->start == 0.0 || cell->stop == 0.0 || cell->stop == 1.0; }

/* An integral's cells of both kinds, and the largest error of any. */
typedef struct {
    const Cell *cells[2];
    int64_t first[2], stop[2], tail;
    double worst;
} Cells;

/* Enter the ends of pieces at which much of the error is, in order. */
static void look_at_ends(const Cells *all, Piles *piles) {
    double limit = piles->worst_at_end * all->worst;
    int64_t first = piles->n_ends;
    for (int kind = 0; kind < 2; kind++) {
        for (int64_t c = all->first[kind]; c < all->stop[kind]; c++) {
            const Cell *at = cell_at(all->cells[kind], c, all->tail);
            if (!touches(at) || !(error_of(at) >= limit && error_of(at) > 0.0)) continue;
            int upper = at->start != 0.0;
            double distance = 0.0;
            for (int other = 0; other < 2; other++) {
                for (int64_t d = all->first[other]; d < all->stop[other]; d++) {
                    const Cell *cell = cell_at(all->cells[other], d, all->tail);
                    if (cell->row != at->row || (cell->start < 0.0) != upper || !(error_of(cell) >= limit)) continue;
                    distance = larger(distance, upper ? -cell->start : cell->stop);
                }
            }
            int64_t to = piles->n_ends++;
            for (const End *e; to > first && (e = &piles->ends[to - 1], 2 * e->row + e->upper > 2 * at->row + upper); to--)
                piles->ends[to] = *e;
            piles->ends[to] = (End){at->row, upper, kind, distance};
        }
    }
}

/* Pick the worst cells, in order; return how many there are, or 0 where f is rough all over. */
static int pick_bad(const Cells *all, const Piles *piles, const Cell **bad) {
    double limit = piles->worst * all->worst;
    int n = 0;
    for (int kind = 0; kind < 2; kind++) {
        for (int64_t c = all->first[kind]; c < all->stop[kind]; c++) {
            const Cell *cell = cell_at(all->cells[kind], c, all->tail);
            if (!(error_of(cell) >= limit && error_of(cell) > 0.0)) continue;
            if (n >= MOST_BAD || n >= piles->together * piles->most) return 0;
            int to = n++;
            for (; to > 0 && is_before(cell, bad[to - 1]); to--) bad[to] = bad[to - 1];
            bad[to] = cell;
        }
    }
    return n;
}

/* Enter the stretches of n cells in order; none of an integral that has a long one. */
static void look_inside(const Cell *const *bad, int n, Piles *piles) {
    int64_t before = piles->n_stretches;
    for (int i = 0, next; i < n; i = next) {
        int at_end = 0;
        for (next = i; next < n; next++) {
            const Cell *cell = bad[next], *last = bad[next > i ? next - 1 : i];
            int joined = cell->start == last->stop || (last->stop == 0.5 && cell->start == -0.5);
            if (next > i && (cell->row != last->row || !joined)) break;
            at_end |= touches(cell) || cell->kind != LINEAR;
        }
        if (next - i > piles->together) {
            piles->n_stretches = before;
            return;
        }
        const Cell *first = bad[i], *last = bad[next - 1];
        if (!at_end)
            piles->stretches[piles->n_stretches++] =
                (Stretch){first->row, {first->start, last->start}, {first->stop, last->stop}};
    }
}

/* Look at all running integrals. There is room for one stretch and one end for each cell. */
EXPORT void look_for_piles(const Round *round, Piles *piles) {
    int64_t tail = tail_of(round->setting), count = round->setting->count, next[2] = {0, 0};
    piles->n_stretches = piles->n_ends = 0;
    for (int64_t k = 0; k < round->running; k++) {
        Integral one = round->fresh ? (Integral){.who = k} : round->integrals[k];
        int64_t first[2] = {next[0], next[1]}, beyond = (one.who + 1) * count;
        double *totals = round->values + one.who * (tail ? tail : 1);
        Sums sums = {.value = one.value, .error = one.error, .floor = one.floor};
        copy(round->held + one.who * tail, tail, totals);
        add_cells(round->linear, round->n_linear, tail, beyond, &next[0], totals, &sums);
        add_cells(round->ends, round->n_ends, tail, beyond, &next[1], totals, &sums);
        size_up(totals, tail, round->setting->parts, &sums);
        if (sums.error <= piles->far * allowed_error(round, sums.largest, sums.floor)) continue;
        Cells all = {{round->linear, round->ends}, {first[0], first[1]}, {next[0], next[1]}, tail, 0.0};
        for (int kind = 0; kind < 2; kind++)
            for (int64_t c = first[kind]; c < next[kind]; c++)
                all.worst = larger(all.worst, error_of(cell_at(all.cells[kind], c, tail)));
        const Cell *bad[MOST_BAD];
        look_at_ends(&all, piles);
        look_inside(bad, pick_bad(&all, piles, bad), piles);
    }
}
