/* What f's values on boxes say that nodes do not see: the inside of held_out.py, which explains it. */

#include "boxes.h"
#include "tiles.h"

enum { TOGETHER = WIDE, ROWS = 4, POINTS = 16, MOST_TERMS = 192, MOST_DEGREE = 8 }; /* cells, rows and points at a time */

/* Polynomials of k terms, by `coefficients` (k, m) and `basis` (m, k), in products of Legendre's: each product but the
 * first is that of the number `factors` (k, 2) says times one of the Legendre polynomials of all axes, degree + 1 of
 * each. `count` points (d, count), f there (batch, count), and one bit for each of them in `words` numbers for each
 * axis and each cell of it that is halved up to SHALLOW times.
 *
 * To `drawn` go the polynomials of new cells, at most `most` rows of k, of which `filled` are; to `slots` the row of each
 * cell, or -1. */
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

typedef double Lane __attribute__((vector_size(8 * TOGETHER), aligned(8), may_alias));
typedef int64_t LaneBits __attribute__((vector_size(8 * TOGETHER), aligned(8), may_alias));
typedef double Wide __attribute__((vector_size(8 * POINTS), may_alias));

INLINE Lane choose(LaneBits which, Lane a, Lane b) {
    return (Lane)((which & (LaneBits)a) | (~which & (LaneBits)b));
}

INLINE Lane moduli(Lane a) { return (Lane)((LaneBits)a & INT64_MAX); }

/* Rows of a matrix (rows, columns) times TOGETHER vectors, less `from` where there is any. */
INLINE void multiply(const double *matrix, int64_t rows, int64_t columns, const Lane *vector, const Lane *from, Lane *to) {
    for (int64_t r = 0; r < rows; r += ROWS) {
        Lane sum[ROWS] = {{0.0}};
        const double *row[ROWS];
        for (int q = 0; q < ROWS; q++) row[q] = matrix + (r + q < rows ? r + q : rows - 1) * columns;
        for (int64_t c = 0; c < columns; c++)
            for (int q = 0; q < ROWS; q++) sum[q] += row[q][c] * vector[c];
        for (int64_t q = 0; q < ROWS && r + q < rows; q++) {
            to[r + q] = sum[q];
            if (from) to[r + q] = from[r + q] - sum[q];
        }
    }
}

/* f at the nodes of TOGETHER cells, one column for all. */
INLINE void read_cells(const BoxSetting *set, const HeldOut *held, const Drawing *in, const int64_t *cell, Lane *body) {
    int64_t columns = set->columns, next = columns == 1;
    for (int64_t i = 1; i < TOGETHER; i++) next &= cell[i] == cell[0] + i;
    for (int64_t r = 0; r < set->rule->m; r++) {
        const double *y = in->y + r * in->n * columns;
        if (next) memcpy(body + r, y + cell[0], sizeof *body);
        for (int64_t i = 0; i < TOGETHER && !next; i++) {
            double sum = columns == 1 ? y[cell[i]] : 0.0;
            for (int64_t j = 0; columns > 1 && j < columns; j++) sum += y[cell[i] * columns + j] * held->weights[j];
            body[r][i] = sum;
        }
    }
}

/* Draw polynomials in `count` cells, of TOGETHER that are given, and tell how far f is off them at the nodes. */
static void draw(const BoxSetting *set, const HeldOut *held, const Drawing *in, const int64_t *cell, const int64_t *deep,
                 int64_t count, Lane *body) {
    int64_t m = set->rule->m, n = in->stride;
    Lane drawn[MOST_TERMS], *off = body + m, sizes = {0.0}, gaps = {0.0}, nodes = {0.0};
    read_cells(set, held, in, cell, body);
    multiply(held->coefficients, held->k, m, body, NULL, drawn);
    multiply(held->basis, m, held->k, drawn, body, off);
    for (int64_t r = 0; r < m; r++) { /* a NaN stays, and the first is the one that is told */
        Lane size = moduli(body[r]), gap = moduli(off[r]), node = (Lane){0.0} + (double)r;
        sizes = choose((size > sizes) | (size != size), size, sizes);
        LaneBits worst = (gap > gaps) | ((gap != gap) & (gaps == gaps));
        gaps = choose(worst, gap, gaps), nodes = choose(worst, node, nodes);
    }
    for (int64_t i = 0; i < count; i++) {
        double *told = in->told + cell[i], scale = power_of_2(deep[i]) * in->scale[cell[i]];
        double least = held->rounded * held->noise * (sizes[i] * fabs(scale)), gap = worse(gaps[i] * fabs(scale), least);
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
 * `room` for all nodes of two groups of cells for each thread. */
EXPORT void draw_boxes(const BoxSetting *set, HeldOut *held, const double *y, const double *scale, int64_t first,
                       int64_t n, const BoxColumns *cells, double *room) {
    int64_t d = set->rule->d, stride = cells->stride, *level = cells->whole + LEVEL * stride;
    const Drawing drawing = {y, scale, held->slots + first, n, stride, cells->real + (FACES + 2 * d) * stride}, *in = &drawing;
    for (int64_t i = 0; i < n; i++) {
        int64_t deep = 0;
        for (int64_t axis = 0; axis < d; axis++) deep += level[axis * stride + i];
        in->slot[i] = deep <= held->shallow && held->filled < held->most ? held->filled++ : -1;
        for (int64_t r = GAP; r <= NODE; r++) in->told[r * stride + i] = 0.0;
    }
    int threads = sharing(n, set->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t cell[TOGETHER], deep[TOGETHER], count = 0, stop = n * (t + 1) / threads;
        for (int64_t i = n * t / threads; i < stop; i++) {
            deep[count] = 0;
            for (int64_t axis = 0; axis < d; axis++) deep[count] += level[axis * stride + i];
            if (deep[count] <= held->coarse) cell[count++] = i;
            if (!count || (count < TOGETHER && i + 1 < stop)) continue;
            for (int64_t rest = count; rest < TOGETHER; rest++) cell[rest] = cell[0];
            draw(set, held, in, cell, deep, count, (Lane *)room + 2 * t * set->rule->m);
            count = 0;
        }
    }
}

/* A cell's polynomial at POINTS points of it. */
INLINE Wide polynomial_at(const HeldOut *held, int64_t d, const Wide *t, const double *drawn) {
    Wide legendre[MOST_AXES * (MOST_DEGREE + 1)], product[MOST_TERMS], none = {0.0};
    for (int64_t axis = 0; axis < d; axis++) {
        Wide *p = legendre + axis * (held->degree + 1), x = p[1] = 2.0 * t[axis] - 1.0;
        p[0] = none + 1.0;
        for (int j = 2; j <= held->degree; j++) p[j] = (2.0 * j - 1.0) / j * x * p[j - 1] - (j - 1.0) / j * p[j - 2];
    }
    Wide sum = none + drawn[0];
    product[0] = none + 1.0;
    for (int64_t k = 1; k < held->k; k++) {
        product[k] = product[held->factors[2 * k]] * legendre[held->factors[2 * k + 1]];
        sum += drawn[k] * product[k];
    }
    return sum;
}

/* How far f is off the polynomial of a cell at some of the points, and at which it is farther than before. */
INLINE void compare_points(const HeldOut *held, const BoxColumns *cells, int64_t d, int64_t cell, const double *drawn,
                           const int64_t *number, int64_t count, double *most, double *worst) {
    const int64_t *level = cells->whole + LEVEL * cells->stride + cell, *place = level + d * cells->stride;
    const double *values = held->values + cells->whole[ROW * cells->stride + cell] * held->count;
    Wide t[MOST_AXES];
    for (int64_t axis = 0; axis < d; axis++) {
        double scale = power_of_2(level[axis * cells->stride]), low = (double)place[axis * cells->stride];
        for (int i = 0; i < POINTS; i++)
            t[axis][i] = held->points[axis * held->count + number[i < count ? i : 0]] * scale - low;
    }
    Wide value = polynomial_at(held, d, t, drawn);
    for (int64_t i = 0; i < count; i++) {
        double gap = fabs(value[i] - values[number[i]]);
        if (isfinite(gap) && gap > *most) *most = gap, *worst = (double)number[i];
    }
}

/* How far f is off the polynomial of a cell at the points in it, at most, and at which. */
INLINE double gap_at_points(const HeldOut *held, const BoxColumns *cells, int64_t d, int64_t cell, const double *drawn,
                          double *worst) {
    const int64_t *level = cells->whole + LEVEL * cells->stride + cell, *place = level + d * cells->stride;
    int64_t number[POINTS], filled = 0, all = ((int64_t)2 << held->shallow) - 1;
    double most = *worst = 0.0;
    for (int64_t word = 0; word < held->words; word++) {
        uint64_t bits = UINT64_MAX;
        for (int64_t axis = 0; axis < d; axis++) {
            int64_t at = ((int64_t)1 << level[axis * cells->stride]) - 1 + place[axis * cells->stride];
            bits &= held->inside[(axis * all + at) * held->words + word];
        }
        for (; bits; bits &= bits - 1) {
            number[filled++] = 64 * word + __builtin_ctzll(bits);
            if (filled < POINTS) continue;
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
