/* What f's values say about cells: the rule's sums, errors, and series summed to the end. */

#include "kernel.h"

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

INLINE Lanes largest_of(Lanes a, Lanes b) {
    Bits is_b = b > a;
    return (Lanes)(((Bits)b & is_b) | ((Bits)a & ~is_b));
}

/* The rule's functionals, but for the shares, of values y on a tile, the integral of their size, and the largest size.
 * All but four are even or odd about the middle node, and these four are two that mirror two: half the products suffice
 * for sums and differences of values at mirrored nodes. */
INLINE void fold(const Rule *rule, const double *y, int64_t stride, Tile *sums, double *size, double *largest) {
    enum { EVEN = 4 + NULL_PAIRS, ODD = 3 + NULL_PAIRS };
    int64_t half = rule->m / 2;
    Tile plus[MOST_NODES / 2 + 1], minus[MOST_NODES / 2], even[EVEN], odd[ODD];
    Lanes s0 = {0}, s1 = {0}, most[2] = {{0}, {0}};
    for (int64_t i = 0; i <= half; i++) {
        const double *front = y + i * stride, *back = y + (rule->m - 1 - i) * stride;
        for (int k = 0; k < 2; k++) {
            Lanes a = *(const Lanes *)(front + k * LANES), b = *(const Lanes *)(back + k * LANES), zero = {0};
            Lanes size_a = (Lanes)((Bits)a & INT64_MAX), size_b = (Lanes)((Bits)b & INT64_MAX);
            Lanes sizes = size_a + size_b;
            most[k] = largest_of(most[k], largest_of(size_a, size_b));
            if (i == half) b = zero, sizes *= 0.5;
            ((Lanes *)plus)[2 * i + k] = a + b;
            if (i < half) ((Lanes *)minus)[2 * i + k] = a - b;
            if (k) s1 += rule->all[i] * sizes; else s0 += rule->all[i] * sizes;
        }
    }
    *(Lanes *)size = s0, *(Lanes *)(size + LANES) = s1;
    *(Lanes *)largest = most[0], *(Lanes *)(largest + LANES) = most[1];
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

/* At which of m nodes y is largest. */
INLINE uint8_t find_spot(int64_t m, const double *y, int64_t stride, double largest) {
    int64_t i = 0;
    while (i < m - 1 && !(fabs(y[i * stride]) >= C.near * largest)) i++;
    return (uint8_t)i;
}

/* see_pole in estimate.py: the steps by which its height is below 1, 0 if none is seen, and where it is. */
INLINE uint8_t see_pole(const Rule *rule, double blind, const double *y, int64_t stride, double largest, float *place) {
    const double *tau = rule->nodes;
    int64_t m = rule->m, i = find_spot(m, y, stride, largest), at_edge = i == 0 || i == m - 1;
    i = i < 1 ? 1 : i > m - 2 ? m - 2 : i;
    double before = 1.0 / fabs(y[(i - 1) * stride]), here = 1.0 / fabs(y[i * stride]);
    double after = 1.0 / fabs(y[(i + 1) * stride]), span = tau[i + 1] - tau[i - 1], off = 0.0;
    double rise = (here - before) / (tau[i] - tau[i - 1]);
    double bend = ((after - here) / (tau[i + 1] - tau[i]) - rise) / span;
    rise += bend * (tau[i] - tau[i - 1]);
    int64_t beside[2] = {i > 1 ? i - 2 : i + 3, i < m - 2 ? i + 2 : i - 3};
    for (int k = 0; k < 2; k++) {
        double away = tau[beside[k]] - tau[i], seen = fabs(y[beside[k] * stride]);
        double ratio = (here + away * (rise + bend * away)) * seen;
        double found = fabs(ratio - 1.0) / (at_edge ? larger(smaller(ratio, 1.0), 0.0) : 1.0);
        off = found <= off ? off : found; /* NaN stays */
    }
    double least = (here - rise * (rise / (4.0 * bend))) / bend, unsure = C.unsure * off * span;
    double square = larger(larger(least, unsure * unsure), blind * span * span);
    *place = (float)(tau[i] - rise / (2.0 * bend));
    int sees = bend > 0.0 && bend < INFINITY && off < INFINITY && square < 1.0;
    return sees ? (uint8_t)(-0.5 * C.steps * log2(square)) : 0;
}

/* What the rule's sums, and values y, say about up to WIDE cells: apply_rule and scale_estimates in estimate.py. */
INLINE void estimate(const Rule *rule, const Pieces *p, double eps, double blind, const Tile *sums, const double *size,
                     const double *largest, const double *y, int64_t stride, const double *scale, const double *left,
                     int64_t here, Cell *cells) {
    const Tile *nulls = sums + 1, *halves = nulls + 2 * NULL_PAIRS, *slopes = halves + 2, *edges = slopes + 2;
    Tile at_start = {0}, at_stop = {0}, width = {0}, unseen, error, decay, highest, noise, floor, side, reach, value;
    int64_t refinable[WIDE];
    const double *middle = y + rule->m / 2 * stride;
    double finest = 4.0 * p->eps / rule->nodes[0], narrowest = sqrt(p->tiny), rounding = C.place * p->eps;
    for (int c = 0; c < here; c++) {
        at_start[c] = cells[c].at_start, at_stop[c] = cells[c].at_stop;
        width[c] = cells[c].stop - cells[c].start;
    }
    for (int c = 0; c < WIDE; c++) {
        reach[c] = fabs(left[c]);
        double variation = fabs(slopes[0][c]) + fabs(slopes[1][c]), whole = size[c] * scale[c];
        double blur = smaller(rounding * reach[c] / larger(p->tiny, scale[c]), 1.0);
        unseen[c] = size[c] + variation * (blur / (2.0 * eps));
        floor[c] = C.floor * eps * whole;
        noise[c] = smaller(rounding * reach[c] * variation, whole) + floor[c];
        double left = fabs(halves[0][c]), right = fabs(halves[1][c]);
        side[c] = (right > C.rougher * left ? 1.0 : 0.0) - (left > C.rougher * right ? 1.0 : 0.0);
    }
    null_rule_error(nulls, unseen, rule->order_gap, eps, error, decay, highest);
    for (int c = 0; c < WIDE; c++) side[c] *= decay[c] >= C.unresolved ? 2.0 : 1.0;
    for (int c = 0; c < WIDE; c++) {
        double allowed = C.beyond * highest[c];
        double hidden = gap(edges[0][c], at_start[c], allowed) + gap(edges[1][c], at_stop[c], allowed);
        error[c] = larger(noise[c], (error[c] + hidden * rule->nodes[0]) * scale[c]);
    }
    for (int c = 0; c < WIDE; c++) {
        int lost = !(size[c] * scale[c] < INFINITY) | !(error[c] < INFINITY);
        int resolvable = (scale[c] > reach[c] * finest) & (width[c] > narrowest);
        refinable[c] = resolvable & (lost | (error[c] > noise[c]));
        value[c] = lost ? 0.0 : sums[0][c] * scale[c];
        error[c] = lost ? INFINITY : error[c];
        floor[c] = !(scale[c] > 0.0) ? p->tiny : lost ? 0.0 : floor[c];
        side[c] = lost ? 0.0 : side[c];
    }
    for (int c = 0; c < here; c++) {
        Cell *cell = &cells[c];
        cell->value = value[c], cell->error = error[c], cell->floor = floor[c], cell->at_middle = middle[c];
        cell->lean = (int8_t)side[c], cell->refinable = (int8_t)refinable[c];
        int looks = decay[c] >= C.unresolved && error[c] < INFINITY;
        cell->height = looks ? see_pole(rule, blind, y + c, stride, largest[c], &cell->pole) : 0;
    }
}

/* Apply the rule to f's values y (m, n) on n cells, times the slope. With edges y is (m + 2, n): f at the edges of
 * first cells is entered, too, where it is not NaN. Scale and left as in Layout. */
EXPORT void measure(const Pieces *p, const Rule *rule, int64_t edges, double eps, Cell *cells, int64_t n,
                    const double *y, const double *scale, const double *left) {
    const double *first = y, *last = y + (rule->m + 1) * n;
    double blind = cbrt(eps * eps); /* rounding hides how high a pole is below its root, in distances between nodes */
    y += edges ? n : 0;
    PARALLEL(sharing(n, p->threads))
    for (int64_t low = 0; low < n; low += WIDE) {
        int64_t here = n - low < WIDE ? n - low : WIDE;
        Tile sums[FUNCTIONALS], size, largest;
        for (int64_t c = low; edges && c < low + here; c++) {
            cells[c].at_start = isnan(cells[c].at_start) ? NAN : first[c];
            cells[c].at_stop = isnan(cells[c].at_stop) ? NAN : last[c];
        }
        if (here == WIDE) {
            fold(rule, y + low, n, sums, size, largest);
            estimate(rule, p, eps, blind, sums, size, largest, y + low, n, scale + low, left + low, WIDE, cells + low);
        } else {
            Tile few[MOST_NODES], scales, lefts;
            for (int64_t i = 0; i < rule->m; i++) load_tile(y + low + i * n, here, few[i]);
            load_tile(scale + low, here, scales), load_tile(left + low, here, lefts);
            fold(rule, few[0], WIDE, sums, size, largest);
            estimate(rule, p, eps, blind, sums, size, largest, few[0], WIDE, scales, lefts, here, cells + low);
        }
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
EXPORT void measure_ends(const Pieces *p, const Rule *rule, double eps, double rtol, Cell *cells, int64_t n,
                         const double *y, const double *slope, const EndFrame *layout) {
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
