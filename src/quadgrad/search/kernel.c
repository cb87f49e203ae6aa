/* The rounds of quadgrad's search for real scalar integrands in double precision.
 *
 * The same decisions as in adaptive.py, cells.py and estimate.py, which explain them and which the tests hold this
 * file to. There each decision is one pass over all cells, here all decisions on a cell are one pass. Neither f nor
 * Python is called from here, and no memory is kept but the constants.
 *
 * Cells of one integral stand next to each other, integrals in ascending order. Cells with logarithmic nodes
 * ("ends") have an array of their own, because their nodes are placed and weighed elsewhere (ends.py).
 */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef _OPENMP
#define STRING(text) #text
#define PARALLEL(threads) _Pragma(STRING(omp parallel for schedule(static) num_threads(threads) if (threads > 1)))
#else
#define PARALLEL(threads)
#endif
enum { LINEAR = 0, GEOMETRIC = 1 };
enum { KEEP, HALVE, LEFT, RIGHT, REVERT, TURN, CLOSER };
enum { RUN = -1, WAIT = -2 };
enum { MOST_THREADS = 64 };
enum { NULL_PAIRS = 5, FUNCTIONALS = 7 + 2 * NULL_PAIRS, SHARES = 6, COLUMNS = 3 };

/* Ten numbers of eight bytes: kernel.py looks at them as columns. The places are as in Cells of cells.py; f at the
 * start, the stop and the middle is times the slope, and NaN where it is not known. */
typedef struct {
    double start, stop, value, error, floor, at_start, at_stop, at_middle;
    int64_t row;
    int8_t kind, lean, refinable, spare[5];
} Cell;

/* A settled cell; `tag` is its row, times 256, and what `pack` makes of its other integers. */
typedef struct {
    double start, stop, value, error, floor;
    int64_t tag;
} Leaf;

/* An integral that is still running, with the sums over its settled cells; see Running in adaptive.py. */
typedef struct {
    double value, error, floor;
    int64_t who, count, nfev, bad, code;
} Integral;

/* The constants of the Python modules, under their names there. */
typedef struct {
    double floor, place, beyond, safety, slow, unresolved, rougher;
    double faint, scanned, step, deep, every, limit, ulps, share;
    double close, nearest, deepest, lawless, shortest, depth;
    int64_t beside, patience, functionals, shares;
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

typedef struct {
    double rtol, atol, eps, tiny;
    int64_t max_nfev, reopened, threads;
} Asked;

/* How many integrals run on and wait, how many cells are new, and how many pairs of these have f unknown between
 * them. */
typedef struct {
    int64_t running, waiting, linear, ends, pairs, settled;
} Tally;

static Constants C;
/* Return whether the caller's functionals are those compiled in. */
int64_t configure(const Constants *constants) {
    C = *constants;
    return C.functionals == FUNCTIONALS && C.shares == SHARES;
}

INLINE void pack(const Cell *cell, Leaf *leaf) {
    leaf->start = cell->start, leaf->stop = cell->stop;
    leaf->value = cell->value, leaf->error = cell->error, leaf->floor = cell->floor;
    leaf->tag = cell->row * 256 + cell->kind * 16 + cell->refinable * 8 + cell->lean + 2;
}

INLINE Cell unpack(const Leaf *leaf) {
    int64_t tag = leaf->tag;
    return (Cell){leaf->start, leaf->stop, leaf->value, leaf->error, leaf->floor, NAN, NAN, NAN, tag / 256,
                  (int8_t)(tag % 256 / 16), (int8_t)(tag % 8 - 2), (int8_t)(tag / 8 % 2), {0}};
}

/* ------------------------------------------------------------------------------------------ first cells, nodes */

/* How many threads share the work on n cells; on few cells one is quicker alone. */
INLINE int sharing(int64_t n, int64_t threads) {
    return n < 1024 ? 1 : threads < MOST_THREADS ? (int)threads : MOST_THREADS;
}

/* Not fmax and fmin, which look out for NaN: that stays where it comes first and is ignored where second. */
INLINE double larger(double a, double b) { return b > a ? b : a; }
INLINE double smaller(double a, double b) { return b < a ? b : a; }

/* The integrals of cells that were not yet searched. */
void open_books(const Cell *linear, int64_t n_linear, const Cell *ends, int64_t n_ends, int64_t count, int64_t batch,
                int64_t m, Integral *integrals) {
    for (int64_t i = 0; i < batch; i++) integrals[i] = (Integral){.who = i};
    for (int64_t i = 0; i < n_linear; i++) integrals[linear[i].row / count].count++;
    for (int64_t i = 0; i < n_ends; i++) integrals[ends[i].row / count].count++;
    for (int64_t i = 0; i < batch; i++) integrals[i].nfev = integrals[i].count * (m + C.beside);
}

/* One cell for each piece that is not empty; return how many they are. */
int64_t begin(const Pieces *pieces, int64_t batch, int64_t m, Cell *cells, Integral *integrals) {
    int64_t n = 0, row = 0;
    for (int64_t who = 0; who < batch; who++) {
        int64_t before = n;
        for (int64_t piece = 0; piece < pieces->count; piece++, row++)
            if (pieces->upper[row * pieces->upper_step] > pieces->lower[row * pieces->lower_step])
                cells[n++] = (Cell){.stop = 1.0, .row = row};
        integrals[who] = (Integral){.who = who, .count = n - before, .nfev = (n - before) * (m + C.beside)};
    }
    return n;
}

/* Where cells on finite pieces lie: left end, width, distance from 0, integral. */
INLINE void lay_out(const Pieces *p, const Cell *cell, double *left, double *scale, int64_t *owner) {
    double lower = p->lower[cell->row * p->lower_step], upper = p->upper[cell->row * p->upper_step];
    *left = (cell->start < 0.0 ? upper : lower) + (upper - lower) * cell->start;
    *scale = (upper - lower) * (cell->stop - cell->start);
    *owner = p->count == 1 ? cell->row : cell->row / p->count;
}

/* Nodes x (m, n) of cells on finite pieces, and where these lie: n left ends, widths, distances from 0, integrals.
 * With edges x is (m + 2, n): first and last are the cell's own edges, or right beside a limit, or, where that cannot be
 * told from the limit, the middle; f there is then not known. */
void place(const Pieces *p, const Rule *rule, int64_t edges, Cell *cells, int64_t n, double *x, double *layout) {
    double *left = layout, *scale = left + n, *reach = scale + n;
    const double *tau = rule->nodes, middle = tau[rule->m / 2];
    int64_t *owner = (int64_t *)(reach + n), m = rule->m;
    double near = larger(C.limit, C.ulps * p->eps), *first = x, *last = x + (m + 1) * n;
    int threads = sharing(n, p->threads);
    PARALLEL(threads)
    for (int64_t c = 0; c < n; c++) {
        Cell *cell = &cells[c];
        lay_out(p, cell, &left[c], &scale[c], &owner[c]);
        reach[c] = fabs(left[c]);
        if (!edges) continue;
        int beside = near * scale[c] > 4.0 * p->eps * (reach[c] + scale[c]);
        int inner_start = cell->start != 0.0, inner_stop = cell->stop != 0.0 && cell->stop != 1.0;
        first[c] = left[c] + scale[c] * (inner_start ? 0.0 : beside ? near : middle);
        last[c] = left[c] + scale[c] * (inner_stop ? 1.0 : beside ? 1.0 - near : middle);
        cell->at_start = inner_start || beside ? 0.0 : NAN;
        cell->at_stop = inner_stop || beside ? 0.0 : NAN;
    }
    x += edges ? n : 0;
    PARALLEL(threads)
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < n; c++) x[i * n + c] = left[c] + tau[i] * scale[c];
}

/* The starts of the cells at the given indices. */
void place_starts(const Pieces *p, const Cell *cells, const int64_t *index, int64_t n, double *x, int64_t *owner) {
    PARALLEL(sharing(n, p->threads))
    for (int64_t i = 0; i < n; i++) {
        double scale;
        lay_out(p, &cells[index[i]], &x[i], &scale, &owner[i]);
    }
}

/* Enter f between the cells at the given indices and the ones before them. */
void enter_starts(Cell *cells, const int64_t *index, int64_t n, const double *y) {
    for (int64_t i = 0; i < n; i++) cells[index[i]].at_start = cells[index[i] - 1].at_stop = y[i];
}

/* ------------------------------------------------------------------------------------------ estimates */

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

/* The rule's functionals, but for the shares, of values y on a tile, and the integral of their size. All but four are
 * even or odd about the middle node, and these four are two that mirror two: half the products suffice for sums and
 * differences of values at mirrored nodes. */
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

/* By how much f differs at an edge from what the cell's polynomial makes of it; 0 where it is not known. */
INLINE double gap(double polynomial, double known, double allowed) {
    double found = fabs(polynomial - known) - allowed;
    return found > 0.0 && found < INFINITY ? found : 0.0;
}

/* What a tile of a larger array has, 0 beyond its end. */
INLINE void load_tile(const double *from, int64_t here, double *tile) {
    memset(tile, 0, sizeof(Tile));
    memcpy(tile, from, here * sizeof(double));
}

/* What the rule's sums say about up to WIDE cells: apply_rule and scale_estimates in estimate.py. */
INLINE void estimate(const Rule *rule, const Pieces *p, double eps, const Tile *sums, const double *size,
                     const double *middle, const double *scale, const double *reach, int64_t here, Cell *cells) {
    const Tile *nulls = sums + 1, *halves = nulls + 2 * NULL_PAIRS, *slopes = halves + 2, *edges = slopes + 2;
    Tile at_start = {0}, at_stop = {0}, unseen, error, decay, highest, noise, floor, side;
    double finest = 4.0 * p->eps / rule->nodes[0], narrowest = sqrt(p->tiny), rounding = C.place * p->eps;
    for (int c = 0; c < here; c++) at_start[c] = cells[c].at_start, at_stop[c] = cells[c].at_stop;
    for (int c = 0; c < WIDE; c++) {
        double variation = fabs(slopes[0][c]) + fabs(slopes[1][c]), whole = size[c] * scale[c];
        double blur = smaller(rounding * reach[c] / larger(p->tiny, scale[c]), 1.0);
        unseen[c] = size[c] + variation * (blur / (2.0 * eps));
        floor[c] = C.floor * eps * whole;
        noise[c] = smaller(rounding * reach[c] * variation, whole) + floor[c];
        double left = fabs(halves[0][c]), right = fabs(halves[1][c]);
        side[c] = (right > C.rougher * left ? 1.0 : 0.0) - (left > C.rougher * right ? 1.0 : 0.0);
    }
    null_rule_error(nulls, unseen, rule->order_gap, eps, error, decay, highest);
    for (int c = 0; c < WIDE; c++) {
        double allowed = C.beyond * highest[c];
        double hidden = gap(edges[0][c], at_start[c], allowed) + gap(edges[1][c], at_stop[c], allowed);
        error[c] = larger(noise[c], (error[c] + hidden * rule->nodes[0]) * scale[c]);
    }
    for (int c = 0; c < here; c++) {
        Cell *cell = &cells[c];
        int lost = !(size[c] * scale[c] < INFINITY) || !(error[c] < INFINITY);
        int resolvable = scale[c] > reach[c] * finest && cell->stop - cell->start > narrowest;
        cell->at_middle = middle[c];
        cell->value = lost ? 0.0 : sums[0][c] * scale[c];
        cell->error = lost ? INFINITY : error[c];
        cell->floor = !(scale[c] > 0.0) ? p->tiny : lost ? 0.0 : floor[c];
        cell->lean = lost ? 0 : (int)side[c] * (1 + (decay[c] >= C.unresolved));
        cell->refinable = resolvable && (lost || error[c] > noise[c]);
    }
}

/* Apply the rule to f's values y (m, n) on n cells, times the slope. With edges y is (m + 2, n): f at the edges of first
 * cells is entered, too, where it is not NaN. `layout` as in `place`. */
void measure(const Pieces *p, const Rule *rule, int64_t edges, double eps, Cell *cells, int64_t n, const double *y,
             const double *layout) {
    const double *scale = layout + n, *reach = scale + n;
    const double *first = y, *last = y + (rule->m + 1) * n;
    y += edges ? n : 0;
    const double *middle = y + rule->m / 2 * n;
    PARALLEL(sharing(n, p->threads))
    for (int64_t low = 0; low < n; low += WIDE) {
        int64_t here = n - low < WIDE ? n - low : WIDE;
        Tile sums[FUNCTIONALS], size;
        for (int64_t c = low; edges && c < low + here; c++) {
            cells[c].at_start = isnan(cells[c].at_start) ? NAN : first[c];
            cells[c].at_stop = isnan(cells[c].at_stop) ? NAN : last[c];
        }
        if (here == WIDE) {
            fold(rule, y + low, n, sums, size);
            estimate(rule, p, eps, sums, size, middle + low, scale + low, reach + low, WIDE, cells + low);
        } else {
            Tile few[MOST_NODES], scales, reaches;
            for (int64_t i = 0; i < rule->m; i++) load_tile(y + low + i * n, here, few[i]);
            load_tile(scale + low, here, scales), load_tile(reach + low, here, reaches);
            fold(rule, few[0], WIDE, sums, size);
            estimate(rule, p, eps, sums, size, middle + low, scales, reaches, here, cells + low);
        }
    }
}

/* ------------------------------------------------------------------------------------------ ends */

enum { COSTLY = 8 }; /* How much more work such a cell is. */

/* Where the nodes of cells with logarithmic nodes are: EndFrame in maps.py; steps as in ends.py. */
typedef struct {
    double *scale, *reach, *rate, *span, *steps;
} EndFrame;

/* Places (m + 2, n) on finite pieces and what f has to be multiplied by there: a cell's outer edge, the nodes, and the
 * inner edge or, where that is an end, a place as close to it as numbers allow. See evaluate_ends in ends.py. */
void place_ends(const Pieces *p, const Rule *rule, const Cell *cells, int64_t n, double *x, double *slope,
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

/* extrapolate in extrapolation.py: the last entries of the columns, and by how much the entries around are apart. */
static void extrapolate(const double *terms, double *limits, double *doubts) {
    double table[2][SHARES + 2] = {{0}}, columns[COLUMNS + 1][3], size = 0.0;
    for (int i = 0; i < SHARES; i++) size = larger(size, fabs(terms[i]));
    if (!(size > 0.0)) size = 1.0;
    double *before = table[0], *now = table[1];
    for (int i = 0; i < SHARES; i++) now[i + 1] = now[i] + terms[i] / size;
    now[0] = 0.0;
    for (int k = 0, length = SHARES + 1; k <= COLUMNS; k++) {
        for (int i = 0; i < 3; i++) columns[k][i] = (length > i ? now[length - 1 - i] : NAN) * size;
        for (int half = 0; half < 2 && k < COLUMNS; half++, length--) {
            for (int i = 0; i < length - 1; i++) {
                double step = now[i + 1] - now[i];
                int usable = fabs(step) > 0x1p-511 && fabs(step) < INFINITY;
                before[i] = before[i + 1] + (usable ? 1.0 / step : half ? 0.0 : INFINITY);
            }
            double *swap = before;
            before = now, now = swap;
        }
    }
    for (int k = 0; k < COLUMNS; k++) {
        const double *column = columns[k], *higher = columns[k + 1];
        double apart = fabs(higher[0] - column[0]);
        if (k + 1 < COLUMNS)
            apart += fabs(higher[0] - higher[1]);
        else
            apart += fabs(column[0] - column[1]) + fabs(column[1] - column[2]) / C.safety;
        limits[k] = column[0], doubts[k] = C.safety * apart;
    }
}

/* to_the_end in ends.py */
static double to_the_end(const double *terms, double rtol, double *doubt, double *gain, int *column) {
    double limits[COLUMNS], doubts[COLUMNS], total = 0.0;
    extrapolate(terms, limits, doubts);
    double last = fabs(terms[SHARES - 1]), before = fabs(terms[SHARES - 2]);
    double ratio = before > 0.0 ? last / before : last > 0.0 ? 2.0 : 0.0;
    int best = 0, diverges = ratio >= 1.0;
    for (int k = 1; k < COLUMNS && !diverges; k++)
        if (doubts[k] < doubts[best] && !(doubts[best] <= C.close * rtol * fabs(limits[best]))) best = k;
    for (int i = 0; i < SHARES; i++) total += fabs(terms[i]);
    double room = larger(1.0 - ratio, 1e-8);
    *doubt = diverges ? C.safety * total : doubts[best];
    *gain = best == 0 ? 1.0 : 1.0 / (room * room);
    *column = best;
    return limits[best];
}

/* _breaks_the_law in ends.py */
static int breaks_the_law(const double *terms, double deep, double steps) {
    if (!(steps > 0.0)) return 0;
    double earlier = log(fabs(terms[SHARES - 3])), before = log(fabs(terms[SHARES - 2]));
    double last = log(fabs(terms[SHARES - 1])), rate = last - before, drift = fabs(last - 2.0 * before + earlier);
    double expected = last + log(SHARES) + steps * rate;
    double off = fabs(log(fabs(deep)) - expected);
    return fabs(expected) < INFINITY && off > C.lawless + 2.0 * SHARES * steps * drift;
}

/* Apply the rule to cells with logarithmic nodes: estimate_ends in ends.py. */
void measure_ends(const Pieces *p, const Rule *rule, double eps, double rtol, Cell *cells, int64_t n, const double *y,
                  const double *slope, const EndFrame *layout) {
    int64_t m = rule->m;
    double info_eps = p->eps, nearest = larger(C.nearest, sqrt(p->tiny));
    PARALLEL(sharing(COSTLY * n, p->threads))
    for (int64_t low = 0; low < n; low += WIDE) {
        int64_t here = n - low < WIDE ? n - low : WIDE;
        Tile flat[MOST_NODES], sums[FUNCTIONALS + SHARES], size = {0}, blur = {0}, error, decay, highest, unseen;
        const Tile *nulls = sums + 1, *edges = sums + FUNCTIONALS - 2, *shares = sums + FUNCTIONALS;
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < WIDE; c++) {
                int64_t at = (i + 1) * n + low + (c < here ? c : 0);
                flat[i][c] = y[at] * (slope[at] * layout->scale[low + (c < here ? c : 0)]);
                size[c] += rule->all[i] * fabs(flat[i][c]), blur[c] += rule->all[i] * fabs(y[at]);
            }
        weigh(rule->all, FUNCTIONALS + SHARES, m, flat, sums);
        for (int64_t c = 0; c < WIDE; c++) {
            blur[c] *= c < here ? C.place * info_eps * layout->reach[low + c] * -layout->rate[low + c] : 0.0;
            unseen[c] = size[c] + blur[c] / (2.0 * eps);
        }
        null_rule_error(nulls, unseen, rule->order_gap, eps, error, decay, highest);
        for (int64_t c = 0; c < here; c++) {
            int64_t at = low + c, inmost = (m + 1) * n + at;
            Cell *cell = &cells[at];
            int touches = cell->start == 0.0 || cell->stop == 0.0, column = -1;
            double outer = y[at] * (slope[at] * layout->scale[at]);
            double inner = y[inmost] * (slope[inmost] * layout->scale[at]);
            double hidden = fabs(edges[0][c] - outer) - C.beyond * highest[c];
            hidden = larger(hidden, 0.0);
            double value = sums[0][c], doubt = 0.0, gain = 1.0, whole = size[c];
            if (touches) {
                double terms[SHARES], sum = 0.0;
                for (int i = 0; i < SHARES; i++) terms[i] = shares[i][c], sum += terms[i];
                value = to_the_end(terms, rtol, &doubt, &gain, &column);
                if (breaks_the_law(terms, inner, layout->steps[at]))
                    doubt = larger(doubt, C.safety * fabs(value - sum));
            } else {
                hidden += larger(fabs(edges[1][c] - inner) - C.beyond * highest[c], 0.0);
            }
            whole = larger(whole, fabs(value));
            double floor = C.floor * eps * whole, place = smaller(gain * blur[c], whole), rounding = floor + place;
            double curable = doubt + gain * error[c] + rule->nodes[0] * hidden;
            double all = larger(curable + place, rounding);
            int lost = !(all < INFINITY) || !(rounding < INFINITY);
            if (lost) all = INFINITY;
            int worth = curable > rounding && (touches ? place / C.step : 0.0) < 0.5 * all;
            double edge = fabs((cell->start >= 0.0 ? cell->stop : cell->start) * exp(layout->rate[at]));
            if (touches) edge *= C.step;
            int wide = edge * layout->span[at] > 4.0 * info_eps * layout->reach[at] && edge > nearest &&
                       -layout->rate[at] > C.shortest;
            cell->value = lost ? 0.0 : value, cell->error = all, cell->floor = lost ? 0.0 : floor;
            cell->refinable = wide && (lost || worth);
            cell->lean = decay[c] >= C.unresolved;
            cell->kind = (int8_t)(GEOMETRIC + 1 + column);
        }
    }
}

/* ------------------------------------------------------------------------------------------ decisions */

/* allowed_error in adaptive.py */
INLINE double allowed_error(const Asked *asked, double value, double floor) {
    double size = fabs(value), allowed = larger(asked->rtol * size, asked->atol);
    if (size <= 5.0 * floor) allowed = larger(allowed, 5.0 * floor);
    return larger(allowed, asked->tiny);
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
    return lean == -2 ? LEFT : lean == 2 ? RIGHT : HALVE;
}

/* The new cells, and how many there are of each kind. */
typedef struct {
    Cell *linear, *ends;
    int64_t *pairs, n_linear, n_ends, n_pairs;
} Children;

/* A new cell; what `measure` writes is left as it is. Field by field: copies of structs wait for each other. */
INLINE void put(Cell *cell, int64_t row, double start, double stop, double at_start, double at_stop) {
    cell->start = start, cell->stop = stop, cell->at_start = at_start, cell->at_stop = at_stop, cell->row = row;
    cell->kind = LINEAR;
}

/* Both halves of a piece's stretch. Those of a whole piece are measured from different ends. With `deeper`, KEEP,
 * LEFT or RIGHT, one of them is halved once more; f is not known between its halves. */
INLINE void put_halves(Children *out, int64_t row, double start, double stop, double at_start, double at_middle,
                       double at_stop, int deeper) {
    double middle = 0.5 * (start + stop), turn = middle >= 0.5 ? 1.0 : 0.0;
    Cell *cell = out->linear + out->n_linear;
    if (deeper == LEFT) {
        double quarter = 0.5 * (start + middle);
        put(cell++, row, start, quarter, at_start, NAN);
        put(cell++, row, quarter, middle, NAN, at_middle);
        out->pairs[out->n_pairs++] = out->n_linear + 1;
    } else {
        put(cell++, row, start, middle, at_start, at_middle);
    }
    start = middle - turn, stop -= turn;
    if (deeper == RIGHT) {
        double quarter = 0.5 * (start + stop);
        put(cell++, row, start, quarter, at_middle, NAN);
        put(cell++, row, quarter, stop, NAN, at_stop);
        out->pairs[out->n_pairs++] = out->n_linear + 2;
    } else {
        put(cell++, row, start, stop, at_middle, at_stop);
    }
    out->n_linear = cell - out->linear;
}

INLINE void put_end(Children *out, int64_t row, double start, double stop, double at_start, double at_stop) {
    Cell *cell = out->ends + out->n_ends++;
    put(cell, row, start, stop, at_start, at_stop);
    cell->at_middle = NAN, cell->kind = GEOMETRIC;
}

/* refine in cells.py, for one cell */
INLINE void refine(const Cell *cell, int move, Children *out) {
    int64_t row = cell->row;
    double start = cell->start, stop = cell->stop;
    if (move == HALVE || move == LEFT || move == RIGHT) {
        put_halves(out, row, start, stop, cell->at_start, cell->at_middle, cell->at_stop, move);
    } else if (move == REVERT) {
        put_halves(out, row, start, stop, cell->at_start, NAN, cell->at_stop, KEEP);
        out->pairs[out->n_pairs++] = out->n_linear - 1;
    } else if (move == TURN) {
        put_end(out, row, start, stop, cell->at_start, cell->at_stop); /* for a cell that is reverted */
    } else {
        double sum = start + stop, mean = copysign(sqrt(fabs(start)) * sqrt(fabs(stop)), sum);
        double middle = start == 0.0 || stop == 0.0 ? sum * C.step : mean;
        put_end(out, row, start, middle, NAN, NAN), put_end(out, row, middle, stop, NAN, NAN);
    }
}

/* One round: its cells, `nodes` for each new one, `count` pieces for each integral, a move for each cell. */
typedef struct {
    const Asked *asked;
    int64_t nodes, count, n_linear, n_ends;
    Integral *integrals;
    const Cell *linear, *ends;
    int8_t *moves;
} Round;

/* A thread's part of it: integrals from `low` to before `high`, and how much they make of their cells. */
typedef struct {
    int64_t low, high;
    Tally made;
} Share;

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

/* What _judge in adaptive.py does: whether integrals are done, and what becomes of their cells. */
static void decide(const Round *round, Share *share, double *values, double *errors, int64_t *status, int64_t *nfev) {
    const Asked *asked = round->asked;
    int64_t start = share->low < share->high ? round->integrals[share->low].who * round->count : 0;
    int64_t i = find(round->linear, round->n_linear, start), j = find(round->ends, round->n_ends, start);
    Tally made = {0};
    for (int64_t k = share->low; k < share->high; k++) {
        Integral *one = &round->integrals[k];
        int64_t first[2] = {i, j}, beyond = (one->who + 1) * round->count;
        double value = one->value, error = one->error, floor = one->floor;
        for (const Cell *cell = round->linear + i; i < round->n_linear && cell->row < beyond; i++, cell++)
            value += cell->value, error += cell->error, floor += cell->floor;
        for (const Cell *cell = round->ends + j; j < round->n_ends && cell->row < beyond; j++, cell++)
            value += cell->value, error += cell->error, floor += cell->floor;
        int64_t stop[2] = {i, j};
        double tolerance = allowed_error(asked, value, floor), target = larger(tolerance, 2.0 * floor);
        int met = error / tolerance <= 1.0, done = error / target <= 1.0;
        int64_t bad = isinf(error) ? one->bad + 1 : 0;
        int idle = done || bad > C.patience;
        int scan = done && error >= C.faint * fabs(value);
        double limit = idle ? INFINITY : target * ((asked->reopened ? 1.0 : C.share) / (double)one->count);
        int64_t number[CLOSER + 1] = {0};
        for (int kind = 0; kind < 2; kind++) {
            const Cell *cells = kind ? round->ends : round->linear;
            int8_t *moves = round->moves + (kind ? round->n_linear : 0);
            for (int64_t c = first[kind]; c < stop[kind]; c++) {
                const Cell *cell = &cells[c];
                int split = (cell->error > limit && cell->refinable) || (scan && to_scan(cell, 0.5 * error));
                number[moves[c] = split ? plan_move(cell) : KEEP]++;
            }
        }
        int64_t pairs = number[LEFT] + number[RIGHT] + number[REVERT], ends = number[TURN] + 2 * number[CLOSER];
        int64_t linear = 2 * (number[HALVE] + number[REVERT]) + 3 * (number[LEFT] + number[RIGHT]);
        int64_t wanted = linear + ends, cost = one->nfev + round->nodes * wanted + pairs + C.beside * ends;
        done = done && wanted == 0;
        int64_t code = wanted > 0 ? RUN : WAIT;
        if (code == WAIT && asked->reopened)
            code = error > sqrt(asked->eps) * fabs(value) ? C.divergent : C.roundoff;
        if (cost > asked->max_nfev) code = C.max_nfev;
        if (bad > C.patience) code = C.nonfinite;
        if (done) code = met ? C.converged : C.roundoff;
        one->code = code;
        if (code == RUN) {
            one->count = wanted, one->nfev = cost, one->bad = bad;
            made.running++, made.linear += linear, made.ends += ends, made.pairs += pairs;
            made.settled += number[KEEP];
        } else {
            values[one->who] = value, errors[one->who] = error, status[one->who] = code, nfev[one->who] = one->nfev;
            made.waiting += code == WAIT, made.settled += stop[0] - first[0] + stop[1] - first[1];
        }
    }
    share->made = made;
}

/* What _refine in adaptive.py does: new cells, from `out` on, and settled ones. */
static void carry_out(const Round *round, const Share *share, Children out, Leaf *settled, int64_t *counts) {
    int64_t start = share->low < share->high ? round->integrals[share->low].who * round->count : 0;
    int64_t next[2] = {find(round->linear, round->n_linear, start), find(round->ends, round->n_ends, start)};
    for (int64_t k = share->low; k < share->high; k++) {
        Integral *one = &round->integrals[k];
        int64_t beyond = (one->who + 1) * round->count;
        for (int kind = 0; kind < 2; kind++) {
            const Cell *cells = kind ? round->ends : round->linear;
            const int8_t *moves = round->moves + (kind ? round->n_linear : 0);
            int64_t c = next[kind], n = kind ? round->n_ends : round->n_linear;
            for (; c < n && cells[c].row < beyond; c++) {
                if (one->code == RUN && moves[c] != KEEP) {
                    refine(&cells[c], moves[c], &out);
                } else {
                    pack(&cells[c], settled++);
                    counts[cells[c].row]++;
                    one->value += cells[c].value, one->error += cells[c].error, one->floor += cells[c].floor;
                }
            }
            next[kind] = c;
        }
    }
}

/* One round. Integrals that run on are left in `integrals`; the cells of the others, and those not refined, are written
 * to `settled`, and counted by row; totals are entered for the others. `room` is for the new cells: 3 n_linear +
 * 2 n_ends ones, n_linear + 2 n_ends with logarithmic nodes; then one number for each old cell, the new cells before
 * which f is to be asked for; then a byte for each. */
void judge(const Asked *asked, int64_t nodes, int64_t count, Integral *integrals, const Cell *linear,
           int64_t n_linear, const Cell *ends, int64_t n_ends, Cell *room, Leaf *settled, int64_t *counts,
           double *values, double *errors, int64_t *status, int64_t *nfev, Tally *tally) {
    Cell *new_ends = room + 3 * n_linear + 2 * n_ends;
    int64_t *pairs = (int64_t *)(new_ends + n_linear + 2 * n_ends), n = tally->running;
    Round round = {asked, nodes, count, n_linear, n_ends, integrals, linear, ends,
                   (int8_t *)(pairs + n_linear + n_ends)};
    int threads = sharing(n_linear + n_ends, asked->threads);
    Share shares[MOST_THREADS];
    Children out[MOST_THREADS];
    Leaf *leaves[MOST_THREADS];
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        shares[t].low = n * t / threads, shares[t].high = n * (t + 1) / threads;
        decide(&round, &shares[t], values, errors, status, nfev);
    }
    int64_t waiting = tally->waiting;
    *tally = (Tally){0, waiting, 0, 0, 0, 0};
    for (int t = 0; t < threads; t++) {
        const Tally *made = &shares[t].made;
        out[t] = (Children){room, new_ends, pairs, tally->linear, tally->ends, tally->pairs};
        leaves[t] = settled + tally->settled;
        tally->running += made->running, tally->waiting += made->waiting, tally->settled += made->settled;
        tally->linear += made->linear, tally->ends += made->ends, tally->pairs += made->pairs;
    }
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) carry_out(&round, &shares[t], out[t], leaves[t], counts);
    for (int64_t k = 0, kept = 0; k < n; k++)
        if (integrals[k].code == RUN) integrals[kept++] = integrals[k];
}

/* ------------------------------------------------------------------------------------------ results */

/* Take the cells of integrals that wait out of n settled ones, into `taken`; return how many they are. */
int64_t withdraw(Leaf *settled, int64_t n, int64_t count, const int64_t *status, int64_t *counts, Cell *taken) {
    int64_t kept = 0, out = 0;
    for (int64_t c = 0; c < n; c++)
        if (status[settled[c].tag / 256 / count] == WAIT) {
            taken[out] = unpack(&settled[c]);
            counts[taken[out++].row]--;
        } else {
            settled[kept++] = settled[c];
        }
    return out;
}

/* The settled cells of several parts sorted by row, those of one row as they settled, of which there are `counts` in
 * each row. Return how many have logarithmic nodes. */
int64_t collect(Leaf *const *parts, const int64_t *sizes, int64_t n_parts, int64_t rows, int64_t *counts,
                int64_t *row, double *start, double *stop, double *error, int8_t *kind) {
    int64_t n_ends = 0, place = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = counts[r];
        counts[r] = place;
        place += count;
    }
    for (int64_t p = 0; p < n_parts; p++)
        for (int64_t c = 0; c < sizes[p]; c++) {
            const Leaf *leaf = &parts[p][c];
            int64_t to = counts[leaf->tag / 256]++;
            row[to] = leaf->tag / 256, kind[to] = (int8_t)(leaf->tag % 256 / 16);
            start[to] = leaf->start, stop[to] = leaf->stop, error[to] = leaf->error;
            n_ends += kind[to] != LINEAR;
        }
    return n_ends;
}
