/* What f's values on boxes say that nodes do not see: the inside of held_out.py, which explains it. */

#include "boxes.h"
#include "tiles.h"

enum { MOST_TERMS = 192, MOST_DEGREE = 8 };

/* Polynomials of k terms, by `coefficients` (k, m) and `basis` (m, k), in products of Legendre's: each product but the
 * first is another one times a Legendre polynomial of one axis, which are two numbers of `factors` (k, 2), those of the
 * polynomials counted over all axes, degree + 1 of each. `count` points (d, count), f there (batch, count), and one bit
 * for each point in `words` numbers for each axis and each cell of it that is halved up to `shallow` times.
 *
 * To `drawn` go the polynomials of new cells, at most `most` rows of k, of which `filled` are; to `slots` the row of
 * each cell, or -1. */
typedef struct {
    double rounded, beyond, noise;
    int64_t shallow, coarse, k, degree, count, words, most, filled;
    const double *coefficients, *basis, *points, *values, *weights;
    const int64_t *factors;
    const uint64_t *inside;
    double *drawn;
    int64_t *slots;
} HeldOut;

/* f's values (rows, n, columns) at the nodes of cells, what they are to be multiplied by, which rows polynomials go to,
 * and where what is told goes, in a matrix with rows of `stride`. */
typedef struct {
    const double *y, *scale;
    int64_t *slot, n, stride;
    double *told;
} Drawing;

enum { GAP, WHERE, OFF, NODE }; /* rows of what is told, DOUBTS of held_out.py */

/* f at the nodes of a tile of cells, one column for all. */
INLINE void read_cells(const BoxSetting *set, const HeldOut *held, const Drawing *in, const int64_t *cell, Tile *body) {
    int64_t columns = set->columns, next = columns == 1;
    for (int i = 1; i < WIDE; i++) next &= cell[i] == cell[0] + i;
    for (int64_t r = 0; r < set->rule->m; r++) {
        const double *y = in->y + r * in->n * columns;
        if (next) memcpy(body[r], y + cell[0], sizeof(Tile));
        for (int i = 0; i < WIDE && !next; i++) {
            body[r][i] = columns == 1 ? y[cell[i]] : 0.0;
            for (int64_t j = 0; columns > 1 && j < columns; j++)
                body[r][i] += y[cell[i] * columns + j] * held->weights[j];
        }
    }
}

/* Draw polynomials in the first `count` cells of a tile, and tell how far f is off them at the nodes. */
static void draw(const BoxSetting *set, const HeldOut *held, const Drawing *in, const int64_t *cell,
                 const int64_t *deep, int64_t count, Tile *body) {
    int64_t m = set->rule->m, n = in->stride;
    Tile drawn[MOST_TERMS], *at_nodes = body + m, sizes = {0.0}, gaps = {0.0}, nodes = {0.0};
    read_cells(set, held, in, cell, body);
    weigh(held->coefficients, held->k, m, body, drawn);
    weigh(held->basis, m, held->k, drawn, at_nodes);
    for (int64_t r = 0; r < m; r++)
        for (int i = 0; i < WIDE; i++) { /* a NaN stays, and the first is the one that is told */
            double gap = fabs(body[r][i] - at_nodes[r][i]);
            int worst = (gap > gaps[i]) | ((gap != gap) & (gaps[i] == gaps[i]));
            sizes[i] = worse(sizes[i], fabs(body[r][i]));
            gaps[i] = worst ? gap : gaps[i], nodes[i] = worst ? (double)r : nodes[i];
        }
    for (int64_t i = 0; i < count; i++) {
        double *told = in->told + cell[i], scale = power_of_2(deep[i]) * in->scale[cell[i]];
        double least = held->rounded * held->noise * (sizes[i] * fabs(scale));
        double gap = worse(gaps[i] * fabs(scale), least);
        told[OFF * n] = gap = isfinite(gap) ? gap : 0.0, told[NODE * n] = nodes[i];
        int64_t *slot = in->slot + cell[i];
        if (*slot < 0) continue;
        /* Of the first cells nothing need be told where they will be halved in any case. */
        if (!(deep[i] > 1 || gap <= least)) *slot = -1;
        else
            for (int64_t k = 0; k < held->k; k++) held->drawn[*slot * held->k + k] = drawn[k][i] * scale;
    }
}

/* Draw polynomials in those of n new cells, the first of which has the number `first`, that are large enough. There is
 * `room` for all nodes of two tiles for each thread. */
EXPORT void draw_boxes(const BoxSetting *set, HeldOut *held, const double *y, const double *scale, int64_t first,
                       int64_t n, const BoxColumns *cells, double *room) {
    int64_t d = set->rule->d, stride = cells->stride, *level = cells->whole + LEVEL * stride;
    double *told = cells->real + (FACES + 2 * d) * stride;
    const Drawing drawing = {y, scale, held->slots + first, n, stride, told}, *in = &drawing;
    for (int64_t i = 0; i < n; i++) {
        int64_t deep = 0;
        for (int64_t axis = 0; axis < d; axis++) deep += level[axis * stride + i];
        in->slot[i] = deep <= held->shallow && held->filled < held->most ? held->filled++ : -1;
        for (int64_t r = GAP; r <= NODE; r++) told[r * stride + i] = 0.0;
    }
    int threads = sharing(n, set->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t cell[WIDE], deep[WIDE], count = 0, stop = n * (t + 1) / threads;
        for (int64_t i = n * t / threads; i < stop; i++) {
            deep[count] = 0;
            for (int64_t axis = 0; axis < d; axis++) deep[count] += level[axis * stride + i];
            if (deep[count] <= held->coarse) cell[count++] = i;
            if (!count || (count < WIDE && i + 1 < stop)) continue;
            for (int64_t rest = count; rest < WIDE; rest++) cell[rest] = cell[0];
            draw(set, held, in, cell, deep, count, (Tile *)room + 2 * t * set->rule->m);
            count = 0;
        }
    }
}

/* A cell's polynomial at a tile of points of it, t from -1 to 1 along each axis. */
INLINE void polynomial_at(const HeldOut *held, int64_t d, const Tile *t, const double *drawn, Tile value) {
    Tile legendre[MOST_AXES * (MOST_DEGREE + 1)];
    Lanes product[MOST_TERMS][2], one = (Lanes){0.0} + 1.0, low = one * drawn[0], high = low;
    for (int64_t axis = 0; axis < d; axis++) {
        Tile *p = legendre + axis * (held->degree + 1);
        for (int i = 0; i < WIDE; i++) p[0][i] = 1.0, p[1][i] = t[axis][i];
        for (int j = 2; j <= held->degree; j++) {
            double rise = (2.0 * j - 1.0) / j, fall = (j - 1.0) / j;
            for (int i = 0; i < WIDE; i++) p[j][i] = rise * t[axis][i] * p[j - 1][i] - fall * p[j - 2][i];
        }
    }
    product[0][0] = product[0][1] = one;
    for (int64_t k = 1; k < held->k; k++) {
        const Lanes *before = product[held->factors[2 * k]], *by = (const Lanes *)legendre[held->factors[2 * k + 1]];
        low += drawn[k] * (product[k][0] = before[0] * by[0]);
        high += drawn[k] * (product[k][1] = before[1] * by[1]);
    }
    memcpy(value, &low, sizeof low), memcpy(value + LANES, &high, sizeof high);
}

/* How far f is off the polynomial of a cell at some of the points, and at which it is farther than before. */
INLINE void compare_points(const HeldOut *held, const BoxColumns *cells, int64_t d, int64_t cell, const double *drawn,
                           const int64_t *number, int64_t count, double *most, double *worst) {
    const int64_t *level = cells->whole + LEVEL * cells->stride + cell, *place = level + d * cells->stride;
    const double *values = held->values + cells->whole[ROW * cells->stride + cell] * held->count;
    Tile t[MOST_AXES], value;
    for (int64_t axis = 0; axis < d; axis++) {
        double scale = 2.0 * power_of_2(level[axis * cells->stride]);
        double middle = 2.0 * (double)place[axis * cells->stride] + 1.0;
        for (int i = 0; i < WIDE; i++)
            t[axis][i] = held->points[axis * held->count + number[i < count ? i : 0]] * scale - middle;
    }
    polynomial_at(held, d, t, drawn, value);
    for (int64_t i = 0; i < count; i++) {
        double gap = fabs(value[i] - values[number[i]]);
        if (isfinite(gap) && gap > *most) *most = gap, *worst = (double)number[i];
    }
}

/* How far f is off the polynomial of a cell at the points in it, at most, and at which. */
INLINE double gap_at_points(const HeldOut *held, const BoxColumns *cells, int64_t d, int64_t cell, const double *drawn,
                          double *worst) {
    const int64_t *level = cells->whole + LEVEL * cells->stride + cell, *place = level + d * cells->stride;
    int64_t number[WIDE], filled = 0, all = ((int64_t)2 << held->shallow) - 1;
    double most = *worst = 0.0;
    for (int64_t word = 0; word < held->words; word++) {
        uint64_t bits = UINT64_MAX;
        for (int64_t axis = 0; axis < d; axis++) {
            int64_t at = ((int64_t)1 << level[axis * cells->stride]) - 1 + place[axis * cells->stride];
            bits &= held->inside[(axis * all + at) * held->words + word];
        }
        for (; bits; bits &= bits - 1) {
            number[filled++] = 64 * word + __builtin_ctzll(bits);
            if (filled < WIDE) continue;
            compare_points(held, cells, d, cell, drawn, number, filled, &most, worst);
            filled = 0;
        }
    }
    if (filled) compare_points(held, cells, d, cell, drawn, number, filled, &most, worst);
    return most;
}

/* Hold f at the points against the polynomials of those of n new cells that are not marked, as these will be halved. */
EXPORT void hold_out_boxes(const BoxSetting *set, const HeldOut *held, const BoxColumns *cells, int64_t n,
                           const uint8_t *marked) {
    int64_t d = set->rule->d, stride = cells->stride;
    int threads = sharing(n, set->threads);
    PARALLEL(threads)
    for (int64_t i = 0; i < n; i++) {
        if (held->slots[i] < 0 || (marked && marked[i])) continue;
        double *told = cells->real + (FACES + 2 * d) * stride + i, worst;
        double most = gap_at_points(held, cells, d, i, held->drawn + held->slots[i] * held->k, &worst);
        if (most > held->beyond * told[OFF * stride]) told[GAP * stride] = most, told[WHERE * stride] = worst;
    }
}
