/* What f's values on boxes say that nodes do not see: the inside of held_out.py, which explains it. */

#include "boxes.h"

enum { TOGETHER = 8, ROWS = 4, MOST_TERMS = 192, MOST_DEGREE = 8 }; /* so many cells, and rows of a matrix, at a time */

/* Polynomials of k terms with `powers` (k, d), by `coefficients` (k, m) and `basis` (m, k). `count` points (count, d)
 * with their binary digits, SHALLOW of each axis, as one number, and f there (points, batch). */
typedef struct {
    double rounded, beyond, noise;
    int64_t shallow, coarse, k, count, batch;
    const double *coefficients, *basis, *points, *values, *weights;
    const int64_t *powers, *digits;
} HeldOut;

/* f's values (rows, n, columns) at the nodes of cells, what they are to be multiplied by, where these are, in matrices
 * with rows of `stride`, and where what is told goes. */
typedef struct {
    const double *y, *scale;
    const int64_t *row, *level, *place;
    int64_t n, stride;
    double *told;
} Drawing;

typedef double Lane[TOGETHER];

/* Rows of a matrix (rows, columns) times TOGETHER vectors, less `from` where there is any. */
INLINE void multiply(const double *matrix, int64_t rows, int64_t columns, const Lane *vector, const Lane *from, Lane *to) {
    for (int64_t r = 0; r < rows; r += ROWS) {
        Lane sum[ROWS] = {{0.0}};
        int64_t some = rows - r < ROWS ? rows - r : ROWS;
        if (some == ROWS)
            for (int64_t c = 0; c < columns; c++)
                for (int64_t q = 0; q < ROWS; q++)
                    for (int i = 0; i < TOGETHER; i++) sum[q][i] += matrix[(r + q) * columns + c] * vector[c][i];
        else
            for (int64_t c = 0; c < columns; c++)
                for (int64_t q = 0; q < some; q++)
                    for (int i = 0; i < TOGETHER; i++) sum[q][i] += matrix[(r + q) * columns + c] * vector[c][i];
        for (int64_t q = 0; q < some; q++)
            for (int i = 0; i < TOGETHER; i++) to[r + q][i] = from ? from[r + q][i] - sum[q][i] : sum[q][i];
    }
}

/* The products of Legendre's polynomials at TOGETHER points of a cell, times their coefficients. */
INLINE void polynomial_at(const HeldOut *held, int64_t d, const Lane *t, const double *drawn, Lane sum) {
    Lane legendre[MOST_AXES][MOST_DEGREE + 1];
    for (int64_t axis = 0; axis < d; axis++)
        for (int j = 0; j <= MOST_DEGREE; j++)
            for (int i = 0; i < TOGETHER; i++) {
                double x = 2.0 * t[axis][i] - 1.0;
                legendre[axis][j][i] = j == 0 ? 1.0 : j == 1 ? x
                    : ((2 * j - 1) * x * legendre[axis][j - 1][i] - (j - 1) * legendre[axis][j - 2][i]) / j;
            }
    memset(sum, 0, sizeof(Lane));
    for (int64_t k = 0; k < held->k; k++) {
        Lane product;
        for (int i = 0; i < TOGETHER; i++) product[i] = drawn[k * TOGETHER];
        for (int64_t axis = 0; axis < d; axis++) {
            int64_t power = held->powers[k * d + axis];
            for (int i = 0; power && i < TOGETHER; i++) product[i] *= legendre[axis][power][i];
        }
        for (int i = 0; i < TOGETHER; i++) sum[i] += product[i];
    }
}

/* How far f is off the polynomial of a cell at the points in it, at most, and at which. */
INLINE double largest_gap(const HeldOut *held, const Drawing *in, int64_t d, int64_t cell, const double *drawn,
                          double *worst) {
    uint64_t mask = 0, mine = 0;
    double scale[MOST_AXES], shift[MOST_AXES], most = 0.0;
    for (int64_t axis = 0; axis < d; axis++) {
        int64_t level = in->level[axis * in->stride + cell], place = in->place[axis * in->stride + cell];
        int64_t rest = held->shallow - level, field = axis * held->shallow;
        mask |= (((uint64_t)1 << level) - 1) << (field + rest), mine |= (uint64_t)place << (field + rest);
        scale[axis] = power_of_2(level), shift[axis] = (double)place;
    }
    *worst = 0.0;
    int64_t number[TOGETHER], filled = 0;
    for (int64_t p = 0; p <= held->count; p++) {
        if (p < held->count) {
            if (((uint64_t)held->digits[p] & mask) != mine) continue;
            number[filled++] = p;
        }
        if (!filled || (filled < TOGETHER && p < held->count)) continue;
        Lane t[MOST_AXES], value;
        for (int i = 0; i < TOGETHER; i++)
            for (int64_t axis = 0; axis < d; axis++)
                t[axis][i] = held->points[number[i < filled ? i : 0] * d + axis] * scale[axis] - shift[axis];
        polynomial_at(held, d, t, drawn, value);
        for (int64_t i = 0; i < filled; i++) {
            double gap = fabs(value[i] - held->values[number[i] * held->batch + in->row[cell]]);
            if (isfinite(gap) && gap > most) most = gap, *worst = (double)number[i];
        }
        filled = 0;
    }
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
    for (int64_t i = 0; i < count; i++) {
        double size = 0.0, gap = 0.0, node = 0.0, *told = in->told + cell[i];
        for (int64_t r = 0; r < m; r++) {
            double here = fabs(off[r][i]);
            size = worse(size, fabs(body[r][i]));
            if (here > gap || (here != here && gap == gap)) gap = here, node = (double)r;
        }
        double scale = power_of_2(deep[i]) * in->scale[cell[i]], least = held->rounded * held->noise * (size * fabs(scale));
        gap = worse(gap * fabs(scale), least);
        gap = isfinite(gap) ? gap : 0.0;
        told[2 * n] = gap, told[3 * n] = node;
        /* Of the first cells nothing need be told where they will be halved in any case. */
        if (deep[i] > held->shallow || !(deep[i] > 1 || gap <= least) || !held->count) continue;
        for (int64_t k = 0; k < held->k; k++) drawn[k][i] *= scale;
        double most = largest_gap(held, in, d, cell[i], &drawn[0][i], told + n);
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
