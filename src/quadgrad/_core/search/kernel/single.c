/* A single integral of one real column that its first cell settles: a whole search in one call. */

#include "spikes.h"

void measure(const Setting *, int64_t, int64_t, double, Cell *, int64_t, const double *, const double *, double *,
             int64_t, int64_t *, double *);
void judge(const Round *, Tally *);

/* Measure the first cell, behind which stands where it lies, by f's values y, times the slope if there is one, and judge
 * it: the numbers are those with which a Round begins. Return whether that is all there is to do, with the totals
 * entered. If there is more to do, the cell can be measured again. */
EXPORT int64_t settle_single(const Setting *set, double rtol, double atol, double eps, double nothing, double along,
                             double across, int64_t max_nfev, double noise, Cell *cell, const double *y,
                             const double *slope, double *value, double *error, int64_t *status, int64_t *nfev) {
    int8_t move;
    int64_t spiky = 0, settled = 0;
    double spikes[SPIKE * MOST_SPIKES];
    Integral integral;
    Share share;
    Tally tally = {0};
    measure(set, 1, 1, noise, cell, 1, y, slope, (double *)(cell + 1), 1, &spiky, spikes);
    Round round = {
        rtol, atol, eps, nothing, along, across, max_nfev, .fresh = set->rule->m + C.whole, .running = 1, .n_linear = 1,
        .setting = set, .integrals = &integral, .linear = cell, .shares = &share, .moves = &move, .values = value,
        .errors = error, .status = status, .nfev = nfev, .settled = &settled};
    judge(&round, &tally);
    return !(spiky || tally.running || tally.waiting || tally.faint);
}
