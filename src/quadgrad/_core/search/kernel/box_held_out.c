/* What f's values on boxes say that nodes do not see: the inside of held_out.py, which explains it. */

#include "boxes.h"

enum { TOGETHER = 8, ROWS = 4, POINTS = 16, MOST_TERMS = 192, MOST_DEGREE = 8 }; /* cells, rows and points at a time */

/* Polynomials of k terms with `powers` (k, d) of which the first axis' rise fastest, by `coefficients` (k, m) and
 * `basis` (m, k); after each term the sums over so many axes are complete. `count` points (d, count), f there (batch,
 * count), and one bit for each of them in `words` numbers for each axis and each cell of it that is halved up to
 * SHALLOW times. */
typedef struct {
    double rounded, beyond, noise;
    int64_t shallow, coarse, k, degree, count, words;
    const double *coefficients, *basis, *points, *values, *weights;
    const int64_t *powers, *complete;
    const uint64_t *inside;
} HeldOut;

/* f's values (rows, n, columns) at the nodes of cells, what they are to be multiplied by, where these are, in matrices
 * with rows of `stride`, and where what is told goes. */
typedef struct {
    const double *y, *scale;
    const int64_t *row, *level, *place;
    int64_t n, stride;
    double *told;
} Drawing;

typedef double Lane __attribute__((vector_size(8 * TOGETHER), aligned(8), may_alias));
typedef double Wide __attribute__((vector_size(8 * POINTS), may_alias));

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

/* A polynomial at POINTS points of a cell: of the sums over powers of one axis are made those over the next one's. */
INLINE Wide polynomial_at(const HeldOut *held, int64_t d, const Wide *t, const double *drawn) {
    Wide legendre[MOST_AXES][MOST_DEGREE + 1], sum[MOST_AXES + 1] = {{0.0}}, none = {0.0};
    for (int64_t axis = 0; axis < d; axis++) {
        Wide *p = legendre[axis], x = p[1] = 2.0 * t[axis] - 1.0;
        p[0] = none + 1.0;
        for (int j = 2; j <= held->degree; j++) p[j] = (2.0 * j - 1.0) / j * x * p[j - 1] - (j - 1.0) / j * p[j - 2];
    }
    for (int64_t k = 0; k < held->k; k++) {
        const int64_t *power = held->powers + k * d;
        sum[0] += drawn[k * TOGETHER] * legendre[0][power[0]];
        for (int64_t axis = 1; axis <= held->complete[k]; axis++) {
            if (axis < d) sum[axis - 1] *= legendre[axis][power[axis]];
            sum[axis] += sum[axis - 1];
            sum[axis - 1] = none;
        }
    }
    return sum[d];
}

/* How far f is off the polynomial of a cell at some of the points, and at which it is farther than before. */
INLINE void compare_points(const HeldOut *held, const Drawing *in, int64_t d, int64_t cell, const double *drawn,
                           const int64_t *number, int64_t count, double *most, double *worst) {
    Wide t[MOST_AXES];
    for (int64_t axis = 0; axis < d; axis++) {
        double scale = power_of_2(in->level[axis * in->stride + cell]), place = (double)in->place[axis * in->stride + cell];
        for (int i = 0; i < POINTS; i++)
            t[axis][i] = held->points[axis * held->count + number[i < count ? i : 0]] * scale - place;
    }
    Wide value = polynomial_at(held, d, t, drawn);
    for (int64_t i = 0; i < count; i++) {
        double gap = fabs(value[i] - held->values[in->row[cell] * held->count + number[i]]);
        if (isfinite(gap) && gap > *most) *most = gap, *worst = (double)number[i];
    }
}

/* How far f is off the polynomial of a cell at the points in it, at most, and at which. */
INLINE double largest_gap(const HeldOut *held, const Drawing *in, int64_t d, int64_t cell, const double *drawn,
                          double *worst) {
    int64_t number[POINTS], filled = 0, cells = ((int64_t)2 << held->shallow) - 1;
    double most = 0.0;
    *worst = 0.0;
    for (int64_t word = 0; word < held->words; word++) {
        uint64_t bits = UINT64_MAX;
        for (int64_t axis = 0; axis < d; axis++) {
            int64_t level = in->level[axis * in->stride + cell], place = in->place[axis * in->stride + cell];
            bits &= held->inside[(axis * cells + ((int64_t)1 << level) - 1 + place) * held->words + word];
        }
        for (; bits; bits &= bits - 1) {
            number[filled++] = 64 * word + __builtin_ctzll(bits);
            if (filled < POINTS) continue;
            compare_points(held, in, d, cell, drawn, number, filled, &most, worst);
            filled = 0;
        }
    }
    if (filled) compare_points(held, in, d, cell, drawn, number, filled, &most, worst);
    return most;
}

/* Draw polynomials in some cells, at most TOGETHER, and enter what is told of them. */
static void draw(const BoxSetting *set, const HeldOut *held, const Drawing *in, const int64_t *cell, const int64_t *deep,
                 int64_t count, Lane *body) {
    int64_t m = set->rule->m, d = set->rule->d, columns = set->columns, n = in->stride;
    Lane drawn[MOST_TERMS], *off = body + m;
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < TOGETHER; i++) {
            const double *y = in->y + (r * in->n + cell[i < count ? i : 0]) * columns;
            body[r][i] = columns == 1 ? y[0] : 0.0;
            for (int64_t j = 0; columns > 1 && j < columns; j++) body[r][i] += y[j] * held->weights[j];
        }
    multiply(held->coefficients, held->k, m, body, NULL, drawn);
    multiply(held->basis, m, held->k, drawn, body, off);
    Lane sizes = {0.0}, gaps = {0.0}, nodes = {0.0};
    for (int64_t r = 0; r < m; r++)
        for (int i = 0; i < TOGETHER; i++) {
            double here = fabs(off[r][i]);
            int worst = (here > gaps[i]) | ((here != here) & (gaps[i] == gaps[i]));
            sizes[i] = worse(sizes[i], fabs(body[r][i]));
            gaps[i] = worst ? here : gaps[i], nodes[i] = worst ? (double)r : nodes[i];
        }
    for (int64_t i = 0; i < count; i++) {
        double size = sizes[i], gap = gaps[i], *told = in->told + cell[i];
        double scale = power_of_2(deep[i]) * in->scale[cell[i]], least = held->rounded * held->noise * (size * fabs(scale));
        gap = worse(gap * fabs(scale), least);
        gap = isfinite(gap) ? gap : 0.0;
        told[2 * n] = gap, told[3 * n] = nodes[i];
        /* Of the first cells nothing need be told where they will be halved in any case. */
        if (deep[i] > held->shallow || !(deep[i] > 1 || gap <= least) || !held->count) continue;
        for (int64_t k = 0; k < held->k; k++) drawn[k][i] *= scale;
        double most = largest_gap(held, in, d, cell[i], (double *)drawn + i, told + n);
        told[0] = most > held->beyond * gap ? most : 0.0;
    }
}

/* Enter what is told of n cells by f's values: 0 where no polynomial is drawn. There is room for all nodes of two groups
 * of cells for each thread. */
EXPORT void hold_out_boxes(const BoxSetting *set, const HeldOut *held, const double *y, const double *scale, int64_t n,
                           const BoxColumns *cells, double *room) {
    int64_t stride = cells->stride, *level = cells->whole + LEVEL * stride;
    const Drawing drawing = {y, scale, cells->whole + ROW * stride, level, level + set->rule->d * stride, n, stride,
                             cells->real + (FACES + 2 * set->rule->d) * stride}, *in = &drawing;
    int threads = sharing(n, set->threads);
    PARALLEL(threads)
    for (int t = 0; t < threads; t++) {
        int64_t cell[TOGETHER], deep[TOGETHER], count = 0, stop = in->n * (t + 1) / threads;
        Lane *mine = (Lane *)room + 2 * t * set->rule->m;
        for (int64_t i = in->n * t / threads; i < stop; i++) {
            deep[count] = 0;
            for (int64_t axis = 0; axis < set->rule->d; axis++) deep[count] += in->level[axis * in->stride + i];
            for (int64_t r = 0; r < 4; r++) in->told[r * in->stride + i] = 0.0;
            if (deep[count] <= held->coarse) cell[count++] = i;
            if (count < TOGETHER && i + 1 < stop) continue;
            if (count) draw(set, held, in, cell, deep, count, mine);
            count = 0;
        }
    }
}
