/* The rounds of quadgrad's search on the CPU, in double precision, whatever dtype f is called in.
 *
 * The same decisions as those of the tensor operations, which explain them and which the tests hold this kernel to.
 * There each decision is one pass over all cells, here all decisions on a cell are one pass. Neither f nor Python is
 * called from it, and no memory is kept but the constants.
 *
 * Cells of one integral stand next to each other, integrals in ascending order. Cells with logarithmic nodes
 * ("ends") have an array of their own, because their nodes are placed and weighed in another way.
 *
 * The values of an integrand with events, or a complex one, are several real columns. Only the first pass over what f
 * returns, and the sums, see columns; all decisions are on what is left of them for a cell or an integral.
 *
 * nodes.c: where f is called; estimates.c, singular_ends.c: what its values say; decisions.c: what follows. Apart from
 * all that stands points.c: where sampling calls f.
 */

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* For Python; everything else is hidden. */
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))

#ifdef _OPENMP
#define STRING(text) #text
#define PARALLEL(threads) _Pragma(STRING(omp parallel for schedule(static) num_threads(threads) if (threads > 1)))
#else
#define PARALLEL(threads)
#endif

enum { LINEAR, LOGARITHMIC, EXTRAPOLATED }; /* and beyond: the column that extrapolates */
enum { HELD = 64 };                         /* more, before the cell is measured: that column is not to be chosen */
enum { KEEP, REVERT, TURN, CLOSER, PART, HALVE };
enum { RUN = -1, WAIT = -2 };
enum { MOST_THREADS = 64, READERS = 4 }; /* READERS: threads that each read all there is */
enum { NULL_PAIRS = 5, FUNCTIONALS = 7 + 2 * NULL_PAIRS, SHARES = 6, LOOKS = 3, COLUMNS = 3, LEVELS = 20, INNERMOST = 5 };

/* Ten numbers of eight bytes: native.py looks at them as columns. The places are as in NewIntervals of cells.py; f at
 * start, stop and middle is times the slope, and NaN where it is not known; of several columns these are sums.
 * The height is by how many steps it is below 1, or 0 where no pole is seen. Several columns' values stand in `columns`,
 * and `value` is the sum of their sizes; see `cell_at`. */
typedef struct {
    double start, stop, value, error, floor, at_start, at_stop, at_middle;
    int64_t row;
    int8_t kind, lean, refinable;
    uint8_t height;
    float pole;
    double columns[];
} Cell;

enum { GONE = -1 };

typedef struct {
    double start, stop, value, error, floor, columns[];
} Leaf;

/* Settled cells; `tag` is the row, times 256, and what `pack` makes of a cell's other integers; or GONE. */
typedef struct {
    Leaf *leaf;
    int64_t *tag, tail;
} Leaves;

/* The `tail` is how many numbers stand behind a record: the columns, or none where there is but one. */
INLINE Cell *cell_at(const Cell *cells, int64_t i, int64_t tail) {
    return (Cell *)((double *)cells + i * ((int64_t)(sizeof(Cell) / sizeof(double)) + tail));
}

INLINE Leaf *leaf_at(const Leaves *leaves, int64_t i) {
    return (Leaf *)((double *)leaves->leaf + i * ((int64_t)(sizeof(Leaf) / sizeof(double)) + leaves->tail));
}

/* An integral that is still running, with the sums over its settled cells; those of several columns are `held`, see
 * Round. */
typedef struct {
    double value, error, floor;
    int64_t who, count, nfev, bad;
} Integral;

/* The constants of the Python modules, under their names there. */
typedef struct {
    double floor, place, beyond, safety, slow, unresolved, rougher, near, unsure, at_end, steps;
    double faint, step, deep, every, limit, ulps, share;
    double close, nearest, deepest, lawless, shortest, depth, rounded, settling, settled, logarithm, drifting, far, emerges, at_least, layer, sharp, alike, jointly_alike, nearly_alike, left, above, singular;
    int64_t beside, whole, beside_end, patience, functionals, shares, levels, looks;
    int64_t converged, max_nfev, roundoff, nonfinite, divergent;
} Constants;

/* A rule with m nodes, which are symmetric. `all` has rows of m numbers: the weights, 2 NULL_PAIRS nulls, 2 halves,
 * 2 slopes, 2 edges, the shares, and the looks, whose places are beside the nodes. Those before the shares stand also in
 * `even` and `odd`, see `fold`. What one value makes of the SPIKE_NULLS highest
 * coefficients: rows of `alone` are unit vectors, `lengths` the value that makes coefficients of length 1. The same of
 * edge, nodes, edge and looks: `joint`, their null rules, `joint_alone` and `joint_lengths`. */
typedef struct {
    const double *nodes, *all, *even, *odd, *looks, *alone, *lengths, *joint, *joint_alone, *joint_lengths;
    int64_t m, order_gap;
} Rule;

/* What stays the same during a search. Ends of the pieces, count for each integral; a step of 0 where all share one,
 * `infinite` if any is. `columns` are the real numbers in one value of f, two of them in a complex one, of which there
 * are `parts`. eps and tiny: those of the dtype of x; threads: how many there may be. */
typedef struct {
    const double *lower, *upper;
    int64_t lower_step, upper_step, count, infinite, columns, parts, threads;
    double eps, tiny;
    const Rule *rule;
} Setting;

INLINE int64_t tail_of(const Setting *set) { return set->columns > 1 ? set->columns : 0; }

/* How many integrals run on and wait; how many cells are new, of how many pairs of these f is not known between them,
 * how many have settled, and how many integrals ended of which next to nothing was seen. */
typedef struct {
    int64_t running, waiting, linear, ends, pairs, settled, faint;
} Tally;

/* A thread's part of a round: integrals from `low` to before `high`, their cells of both kinds, and what they make of
 * them. */
typedef struct {
    int64_t low, high, first[2], stop[2];
    Tally made;
} Share;

/* What is asked, with the ellipse of poles.py, and one round: the `running` integrals and their cells; if they are
 * `fresh`, one cell each and not in the books yet, that is what each has cost; a move for each cell; and, for all
 * integrals, the sums over settled cells where there are several columns, the totals of those that stopped (with
 * several columns, of all), and how many cells have settled by row. */
typedef struct {
    double rtol, atol, eps, nothing, along, across;
    int64_t max_nfev, reopened, fresh, running, n_linear, n_ends;
    const Setting *setting;
    Integral *integrals;
    const Cell *linear, *ends;
    Share *shares;
    int8_t *moves;
    double *held, *values, *errors;
    int64_t *status, *nfev, *settled;
} Round;

extern Constants C;

/* How many threads share the work on n cells; on few cells one is quicker alone. */
INLINE int sharing(int64_t n, int64_t threads) {
    return n < 1024 ? 1 : threads < MOST_THREADS ? (int)threads : MOST_THREADS;
}

/* Not fmax and fmin, which look out for NaN: that stays where it comes first and is ignored where second. */
INLINE double larger(double a, double b) { return b > a ? b : a; }
INLINE double smaller(double a, double b) { return b < a ? b : a; }

/* Here NaN stays. */
INLINE double worse(double a, double b) { return (b > a) | (b != b) ? b : a; }

INLINE double modulus(double a, double b) {
    double most = worse(fabs(a), fabs(b)), least = smaller(fabs(a), fabs(b));
    double ratio = most > 0.0 ? least / most : 0.0;
    return most * sqrt(1.0 + ratio * ratio);
}

/* How far from the ends of a piece first cells see f, as a part of the piece. */
INLINE double beside_ends(const Setting *set, double origin, double width) {
    return larger(C.limit, (fabs(origin) / width + 1.0) * C.ulps * set->eps);
}

/* The size of the component that begins in a column. */
INLINE double size_at(const double *columns, int64_t j, int64_t parts) {
    return parts == 2 ? modulus(columns[j], columns[j + 1]) : fabs(columns[j]);
}

INLINE double sum_of(const double *y, int64_t columns) {
    double sum = 0.0;
    for (int64_t j = 0; j < columns; j++) sum += y[j];
    return sum;
}

enum { COSTLY = 8 }; /* How much more work a cell with logarithmic nodes is. */

/* Where n cells lie, one row of n numbers each: how far 0 is from where they are measured (finite pieces: their left
 * end), what multiplies a weighted sum, both as in Layout of interval.py; whose they are; for cells with logarithmic
 * nodes also the rate, the span, the steps to both places close to the end as in singular_ends.py, and room for three extrapolations of each column. */
typedef struct {
    double *reach, *scale;
    int64_t *owner;
    double *rate, *span, *steps, *near, *limits;
} Layout;

INLINE Layout rows_of(double *rows, int64_t n) {
    return (Layout){rows, rows + n, (int64_t *)(rows + 2 * n), rows + 3 * n, rows + 4 * n, rows + 5 * n, rows + 6 * n,
                    rows + 7 * n};
}

/* A piece: its ends, 0 where infinite, and whether they are. */
typedef struct {
    double lower, upper, down, up;
} Piece;

INLINE Piece piece_of(const Setting *set, int64_t row) {
    double lower = set->lower[row * set->lower_step], upper = set->upper[row * set->upper_step];
    int down = set->infinite && isinf(lower), up = set->infinite && isinf(upper);
    return (Piece){down ? 0.0 : lower, up ? 0.0 : upper, down, up};
}

/* Enter where a cell with linear nodes lies. */
INLINE void lay_out(const Setting *set, const Cell *cell, const Layout *to, int64_t place) {
    Piece p = piece_of(set, cell->row);
    to->owner[place] = set->count == 1 ? cell->row : cell->row / set->count;
    if (p.up + p.down > 0.0) {
        double at = cell->start, low = at >= 0.0 ? at : 1.0 + at, high = at >= 0.0 ? 1.0 - at : -at;
        double away = fabs(p.lower + p.upper) * (p.up * (high * high) + p.down * (low * low));
        to->reach[place] = fabs(at) + low * high + away;
        to->scale[place] = cell->stop - cell->start;
    } else {
        double end = cell->start < 0.0 ? p.upper : p.lower, span = p.upper - p.lower;
        double left = cell->start == -0.5 ? p.lower + span * 0.5 : end + span * cell->start;
        to->reach[place] = left;
        to->scale[place] = (cell->stop == 1.0 ? p.upper : end + span * cell->stop) - left;
    }
}
