/* How far f at places in cells is from the cells' polynomials: the other body of find_gaps in search/looks/gaps.py. */

#include "tiles.h"

/* What is asked: the m nodes of a rule, their barycentric weights and the two rows that give the highest
 * coefficients; f at the nodes of n cells and at `count` places behind them,
 * (m + count, n, columns), and what it is multiplied by, `step` numbers a row (0: the same at all places); the places
 * tau (count, n), and which of them are in the cells; what rounding explains, as a part of the largest value. And what is
 * found, (count, n): what is not explained, and f's size; of components the largest. */
typedef struct {
    const double *nodes, *barycentric, *highest, *y, *factor, *tau;
    const int8_t *inside;
    int64_t m, step, n, count, columns, parts, threads;
    double rounding;
    double *missed, *height;
} Gaps;

/* f of one component at the nodes of a tile's cells, both of its parts, times the factor. */
INLINE void load_part(const Gaps *ask, int64_t row, int64_t low, int64_t here, int64_t column, Tile to) {
    for (int64_t c = 0; c < here; c++)
        to[c] = ask->y[(row * ask->n + low + c) * ask->columns + column] * ask->factor[row * ask->step + low + c];
}

/* What is explained of a component: what smooth functions differ by from polynomials with such highest coefficients, and
 * rounding. */
INLINE void explain(const Gaps *ask, const Tile *real, const Tile *imaginary, Tile allowed) {
    const double *first = ask->highest, *second = first + ask->m;
    Tile a = {0}, b = {0}, c = {0}, d = {0}, largest = {0};
    for (int64_t j = 0; j < ask->m; j++)
        for (int l = 0; l < WIDE; l++) {
            a[l] += first[j] * real[j][l], b[l] += second[j] * real[j][l];
            c[l] += first[j] * imaginary[j][l], d[l] += second[j] * imaginary[j][l];
            largest[l] = larger(largest[l], modulus(real[j][l], imaginary[j][l]));
        }
    for (int l = 0; l < WIDE; l++)
        allowed[l] = C.beyond * (modulus(a[l], c[l]) + modulus(b[l], d[l])) + ask->rounding * largest[l];
}

/* Enter what one component says of a tile's cells. */
INLINE void add_component(const Gaps *ask, int64_t low, int64_t here, int64_t column, int several) {
    int64_t m = ask->m, n = ask->n;
    Tile real[MOST_NODES] = {0}, imaginary[MOST_NODES] = {0}, allowed, tau = {0}, seen = {0}, other = {0}, within = {0};
    for (int64_t j = 0; j < m; j++) {
        load_part(ask, j, low, here, column, real[j]);
        if (several) load_part(ask, j, low, here, column + 1, imaginary[j]);
    }
    explain(ask, real, imaginary, allowed);
    for (int64_t j = m - INNERMOST; j < m; j++) /* see gaps.py */
        for (int l = 0; l < WIDE; l++) within[l] = larger(within[l], modulus(real[j][l], imaginary[j][l]));
    for (int64_t q = 0; q < ask->count; q++) {
        Tile whole = {0}, sum = {0}, sum_other = {0};
        memcpy(tau, ask->tau + q * n + low, (size_t)here * sizeof *tau);
        load_part(ask, m + q, low, here, column, seen);
        if (several) load_part(ask, m + q, low, here, column + 1, other);
        for (int64_t j = 0; j < m; j++)
            for (int l = 0; l < WIDE; l++) {
                double apart = tau[l] - ask->nodes[j], weight = ask->barycentric[j] / (apart == 0.0 ? 1e-300 : apart);
                whole[l] += weight, sum[l] += weight * real[j][l];
                if (several) sum_other[l] += weight * imaginary[j][l];
            }
        for (int64_t l = 0; l < here; l++) {
            int64_t at = q * n + low + l;
            double height = modulus(seen[l], other[l]), share = tau[l] < 1.0 ? 1.0 / whole[l] : 0.0;
            double missed = modulus(sum[l] * share - seen[l], sum_other[l] * share - other[l]) - allowed[l];
            if (tau[l] >= 1.0) missed -= within[l];
            if (ask->inside[at] && missed > ask->missed[at] && missed < INFINITY) ask->missed[at] = missed;
            if (height > ask->height[at] && height < INFINITY) ask->height[at] = height;
        }
    }
}

EXPORT void find_gaps(const Gaps *ask) {
    int64_t n = ask->n, columns = ask->columns, parts = ask->parts;
    memset(ask->missed, 0, (size_t)(ask->count * n) * sizeof *ask->missed);
    memset(ask->height, 0, (size_t)(ask->count * n) * sizeof *ask->height);
    PARALLEL(sharing(COSTLY * n, ask->threads))
    for (int64_t low = 0; low < n; low += WIDE)
        for (int64_t column = 0; column < columns; column += parts) {
            int64_t here = n - low < WIDE ? n - low : WIDE;
            if (parts == 2) add_component(ask, low, here, column, 1);
            else add_component(ask, low, here, column, 0);
        }
}
