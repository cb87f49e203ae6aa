/* What becomes of cells and integrals in a round, and what is handed over. */

#include "sums.h"

INLINE void pack(const Cell *cell, const Leaves *leaves, int64_t place) {
    Leaf *leaf = leaf_at(leaves, place);
    copy(cell->columns, leaves->tail, leaf->columns);
    leaf->start = cell->start, leaf->stop = cell->stop;
    leaf->value = cell->value, leaf->error = cell->error, leaf->floor = cell->floor;
    leaves->tag[place] = cell->row * 256 + cell->kind * 32 + (cell->refinable + 1) * 8 + cell->lean + 2;
}

INLINE Cell unpack(const Leaf *leaf, int64_t tag) {
    return (Cell){leaf->start, leaf->stop, leaf->value, leaf->error, leaf->floor, NAN, NAN, NAN, tag / 256,
                  (int8_t)(tag % 256 / 32), (int8_t)(tag % 8 - 2), (int8_t)(tag / 8 % 4 - 1), 0, 0.0f};
}

/* which cell of a faint integral is followed: mark in search/decide.py */
INLINE int to_follow(const Cell *cell, double most) {
    int rough = cell->error > cell->floor && cell->refinable > 0;
    return rough && cell->error > most && cell->error >= C.faint * fabs(cell->value);
}

/* propose in mesh/bisection.py, for one that is refined */
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
 * allows there, and no longer than the pole allows, see mesh/poles.py. */
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

/* The new cells, how many there are of each kind; where those with linear nodes lie, and before which to ask for f. */
typedef struct {
    const Setting *setting;
    Cell *linear, *ends;
    Layout layout;
    int64_t *pairs, n_linear, n_ends, n_pairs, tail;
} Children;

/* A new cell; what `measure` writes is left as it is. Field by field: copies of structs wait for each other. */
INLINE void put(Cell *cell, int64_t row, double start, double stop, double at_start, double at_stop) {
    cell->start = start, cell->stop = stop, cell->at_start = at_start, cell->at_stop = at_stop, cell->row = row;
    cell->kind = LINEAR;
}

/* The parts of a cell. Between them f is known at the cell's middle alone, and there if it was `seen`. */
INLINE void put_parts(Children *out, const Cell *cell, Pole pole, int seen) {
    int64_t tail = out->tail;
    double before = cell->start, span = cell->stop - cell->start, at_before = cell->at_start;
    for (int64_t at = 0, next; at < WHOLE; at = next) {
        next = at + part_at(at, pole);
        double after = next == WHOLE ? cell->stop : cell->start + span * ((double)next / WHOLE);
        double at_after = next == WHOLE ? cell->at_stop : next == WHOLE / 2 && seen ? cell->at_middle : NAN;
        double turn = at > 0 && before >= 0.5 ? 1.0 : 0.0;
        int64_t place = out->n_linear++;
        Cell *part = cell_at(out->linear, place, tail);
        put(part, cell->row, before - turn, after - turn, at_before, at_after);
        lay_out(out->setting, part, &out->layout, place);
        if (at > 0 && !(at == WHOLE / 2 && seen)) out->pairs[out->n_pairs++] = place;
        before = after, at_before = at_after;
    }
}

INLINE void put_end(Children *out, int64_t row, double start, double stop, double at_start, double at_stop) {
    Cell *cell = cell_at(out->ends, out->n_ends++, out->tail);
    put(cell, row, start, stop, at_start, at_stop);
    cell->at_middle = NAN, cell->kind = LOGARITHMIC;
}

/* split in mesh/bisection.py, for one cell */
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

/* Have cells of either kind kept, all of them, or halved, those that were to be parted. */
static void replace_moves(const Round *round, const int64_t *first, const int64_t *stop, int move) {
    for (int kind = 0; kind < 2; kind++) {
        int8_t *moves = round->moves + (kind ? round->n_linear : 0);
        for (int64_t c = first[kind]; c < stop[kind]; c++)
            if (move == KEEP || moves[c] == PART) moves[c] = (int8_t)move;
    }
}

/* What is to become of an integral's cells: how many get which move, how many parts those have that are parted. */
typedef struct {
    int64_t number[PART], parts, parted;
} Moves;

/* Say for each cell of an integral from `first` to before `stop` what becomes of it. */
INLINE Moves plan_moves(const Round *round, int64_t tail, const int64_t *first, const int64_t *stop, double limit,
                        int follow, double most) {
    Moves made = {.parts = 0};
    for (int kind = 0; kind < 2; kind++) {
        const Cell *cells = kind ? round->ends : round->linear;
        int8_t *moves = round->moves + (kind ? round->n_linear : 0);
        for (int64_t c = first[kind]; c < stop[kind]; c++) {
            const Cell *cell = cell_at(cells, c, tail);
            int split = (cell->error > limit && cell->refinable > 0) || (follow && to_follow(cell, most));
            int move = split ? plan_move(cell) : KEEP;
            moves[c] = (int8_t)move;
            if (move == PART) made.parts += count_parts(pole_of(cell, round)), made.parted++;
            else made.number[move]++;
        }
    }
    return made;
}

/* What `judge` in the tensor operations does: whether integrals are done, and what becomes of their cells. Those that
 * run on are left where the share begins. */
INLINE void decide(const Round *round, int64_t tail, Share *share) {
    int64_t fresh = round->fresh, who = share->low, count = round->setting->count, m = round->setting->rule->m;
    if (!fresh && share->low < share->high) who = round->integrals[share->low].who;
    int64_t next[2] = {find(round->linear, round->n_linear, tail, who * count),
                       find(round->ends, round->n_ends, tail, who * count)};
    Tally made = {0};
    memcpy(share->first, next, sizeof next);
    for (int64_t k = share->low; k < share->high; k++) {
        Integral one = fresh ? (Integral){.who = k, .count = 1, .nfev = fresh} : round->integrals[k];
        int64_t first[2] = {next[0], next[1]}, beyond = (one.who + 1) * count;
        double *totals = round->values + one.who * (tail ? tail : 1);
        Sums sums = {.value = one.value, .error = one.error, .floor = one.floor};
        copy(round->held + one.who * tail, tail, totals);
        add_cells(round->linear, round->n_linear, tail, beyond, &next[0], totals, &sums);
        add_cells(round->ends, round->n_ends, tail, beyond, &next[1], totals, &sums);
        size_up(totals, tail, round->setting->parts, &sums);
        double error = sums.error, tolerance = allowed_error(round, sums.largest, sums.floor);
        double target = larger(tolerance, 2.0 * sums.floor);
        int met = error / tolerance <= 1.0, done = error / target <= 1.0;
        int64_t bad = isinf(error) ? one.bad + 1 : 0;
        int idle = done || bad > C.patience, faint = done && error >= C.faint * sums.sizes;
        double limit = idle ? INFINITY : target * ((round->reopened ? 1.0 : C.share) / (double)one.count);
        Moves moves = plan_moves(round, tail, first, next, limit, faint, 0.5 * error);
        int64_t more = moves.parts - 2 * moves.parted; /* than halves */
        int64_t pairs = moves.number[REVERT] + more, linear = 2 * moves.number[REVERT] + moves.parts;
        int64_t ends = moves.number[TURN] + 2 * moves.number[CLOSER];
        int64_t cost = one.nfev + m * (linear + ends) + pairs + C.beside_end * ends;
        if (cost > round->max_nfev && more > 0) {
            linear -= more, pairs -= more, cost -= more * (m + 1);
            replace_moves(round, first, next, HALVE);
        }
        int64_t wanted = linear + ends;
        done = done && wanted == 0;
        int64_t code = wanted > 0 ? RUN : WAIT;
        if (code == WAIT && round->reopened)
            code = error > sqrt(round->eps) * sums.largest && sums.narrow >= 0.5 * error ? C.divergent : C.roundoff;
        if (cost > round->max_nfev) code = C.max_nfev;
        if (bad > C.patience) code = C.nonfinite;
        if (done) code = met ? C.converged : C.roundoff;
        made.faint += done && (faint || sums.largest <= round->nothing);
        if (code == RUN) {
            one.count = wanted, one.nfev = cost, one.bad = bad;
            round->integrals[share->low + made.running++] = one;
            made.linear += linear, made.ends += ends, made.pairs += pairs, made.settled += moves.number[KEEP];
        } else {
            if (wanted > 0) replace_moves(round, first, next, KEEP);
            if (!tail) *totals = sums.value;
            round->errors[one.who] = error, round->status[one.who] = code, round->nfev[one.who] = one.nfev;
            made.waiting += code == WAIT, made.settled += next[0] - first[0] + next[1] - first[1];
        }
    }
    memcpy(share->stop, next, sizeof next);
    share->made = made;
}

/* New cells, from `out` on, and settled ones. */
INLINE void carry_out(const Round *round, const Share *share, int64_t tail, Children out, const Leaves *leaves,
                      int64_t settled) {
    int64_t next[2] = {share->first[0], share->first[1]}, count = round->setting->count;
    for (int64_t k = 0; k <= share->made.running; k++) {
        Integral idle = {.who = INT64_MAX / count}, *one = round->integrals + share->low + k;
        if (k == share->made.running) one = &idle;
        for (int kind = 0; kind < 2; kind++) {
            const Cell *cells = kind ? round->ends : round->linear;
            const int8_t *moves = round->moves + (kind ? round->n_linear : 0);
            int64_t c = next[kind], stop = share->stop[kind];
            for (const Cell *cell; c < stop && (cell = cell_at(cells, c, tail))->row < one->who * count; c++) {
                pack(cell, leaves, settled++); /* of integrals that have stopped */
                round->settled[cell->row]++;
            }
            for (const Cell *cell; c < stop && (cell = cell_at(cells, c, tail))->row < (one->who + 1) * count; c++) {
                if (moves[c] != KEEP) {
                    refine(round, cell, moves[c], &out);
                } else {
                    pack(cell, leaves, settled++);
                    round->settled[cell->row]++;
                    one->error += cell->error, one->floor += cell->floor;
                    if (tail) add(cell->columns, tail, round->held + one->who * tail);
                    else one->value += cell->value;
                }
            }
            next[kind] = c;
        }
    }
}

/* Decide on all cells, and enter the totals of the integrals that stop. */
EXPORT void judge(const Round *round, Tally *tally) {
    int64_t n = round->running, waiting = tally->waiting, tail = tail_of(round->setting);
    int threads = sharing(round->n_linear + round->n_ends, round->setting->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        Share *share = &round->shares[t];
        share->low = n * t / threads, share->high = n * (t + 1) / threads;
        if (tail) decide(round, tail, share);
        else decide(round, 0, share);
    }
    *tally = (Tally){.waiting = waiting, .faint = tally->faint};
    for (int t = 0; t < threads; t++) {
        const Tally *made = &round->shares[t].made;
        tally->running += made->running, tally->waiting += made->waiting, tally->settled += made->settled;
        tally->faint += made->faint, tally->linear += made->linear, tally->ends += made->ends, tally->pairs += made->pairs;
    }
}

/* Carry it out: write the new cells of either kind and the settled ones, where those with linear nodes lie, and before
 * which to ask for f. Integrals that run on are left in `integrals`. */
EXPORT void carry_on(const Round *round, Cell *linear, Cell *ends, double *layout, int64_t *pairs, Leaf *settled,
                     int64_t *tags, int64_t n_settled) {
    int64_t tail = tail_of(round->setting);
    int threads = sharing(round->n_linear + round->n_ends, round->setting->threads);
    Children out[MOST_THREADS], next = {round->setting, linear, ends, .pairs = pairs, .tail = tail};
    Leaves leaves = {settled, tags, tail};
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
        if (tail) {
            carry_out(round, &round->shares[t], tail, out[t], &leaves, first_leaf[t]);
        } else {
            Leaves one = {settled, tags, 0};
            out[t].tail = 0;
            carry_out(round, &round->shares[t], 0, out[t], &one, first_leaf[t]);
        }
    }
    for (int64_t t = 0, kept = 0; t < threads; kept += round->shares[t++].made.running)
        memmove(round->integrals + kept, round->integrals + round->shares[t].low,
                (size_t)round->shares[t].made.running * sizeof(Integral));
}

/* Take the n settled cells of integrals that wait out of all; in their place stays GONE. */
EXPORT void withdraw(const Setting *set, Leaf *settled, int64_t *tags, int64_t all, const int64_t *status,
                     int64_t *counts, Cell *taken, int64_t n) {
    Leaves leaves = {settled, tags, tail_of(set)};
    for (int64_t place = 0, i = 0; i < n && place < all; place++) {
        int64_t tag = leaves.tag[place], row = tag >> 8;
        if (tag == GONE || status[row / set->count] != WAIT) continue;
        const Leaf *leaf = leaf_at(&leaves, place);
        Cell *cell = cell_at(taken, i++, leaves.tail);
        *cell = unpack(leaf, tag);
        copy(leaf->columns, leaves.tail, cell->columns);
        leaves.tag[place] = GONE, counts[row]--;
    }
}

/* The n settled cells but those that are gone, sorted by row, those of one row as they settled, of which there are
 * `counts` in each of the rows. Return how many have logarithmic nodes; 0 if their kinds are not asked for. Enter the
 * sums of the sizes of real components (rows, columns), if these are asked for. */
EXPORT int64_t collect(const Setting *set, Leaf *settled, int64_t *tags, int64_t n, int64_t rows, int64_t *counts,
                       int64_t *row, double *start, double *stop, double *error, int8_t *kind, double *seen) {
    Leaves leaves = {settled, tags, tail_of(set)};
    int64_t n_ends[READERS] = {0}, place = 0, all = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = counts[r];
        counts[r] = place;
        place += count;
    }
    int threads = sharing(n, set->threads < READERS ? set->threads : READERS);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t low = rows * t / threads, high = rows * (t + 1) / threads;
        for (int64_t i = 0; i < n; i++) {
            int64_t tag = leaves.tag[i], here = tag >> 8;
            if (here < low || here >= high || tag == GONE) continue;
            const Leaf *leaf = leaf_at(&leaves, i);
            int64_t to = counts[here]++;
            row[to] = here, start[to] = leaf->start, stop[to] = leaf->stop, error[to] = leaf->error;
            for (int64_t j = 0; seen && j < set->columns; j++)
                seen[here * set->columns + j] += fabs(leaves.tail ? leaf->columns[j] : leaf->value);
            if (kind) n_ends[t] += (kind[to] = (int8_t)(tag % 256 / 32)) != LINEAR;
        }
    }
    for (int t = 0; t < threads; t++) all += n_ends[t];
    return all;
}
