/* What becomes of integrals over boxes, and of their cells: the inside of search/tensors.py, and of holding.py and
 * bodies.py of search/boxes/, which explain it. In a round come, one after the other:
 *
 * mark_boxes: judges integrals, and marks the cells with the largest errors; those of which none is marked are ready;
 * (box_looks.c: marks cells of integrals that are ready which are blind;)
 * finish_boxes: decides how integrals end, and unmarks cells of those that do;
 * group_boxes, copy_boxes, halve_boxes: part the cells, copy those that are held, and halve those that are marked. */

#include "boxes.h"

/* What is asked of `running` integrals with n cells: what each of them (a row of `integrals` for its number, its cells,
 * the nodes spent and the rounds with values that are not finite) has in settled cells, the sums over all, what each
 * may be off, and what is told of it; which of the cells are to be halved; and room for their numbers. */
typedef struct {
    double rtol, atol, eps;
    int64_t n, running, reopened;
    const double *settled;
    const int64_t *integrals;
    double *totals, *target, *narrow;
    int64_t *next, *code, *first, *order;
    uint8_t *told, *marked;
} BoxRound;

enum { MET = 1, DONE = 2, LOST = 4, FAINT = 8, READY = 16 };
enum { WHO, COUNT, SPENT, BAD };

INLINE const int64_t *owners(const BoxColumns *cells) { return cells->whole + OWNER * cells->stride; }

/* The largest component of sums, and the sizes of all together. */
INLINE double sizes_of(const BoxSetting *set, const double *sums, int64_t step, double *all) {
    double largest = 0.0;
    *all = 0.0;
    for (int64_t j = 0; j < set->columns; j += set->parts) {
        double size = set->parts == 2 ? hypot(sums[j * step], sums[(j + 1) * step]) : fabs(sums[j * step]);
        largest = worse(largest, size), *all += size;
    }
    return largest;
}

/* Compare an integral with its tolerance. */
INLINE void judge_integral(const BoxSetting *set, BoxRound *round, int64_t i) {
    int64_t n = round->running, columns = set->columns;
    double size, *totals = round->totals + i, error = totals[columns * n], floor = totals[(columns + 1) * n];
    double largest = sizes_of(set, totals, n, &size), allowed = round->rtol * largest, zero = 5.0 * floor;
    if (largest <= zero) allowed = larger(allowed, zero);
    allowed = larger(allowed, round->atol);
    double target = round->target[i] = larger(allowed, 2.0 * floor);
    int64_t bad = isinf(error) ? round->integrals[BAD * n + i] + 1 : 0;
    int met = error / allowed <= 1.0, done = error / target <= 1.0, lost = bad > set->c->patience;
    int faint = done && error >= set->c->faint * size;
    round->told[i] = (uint8_t)(MET * met | DONE * done | LOST * lost | FAINT * faint | READY * done);
    round->next[BAD * n + i] = bad;
}

/* Whether a cell comes before another: the larger error, of equal ones the first. */
INLINE int before(const double *error, int64_t a, int64_t b) {
    return error[a] > error[b] || (error[a] == error[b] && a < b);
}

INLINE void swap(int64_t *a, int64_t *b) {
    int64_t kept = *a;
    *a = *b, *b = kept;
}

/* Mark as few of the cells `order` as possible, the largest errors first, that together have `needed`, and at most
 * `room`. Those of a part that is needed as a whole are not put in order. */
static void mark_largest(const double *error, int64_t *order, int64_t count, double needed, int64_t room,
                         uint8_t *marked) {
    while (count > 0 && needed > 0.0 && room > 0) {
        swap(order, order + count / 2);
        int64_t pivot = order[0], ahead = 0;
        double sum = 0.0;
        for (int64_t i = 1; i < count; i++)
            if (before(error, order[i], pivot)) {
                sum += error[order[i]];
                swap(order + i, order + ++ahead);
            }
        swap(order, order + ahead); /* those ahead of the pivot stand before it */
        if (ahead >= room || sum >= needed) {
            count = ahead;
            continue;
        }
        for (int64_t i = 0; i <= ahead; i++) marked[order[i]] = 1;
        needed -= sum + error[pivot], room -= ahead + 1;
        order += ahead + 1, count -= ahead + 1;
    }
}

/* Whether halving a cell is worth anything: what is less comes last, and need not be put in order. */
INLINE int is_worth_halving(const BoxSetting *set, const BoxColumns *cells, const BoxRound *round, int64_t k) {
    const BoxConstants *c = set->c;
    int64_t i = owners(cells)[k], many = round->next[COUNT * round->running + i];
    double error = cells->sums[set->columns * cells->stride + k];
    if (!(error > c->share * c->negligible * round->target[i] / (double)many) || isinf(error)) return 0;
    return cells->whole[SPLITTABLE * cells->stride + k] > 0 && !(round->told[i] & DONE);
}

/* Put the cells that are worth to be halved in order by integral, and mark the largest errors of each, of which `whole`
 * is the sum. */
INLINE void mark_errors(const BoxSetting *set, const BoxColumns *cells, BoxRound *round, const double *whole) {
    const BoxConstants *c = set->c;
    const double *error = cells->sums + set->columns * cells->stride;
    const int64_t *owner = owners(cells);
    int64_t n = round->n, running = round->running, *first = round->first;
    memset(first, 0, (size_t)(running + 1) * sizeof *first);
    for (int64_t k = 0; k < n; k++) first[owner[k]] += is_worth_halving(set, cells, round, k);
    for (int64_t i = 0, at = 0; i <= running; i++) {
        int64_t many = first[i];
        first[i] = at, at += many;
    }
    /* From here on `first` is where the next cell of an integral goes, and in the end where those of the next begin. */
    for (int64_t k = 0; k < n; k++)
        if (is_worth_halving(set, cells, round, k)) round->order[first[owner[k]]++] = k;
    for (int64_t i = 0, at = 0; i < running; at = first[i++]) {
        /* Where little is to be taken away less may be left to chance: what halves keep is about known. */
        double share = (c->enough - c->kept * whole[i] / round->target[i]) / (1.0 - c->kept);
        share = smaller(larger(share, c->share), c->enough);
        int64_t room = (c->most - round->integrals[SPENT * running + i]) / (2 * set->rule->rows);
        mark_largest(error, round->order + at, first[i] - at, whole[i] - share * round->target[i], room < 1 ? 1 : room,
                     round->marked);
    }
}

/* Judge all integrals, and mark cells that are to be halved; return how many integrals are ready to end. */
EXPORT int64_t mark_boxes(const BoxSetting *set, const BoxColumns *cells, BoxRound *round) {
    const BoxConstants *c = set->c;
    int64_t n = round->n, running = round->running, columns = set->columns, d = set->rule->d, stride = cells->stride;
    const int64_t *owner = owners(cells), *splittable = cells->whole + SPLITTABLE * stride;
    const double *errors = cells->sums + columns * stride;
    double *whole = round->narrow; /* used for this first */
    int64_t *count = round->next + COUNT * running;
    memcpy(round->totals, round->settled, (size_t)((columns + 2) * running) * sizeof(double));
    memcpy(whole, round->settled + columns * running, (size_t)running * sizeof(double));
    memset(count, 0, (size_t)running * sizeof *count);
    for (int64_t j = 0; j < columns + 2; j++)
        for (int64_t k = 0; k < n; k++) round->totals[j * running + owner[k]] += cells->sums[j * stride + k];
    for (int64_t k = 0; k < n; k++) {
        count[owner[k]]++;
        if (!isinf(errors[k])) whole[owner[k]] += errors[k];
    }
    for (int64_t i = 0; i < running; i++) judge_integral(set, round, i);
    memset(round->marked, 0, (size_t)n);
    mark_errors(set, cells, round, whole);
    for (int64_t k = 0; k < n; k++) {
        int64_t depth = 0, done = round->told[owner[k]] & DONE;
        for (int64_t axis = 0; axis < d && depth < c->bisections; axis++)
            depth += cells->whole[(LEVEL + axis) * stride + k];
        round->marked[k] |= splittable[k] > 0 && (depth < c->bisections || (isinf(errors[k]) && !done));
        if (round->marked[k]) round->told[owner[k]] &= (uint8_t)~READY;
    }
    int64_t ready = 0;
    for (int64_t i = 0; i < running; i++) ready += (round->told[i] & READY) != 0;
    /* Of what is faint also the cell that has most of the error: what was seen there may be the foot of more. */
    for (int64_t k = 0; k < n; k++) {
        int64_t i = owner[k], both = FAINT | DONE;
        double size, error = errors[k];
        if ((round->told[i] & both) != both || splittable[k] <= 0 || !(error > errors[stride + k])) continue;
        sizes_of(set, cells->sums + k, stride, &size);
        if (error > 0.5 * round->totals[columns * running + i] && error >= c->faint * size) round->marked[k] = 1;
    }
    return ready;
}

/* Decide how integrals end, given which cells are to be halved; of those that do not run on none is. Enter to `next`
 * what they go on with, and return how many of them do so; to `counts` how many wait, and how many cells are halved. */
EXPORT int64_t finish_boxes(const BoxSetting *set, const BoxColumns *cells, BoxRound *round, int64_t *counts) {
    const BoxConstants *c = set->c;
    int64_t n = round->n, running = round->running, columns = set->columns, runs = 0;
    const int64_t *owner = owners(cells), *splittable = cells->whole + SPLITTABLE * cells->stride;
    const double *errors = cells->sums + columns * cells->stride;
    int64_t *children = round->next + COUNT * running;
    memset(children, 0, (size_t)running * sizeof *children);
    memset(round->narrow, 0, (size_t)running * sizeof(double));
    for (int64_t k = 0; k < n; k++) {
        children[owner[k]] += 2 * (round->marked[k] != 0);
        if (splittable[k] < 0) round->narrow[owner[k]] += errors[k];
    }
    counts[0] = counts[1] = 0;
    for (int64_t i = 0; i < running; i++) {
        int64_t spent = round->integrals[SPENT * running + i] + set->rule->rows * children[i], code = RUN;
        double size, *totals = round->totals + i, error = totals[columns * running];
        int told = round->told[i];
        if (!children[i]) {
            code = WAIT;
            if (round->reopened) {
                int large = error > sqrt(round->eps) * sizes_of(set, totals, running, &size);
                code = large && round->narrow[i] >= 0.5 * error ? c->divergent : c->roundoff;
            }
        }
        if (spent > c->most) code = c->max_nfev;
        if (told & LOST) code = c->nonfinite;
        if (told & DONE && !children[i]) code = told & MET ? c->converged : c->roundoff;
        round->next[WHO * running + i] = round->integrals[WHO * running + i];
        round->next[SPENT * running + i] = spent;
        round->code[i] = code;
        runs += code == RUN, counts[0] += code == WAIT;
    }
    for (int64_t k = 0; k < n; k++) {
        if (round->code[owner[k]] != RUN) round->marked[k] = 0;
        counts[1] += round->marked[k] != 0;
    }
    return runs;
}

/* The numbers of cells in three groups, each in order: those that are halved, those that are held, as their integrals
 * run on, and the others. Return how many of the second kind there are; `halved` are of the first. */
EXPORT int64_t group_boxes(const BoxColumns *cells, const BoxRound *round, int64_t halved) {
    int64_t held = 0, next[3] = {0, halved, 0};
    const int64_t *owner = owners(cells);
    for (int64_t k = 0; k < round->n; k++) held += !round->marked[k] && round->code[owner[k]] == RUN;
    next[2] = halved + held;
    for (int64_t k = 0; k < round->n; k++) {
        int group = round->marked[k] ? 0 : round->code[owner[k]] == RUN ? 1 : 2;
        round->order[next[group]++] = k;
    }
    return held;
}

/* Copy n cells to others, of which the matrices have `rows` rows of numbers in all: sums, real and whole numbers. */
EXPORT void copy_boxes(const BoxSetting *set, const BoxColumns *from, const int64_t *index, int64_t n,
                       const BoxColumns *to) {
    int64_t d = set->rule->d, rows[2] = {set->columns + 2, FACES + 2 * d + 4};
    for (int part = 0; part < 2; part++)
        for (int64_t r = 0; r < rows[part]; r++) {
            const double *source = (part ? from->real : from->sums) + r * from->stride;
            double *target = (part ? to->real : to->sums) + r * to->stride;
            for (int64_t i = 0; i < n; i++) target[i] = source[index[i]];
        }
    for (int64_t r = 0; r < LEVEL + 2 * d; r++)
        for (int64_t i = 0; i < n; i++) to->whole[r * to->stride + i] = from->whole[r * from->stride + index[i]];
}

/* The halves of n cells along their axes, side by side: integrals (one row for those that run, one for all), levels and
 * places (d, 2 n). */
EXPORT void halve_boxes(const BoxSetting *set, const BoxColumns *cells, int64_t n, int64_t *owner, int64_t *row,
                        int64_t *level, int64_t *place) {
    int64_t stride = cells->stride, d = set->rule->d;
    for (int64_t i = 0; i < n; i++) {
        const int64_t *whole = cells->whole + i;
        for (int64_t k = 2 * i; k < 2 * i + 2; k++) {
            owner[k] = whole[OWNER * stride], row[k] = whole[ROW * stride];
            for (int64_t axis = 0; axis < d; axis++) {
                int64_t along = axis == whole[AXIS * stride], at = axis * 2 * n + k;
                level[at] = whole[(LEVEL + axis) * stride] + along;
                place[at] = whole[(LEVEL + d + axis) * stride] * (1 + along) + along * (k - 2 * i);
            }
        }
    }
}
