/* What becomes of cells and integrals in a round, and what is handed over. */

#include "kernel.h"

INLINE void pack(const Cell *cell, const Leaves *leaves, int64_t place) {
    Leaf *leaf = &leaves->leaf[place];
    leaf->start = cell->start, leaf->stop = cell->stop;
    leaf->value = cell->value, leaf->error = cell->error, leaf->floor = cell->floor;
    leaves->tag[place] = cell->row * 256 + cell->kind * 16 + cell->refinable * 8 + cell->lean + 2;
}

INLINE Cell unpack(const Leaf *leaf, int64_t tag) {
    return (Cell){leaf->start, leaf->stop, leaf->value, leaf->error, leaf->floor, NAN, NAN, NAN, tag / 256,
                  (int8_t)(tag % 256 / 16), (int8_t)(tag % 8 - 2), (int8_t)(tag / 8 % 2), 0, 0.0f};
}

/* allowed_error in adaptive.py */
INLINE double allowed_error(const Round *round, double value, double floor) {
    double size = fabs(value), allowed = larger(round->rtol * size, round->atol);
    if (size <= 5.0 * floor) allowed = larger(allowed, 5.0 * floor);
    return larger(allowed, round->tiny);
}

/* to_scan in cells.py */
INLINE int to_scan(const Cell *cell, double most) {
    if (!(cell->error >= C.faint * fabs(cell->value))) return 0;
    int rough = cell->error > cell->floor && cell->refinable;
    int at_end = cell->start == 0.0 || cell->stop == 0.0;
    int wide = (cell->kind == LINEAR && at_end) || cell->stop - cell->start > C.scanned;
    return ((rough || cell->floor == 0.0) && wide) || (rough && cell->error > most);
}

/* plan_moves in cells.py, for one that is refined */
INLINE int plan_move(const Cell *cell) {
    int lean = cell->lean;
    if (cell->kind != LINEAR) return lean > 0 ? REVERT : CLOSER;
    int at_lower = cell->start == 0.0, at_upper = cell->stop == 0.0;
    if (at_lower || at_upper) {
        double level = -log2(cell->stop - cell->start);
        int tried = level > 2.0 ? fmod(level, C.every) >= 2.0 : level < 1.0;
        int towards = (at_lower && lean < 0) || (at_upper && lean > 0) || level >= C.deep;
        if (towards && !tried) return TURN;
    }
    return PART;
}

/* Where a cell's pole is, and its squared height, by the measures of the ellipse. */
typedef struct {
    double place, along, high;
} Pole;

static const Pole NOWHERE = {.high = INFINITY};

/* Whether the pole is in the ellipse around a part. */
INLINE int is_near(Pole pole, double middle, double width) {
    double apart = pole.place - middle;
    return apart * apart * pole.along + pole.high < 0.25 * width * width;
}

INLINE Pole pole_of(const Cell *cell, const Round *round) {
    Pole half = {0.5 + 0.125 * cell->lean, round->along, cell->lean * cell->lean == 4 ? 0x1p-5 : INFINITY};
    if (!cell->height) return half;
    int at_lower = cell->start == 0.0, at_upper = cell->stop == 0.0 || cell->stop == 1.0;
    if ((at_lower && cell->pole < C.at_end) || (at_upper && cell->pole > 1.0 - C.at_end)) return half;
    double height = exp2(-cell->height / C.steps);
    Pole seen = {cell->pole, round->along, height * height * round->across};
    return is_near(seen, 0.25, 0.5) || is_near(seen, 0.75, 0.5) ? seen : half;
}

enum { WHOLE = 1 << LEVELS };

/* The length of the part that begins at the given place, in parts of which a cell has WHOLE: the longest that bisection
 * allows there, and no longer than the pole allows, see parts.py. */
INLINE int64_t part_at(int64_t at, Pole pole) {
    int64_t length = at ? at & -at : WHOLE / 2;
    for (; length > 1; length /= 2) {
        double width = (double)length / WHOLE;
        if (!is_near(pole, (double)at / WHOLE + 0.5 * width, width)) break;
    }
    return length;
}

INLINE int64_t count_parts(Pole pole) {
    int64_t n = 0;
    for (int64_t at = 0; at < WHOLE; at += part_at(at, pole)) n++;
    return n;
}

/* The new cells, how many there are of each kind, and where they lie unless there are no `pieces`; those before which
 * to ask for f, where that is, and for which integrals. */
typedef struct {
    Cell *linear, *ends;
    int64_t *pairs, n_linear, n_ends, n_pairs;
    const Pieces *pieces;
    Layout layout;
    double *between;
    int64_t *whose;
} Children;

/* A new cell; what `measure` writes is left as it is. Field by field: copies of structs wait for each other. */
INLINE void put(Cell *cell, int64_t row, double start, double stop, double at_start, double at_stop) {
    cell->start = start, cell->stop = stop, cell->at_start = at_start, cell->at_stop = at_stop, cell->row = row;
    cell->kind = LINEAR;
}

/* Have f asked for before a new cell. */
INLINE void ask(Children *out, int64_t place) {
    int64_t pair = out->n_pairs++;
    out->pairs[pair] = place;
    if (out->pieces) out->between[pair] = out->layout.left[place], out->whose[pair] = out->layout.owner[place];
}

/* The parts of a cell. Between them f is known at the cell's middle alone, and there if it was `seen`. */
INLINE void put_parts(Children *out, const Cell *cell, Pole pole, int seen) {
    double before = cell->start, span = cell->stop - cell->start, at_before = cell->at_start;
    for (int64_t at = 0, next; at < WHOLE; at = next) {
        next = at + part_at(at, pole);
        double after = next == WHOLE ? cell->stop : cell->start + span * ((double)next / WHOLE);
        double at_after = next == WHOLE ? cell->at_stop : next == WHOLE / 2 && seen ? cell->at_middle : NAN;
        double turn = at > 0 && before >= 0.5 ? 1.0 : 0.0;
        int64_t place = out->n_linear++;
        put(&out->linear[place], cell->row, before - turn, after - turn, at_before, at_after);
        if (out->pieces) lay_out(out->pieces, &out->linear[place], &out->layout, place);
        if (at > 0 && !(at == WHOLE / 2 && seen)) ask(out, place);
        before = after, at_before = at_after;
    }
}

INLINE void put_end(Children *out, int64_t row, double start, double stop, double at_start, double at_stop) {
    Cell *cell = out->ends + out->n_ends++;
    put(cell, row, start, stop, at_start, at_stop);
    cell->at_middle = NAN, cell->kind = GEOMETRIC;
}

/* refine in cells.py, for one cell */
INLINE void refine(const Round *round, const Cell *cell, int move, Children *out) {
    int64_t row = cell->row;
    double start = cell->start, stop = cell->stop;
    if (move >= PART) {
        put_parts(out, cell, move == PART ? pole_of(cell, round) : NOWHERE, 1);
    } else if (move == REVERT) {
        put_parts(out, cell, NOWHERE, 0);
    } else if (move == TURN) {
        put_end(out, row, start, stop, cell->at_start, cell->at_stop); /* for a cell that is reverted */
    } else {
        double sum = start + stop, mean = copysign(sqrt(fabs(start)) * sqrt(fabs(stop)), sum);
        double middle = start == 0.0 || stop == 0.0 ? sum * C.step : mean;
        put_end(out, row, start, middle, NAN, NAN), put_end(out, row, middle, stop, NAN, NAN);
    }
}

/* The first of n cells in a row that is not before the given one. */
static int64_t find(const Cell *cells, int64_t n, int64_t row) {
    int64_t low = 0;
    while (low < n) {
        int64_t middle = (low + n) / 2;
        if (cells[middle].row < row) low = middle + 1;
        else n = middle;
    }
    return low;
}

/* Have cells of either kind kept, all of them, or halved, those that were to be parted. */
static void replace_moves(const Round *round, const int64_t *first, const int64_t *stop, int move) {
    for (int kind = 0; kind < 2; kind++) {
        int8_t *moves = round->moves + (kind ? round->n_linear : 0);
        for (int64_t c = first[kind]; c < stop[kind]; c++)
            if (move == KEEP || moves[c] == PART) moves[c] = (int8_t)move;
    }
}

/* What _judge in adaptive.py does: whether integrals are done, and what becomes of their cells. Those that run on are
 * left where the share begins. */
static void decide(const Round *round, Share *share) {
    int64_t fresh = round->fresh, who = share->low;
    if (!fresh && share->low < share->high) who = round->integrals[share->low].who;
    int64_t i = find(round->linear, round->n_linear, who * round->count);
    int64_t j = find(round->ends, round->n_ends, who * round->count);
    Tally made = {0};
    share->first[0] = i, share->first[1] = j;
    for (int64_t k = share->low; k < share->high; k++) {
        Integral one = fresh ? (Integral){.who = k, .count = 1, .nfev = fresh} : round->integrals[k];
        int64_t first[2] = {i, j}, beyond = (one.who + 1) * round->count;
        double value = one.value, error = one.error, floor = one.floor;
        for (const Cell *cell = round->linear + i; i < round->n_linear && cell->row < beyond; i++, cell++)
            value += cell->value, error += cell->error, floor += cell->floor;
        for (const Cell *cell = round->ends + j; j < round->n_ends && cell->row < beyond; j++, cell++)
            value += cell->value, error += cell->error, floor += cell->floor;
        int64_t stop[2] = {i, j};
        double tolerance = allowed_error(round, value, floor), target = larger(tolerance, 2.0 * floor);
        int met = error / tolerance <= 1.0, done = error / target <= 1.0;
        int64_t bad = isinf(error) ? one.bad + 1 : 0;
        int idle = done || bad > C.patience;
        int scan = done && error >= C.faint * fabs(value);
        double limit = idle ? INFINITY : target * ((round->reopened ? 1.0 : C.share) / (double)one.count);
        int64_t number[PART] = {0}, parts = 0, parted = 0;
        for (int kind = 0; kind < 2; kind++) {
            const Cell *cells = kind ? round->ends : round->linear;
            int8_t *moves = round->moves + (kind ? round->n_linear : 0);
            for (int64_t c = first[kind]; c < stop[kind]; c++) {
                const Cell *cell = &cells[c];
                int split = (cell->error > limit && cell->refinable) || (scan && to_scan(cell, 0.5 * error));
                int move = split ? plan_move(cell) : KEEP;
                moves[c] = (int8_t)move;
                if (move == PART) parts += count_parts(pole_of(cell, round)), parted++;
                else number[move]++;
            }
        }
        int64_t pairs = number[REVERT] + parts - 2 * parted, linear = 2 * number[REVERT] + parts;
        int64_t ends = number[TURN] + 2 * number[CLOSER];
        int64_t cost = one.nfev + round->rule->m * (linear + ends) + pairs + C.beside * ends;
        int64_t more = parts - 2 * parted; /* than halves */
        if (cost > round->max_nfev && more > 0) {
            linear -= more, pairs -= more, cost -= more * (round->rule->m + 1);
            replace_moves(round, first, stop, HALVE);
        }
        int64_t wanted = linear + ends;
        done = done && wanted == 0;
        int64_t code = wanted > 0 ? RUN : WAIT;
        if (code == WAIT && round->reopened)
            code = error > sqrt(round->eps) * fabs(value) ? C.divergent : C.roundoff;
        if (cost > round->max_nfev) code = C.max_nfev;
        if (bad > C.patience) code = C.nonfinite;
        if (done) code = met ? C.converged : C.roundoff;
        if (code == RUN) {
            one.count = wanted, one.nfev = cost, one.bad = bad;
            round->integrals[share->low + made.running++] = one;
            made.linear += linear, made.ends += ends, made.pairs += pairs, made.settled += number[KEEP];
        } else {
            if (wanted > 0) replace_moves(round, first, stop, KEEP);
            round->values[one.who] = value, round->errors[one.who] = error;
            round->status[one.who] = code, round->nfev[one.who] = one.nfev;
            made.waiting += code == WAIT, made.settled += stop[0] - first[0] + stop[1] - first[1];
        }
    }
    share->stop[0] = i, share->stop[1] = j, share->made = made;
}

/* What _refine in adaptive.py does: new cells, from `out` on, and settled ones. */
static void carry_out(const Round *round, const Share *share, Children out, const Leaves *leaves, int64_t settled) {
    int64_t next[2] = {share->first[0], share->first[1]}, count = round->count;
    for (int64_t k = 0; k <= share->made.running; k++) {
        Integral idle = {.who = INT64_MAX / count}, *one = round->integrals + share->low + k;
        if (k == share->made.running) one = &idle;
        for (int kind = 0; kind < 2; kind++) {
            const Cell *cells = kind ? round->ends : round->linear;
            const int8_t *moves = round->moves + (kind ? round->n_linear : 0);
            int64_t c = next[kind], stop = share->stop[kind];
            for (; c < stop && cells[c].row < one->who * count; c++) { /* of integrals that have stopped */
                pack(&cells[c], leaves, settled++);
                round->settled[cells[c].row]++;
            }
            for (; c < stop && cells[c].row < (one->who + 1) * count; c++) {
                if (moves[c] != KEEP) {
                    refine(round, &cells[c], moves[c], &out);
                } else {
                    pack(&cells[c], leaves, settled++);
                    round->settled[cells[c].row]++;
                    one->value += cells[c].value, one->error += cells[c].error, one->floor += cells[c].floor;
                }
            }
            next[kind] = c;
        }
    }
}

/* Decide on all cells, and enter the totals of the integrals that stop. */
EXPORT void judge(const Round *round, Tally *tally) {
    int64_t n = round->running, waiting = tally->waiting;
    int threads = sharing(round->n_linear + round->n_ends, round->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        round->shares[t].low = n * t / threads, round->shares[t].high = n * (t + 1) / threads;
        decide(round, &round->shares[t]);
    }
    *tally = (Tally){.waiting = waiting};
    for (int t = 0; t < threads; t++) {
        const Tally *made = &round->shares[t].made;
        tally->running += made->running, tally->waiting += made->waiting, tally->settled += made->settled;
        tally->linear += made->linear, tally->ends += made->ends, tally->pairs += made->pairs;
    }
}

/* Carry it out: write the new cells of either kind and the settled ones; on finite pieces, which are given, also where
 * the linear ones lie (3, n); and before which of them to ask for f, where that is, and for which integrals (3, n).
 * Integrals that run on are left in `integrals`. */
EXPORT void carry_on(const Round *round, const Pieces *pieces, Cell *linear, Cell *ends, double *layout,
                     double *between, double *settled, int64_t capacity, int64_t n_settled) {
    int threads = sharing(round->n_linear + round->n_ends, round->threads);
    Children out[MOST_THREADS], next = {.linear = linear, .ends = ends, .pieces = pieces};
    Leaves leaves = leaves_of(settled, capacity);
    int64_t first_leaf[MOST_THREADS];
    for (int t = 0; t < threads; t++) {
        const Tally *made = &round->shares[t].made;
        out[t] = next, first_leaf[t] = n_settled;
        next.n_linear += made->linear, next.n_ends += made->ends, next.n_pairs += made->pairs;
        n_settled += made->settled;
    }
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        out[t].layout = rows_of(layout, next.n_linear);
        out[t].pairs = (int64_t *)between, out[t].between = between + next.n_pairs;
        out[t].whose = (int64_t *)(between + 2 * next.n_pairs);
        carry_out(round, &round->shares[t], out[t], &leaves, first_leaf[t]);
    }
    for (int64_t t = 0, kept = 0; t < threads; kept += round->shares[t++].made.running)
        memmove(round->integrals + kept, round->integrals + round->shares[t].low,
                (size_t)round->shares[t].made.running * sizeof(Integral));
}

/* Take the n settled cells of integrals that wait out of all; in their place stays GONE. */
EXPORT void withdraw(double *settled, int64_t capacity, int64_t all, int64_t count, const int64_t *status,
                     int64_t *counts, Cell *taken, int64_t n) {
    Leaves leaves = leaves_of(settled, capacity);
    for (int64_t place = 0; n > 0 && place < all; place++) {
        int64_t tag = leaves.tag[place], row = tag >> 8;
        if (tag == GONE || status[count == 1 ? row : row / count] != WAIT) continue;
        *taken++ = unpack(&leaves.leaf[place], tag);
        leaves.tag[place] = GONE, counts[row]--, n--;
    }
}

/* The n settled cells but those that are gone, sorted by row, those of one row as they settled, of which there are
 * `counts` in each row. Return how many have logarithmic nodes; 0 if their kinds are not asked for. */
EXPORT int64_t collect(double *settled, int64_t capacity, int64_t n, int64_t rows, int64_t *counts, int64_t *row,
                       double *start, double *stop, double *error, int8_t *kind, int64_t threads) {
    Leaves leaves = leaves_of(settled, capacity);
    int64_t n_ends[READERS] = {0}, place = 0, all = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = counts[r];
        counts[r] = place;
        place += count;
    }
    threads = sharing(n, threads < READERS ? threads : READERS);
    PARALLEL(threads)
    for (int64_t t = 0; t < threads; t++) {
        int64_t low = rows * t / threads, high = rows * (t + 1) / threads;
        for (int64_t i = 0; i < n; i++) {
            int64_t tag = leaves.tag[i], here = tag >> 8;
            if (here < low || here >= high || tag == GONE) continue;
            const Leaf *leaf = &leaves.leaf[i];
            int64_t to = counts[here]++;
            row[to] = here, start[to] = leaf->start, stop[to] = leaf->stop, error[to] = leaf->error;
            if (kind) n_ends[t] += (kind[to] = (int8_t)(tag % 256 / 16)) != LINEAR;
        }
    }
    for (int64_t t = 0; t < threads; t++) all += n_ends[t];
    return all;
}
