/* The rounds of quadgrad's search for real scalar integrands in double precision.
 *
 * The same decisions as in adaptive.py, cells.py and estimate.py, which explain them and which the tests hold this
 * kernel to. There each decision is one pass over all cells, here all decisions on a cell are one pass. Neither f nor
 * Python is called from it, and no memory is kept but the constants.
 *
 * Cells of one integral stand next to each other, integrals in ascending order. Cells with logarithmic nodes
 * ("ends") have an array of their own, because their nodes are placed and weighed in another way.
 *
 * kernel_nodes.c: where f is called; kernel_estimates.c: what its values say; kernel_decisions.c: what follows.
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

enum { LINEAR = 0, GEOMETRIC = 1 };
enum { KEEP, REVERT, TURN, CLOSER, PART, HALVE };
enum { RUN = -1, WAIT = -2 };
enum { MOST_THREADS = 64, READERS = 4 }; /* READERS: threads that each read all there is */
enum { NULL_PAIRS = 5, FUNCTIONALS = 7 + 2 * NULL_PAIRS, SHARES = 6, COLUMNS = 3, LEVELS = 20 };

/* Ten numbers of eight bytes: kernel.py looks at them as columns. The places are as in Cells of cells.py; f at the
 * start, the stop and the middle is times the slope, and NaN where it is not known. The height is by how many steps
 * it is below 1, or 0 where no pole is seen. */
typedef struct {
    double start, stop, value, error, floor, at_start, at_stop, at_middle;
    int64_t row;
    int8_t kind, lean, refinable;
    uint8_t height;
    float pole;
} Cell;

enum { GONE = -1 };

typedef struct {
    double start, stop, value, error, floor;
} Leaf;

/* Settled cells; `tag` is the row, times 256, and what `pack` makes of a cell's other integers; or GONE. */
typedef struct {
    Leaf *leaf;
    int64_t *tag;
} Leaves;

INLINE Leaves leaves_of(double *room, int64_t capacity) {
    return (Leaves){(Leaf *)room, (int64_t *)(room + sizeof(Leaf) / sizeof(double) * capacity)};
}

/* An integral that is still running, with the sums over its settled cells; see Running in adaptive.py. */
typedef struct {
    double value, error, floor;
    int64_t who, count, nfev, bad;
} Integral;

/* The constants of the Python modules, under their names there. */
typedef struct {
    double floor, place, beyond, safety, slow, unresolved, rougher, near, unsure, at_end, steps;
    double faint, scanned, step, deep, every, limit, ulps, share;
    double close, nearest, deepest, lawless, shortest, depth;
    int64_t beside, patience, functionals, shares, levels;
    int64_t converged, max_nfev, roundoff, nonfinite, divergent;
} Constants;

/* A rule with m nodes, which are symmetric. `all` has rows of m numbers: the weights, 2 NULL_PAIRS nulls, 2 halves,
 * 2 slopes, 2 edges, and the shares. Those before the shares stand also in `even` and `odd`, see `fold`. */
typedef struct {
    const double *nodes, *all, *even, *odd;
    int64_t m, order_gap;
} Rule;

/* Ends of the pieces, count for each integral; a step of 0 where all share one. eps and tiny: the dtype's of x;
 * threads: how many there may be. */
typedef struct {
    const double *lower, *upper;
    int64_t lower_step, upper_step, count, threads;
    double eps, tiny;
} Pieces;

/* How many integrals run on and wait; how many cells are new, of how many pairs of these f is not known between them,
 * and how many have settled. */
typedef struct {
    int64_t running, waiting, linear, ends, pairs, settled;
} Tally;

/* A thread's part of a round: integrals from `low` to before `high`, their cells of both kinds, and what they make of
 * them. */
typedef struct {
    int64_t low, high, first[2], stop[2];
    Tally made;
} Share;

/* What is asked, with the ellipse of parts.py, and one round: the `running` integrals and their cells, `count` pieces
 * for each integral; if they are `fresh`, one cell each and not in the books yet, that is what each has cost; a move
 * for each cell; and, for all integrals, the totals of those that stopped and how many cells have settled by row. */
typedef struct {
    double rtol, atol, eps, tiny, along, across;
    int64_t max_nfev, reopened, fresh, threads, count, running, n_linear, n_ends;
    const Rule *rule;
    Integral *integrals;
    const Cell *linear, *ends;
    Share *shares;
    int8_t *moves;
    double *values, *errors;
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

enum { COSTLY = 8 }; /* How much more work such a cell is. */

/* Where the nodes of cells with logarithmic nodes are: EndFrame in maps.py; steps as in ends.py. */
typedef struct {
    double *scale, *reach, *rate, *span, *steps;
} EndFrame;

/* Where cells on finite pieces lie: left ends, widths, integrals. */
typedef struct {
    double *left, *scale;
    int64_t *owner;
} Layout;

INLINE Layout rows_of(double *layout, int64_t n) {
    return (Layout){layout, layout + n, (int64_t *)(layout + 2 * n)};
}

INLINE void lay_out(const Pieces *p, const Cell *cell, const Layout *to, int64_t place) {
    double lower = p->lower[cell->row * p->lower_step], upper = p->upper[cell->row * p->upper_step];
    double end = cell->start < 0.0 ? upper : lower, span = upper - lower;
    double left = cell->start == -0.5 ? lower + span * 0.5 : end + span * cell->start;
    to->left[place] = left;
    to->scale[place] = (cell->stop == 1.0 ? upper : end + span * cell->stop) - left;
    to->owner[place] = p->count == 1 ? cell->row : cell->row / p->count;
}
