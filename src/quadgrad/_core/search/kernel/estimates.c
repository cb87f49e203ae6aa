/* What f's values say about cells with linear nodes: the rule's sums, errors, poles. */

#include "spikes.h"

/* By how much the larger one of neighbours' sizes is above so many times the other, or what was seen before. */
INLINE Lanes steeper(Lanes seen, Lanes a, Lanes b) {
    Lanes rise = a - C.sharp * b, fall = b - C.sharp * a;
    return largest_of(seen, largest_of(rise, fall));
}

/* The rule's functionals, but for the shares, of values y on a tile, the integral of their size, and the largest. All
 * but four are even or odd about the middle node, and these four are two that mirror two: half the products suffice
 * for sums and differences of values at mirrored nodes. */
INLINE void fold(const Rule *rule, const double *y, int64_t stride, Tile *sums, double *size, double *largest,
                 double *steepest) {
    enum { EVEN = 4 + NULL_PAIRS, ODD = 3 + NULL_PAIRS };
    int64_t half = rule->m / 2;
    Tile plus[MOST_NODES / 2 + 1], minus[MOST_NODES / 2], even[EVEN], odd[ODD];
    Lanes s0 = {0}, s1 = {0}, most[2] = {{0}, {0}}, steep[2] = {{0}, {0}}, before[2][2];
    for (int64_t i = 0; i <= half; i++) {
        const double *front = y + i * stride, *back = y + (rule->m - 1 - i) * stride;
        for (int k = 0; k < 2; k++) {
            Lanes a = *(const Lanes *)(front + k * LANES), b = *(const Lanes *)(back + k * LANES), zero = {0};
            Lanes size_a = (Lanes)((Bits)a & INT64_MAX), size_b = (Lanes)((Bits)b & INT64_MAX);
            Lanes sizes = size_a + size_b;
            most[k] = largest_of(most[k], largest_of(size_a, size_b));
            if (i) steep[k] = steeper(steeper(steep[k], before[k][0], size_a), before[k][1], size_b);
            before[k][0] = size_a, before[k][1] = size_b;
            if (i == half) b = zero, sizes *= 0.5;
            ((Lanes *)plus)[2 * i + k] = a + b;
            if (i < half) ((Lanes *)minus)[2 * i + k] = a - b;
            if (k) s1 += rule->all[i] * sizes; else s0 += rule->all[i] * sizes;
        }
    }
    *(Lanes *)size = s0, *(Lanes *)(size + LANES) = s1;
    memcpy(steepest, steep, sizeof steep);
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

/* What a group of cells, or their columns, are like. Of several columns a cell has the largest of each quantity, or
 * from START on, where one number stands for f, the sum. */
enum { ERROR, SIZE, BETWEEN, VARIATION, DECAY, LEFT, RIGHT, START, STOP, HIGHEST, MIDDLE, QUANTITIES };
typedef Tile Summary[QUANTITIES];

/* What the rule's sums say about columns, on the unit interval; scale and reach of each as in Layout. */
INLINE void judge_columns(const Setting *set, double eps, const Tile *sums, const double *size, const double *scale,
                          const double *reach, const double *middle, Summary of) {
    const Tile *nulls = sums + 1, *halves = nulls + 2 * NULL_PAIRS, *slopes = halves + 2, *edges = slopes + 2;
    Tile unseen, tiny;
    for (int c = 0; c < WIDE; c++) {
        double blur = smaller(C.place * set->eps * reach[c] / larger(set->tiny, scale[c]), 1.0);
        of[SIZE][c] = size[c], of[VARIATION][c] = fabs(slopes[0][c]) + fabs(slopes[1][c]);
        unseen[c] = size[c] + of[VARIATION][c] * (blur / (2.0 * eps));
        tiny[c] = scale[c] > 0.0 ? DBL_MIN / scale[c] : DBL_MIN;
        of[LEFT][c] = fabs(halves[0][c]), of[RIGHT][c] = fabs(halves[1][c]);
        of[BETWEEN][c] = 0.0;
        of[START][c] = edges[0][c], of[STOP][c] = edges[1][c], of[MIDDLE][c] = middle[c];
    }
    null_rule_error(nulls, unseen, tiny, set->rule->order_gap, eps, of[ERROR], of[DECAY], of[HIGHEST]);
}

/* Add what `width` columns from `first` on are like to the cells they belong to. */
INLINE void add_columns(const Setting *set, const Summary columns, int64_t first, int64_t width, Summary cells) {
    for (int64_t c = 0; c < width; c++) {
        int64_t i = (first + c) / set->columns, whole = set->parts == 1 || c % 2;
        double error = columns[ERROR][c], size = columns[SIZE][c];
        if (set->parts == 2 && whole) error = modulus(columns[ERROR][c - 1], error), size += columns[SIZE][c - 1];
        if (whole) cells[ERROR][i] = worse(cells[ERROR][i], error), cells[SIZE][i] = worse(cells[SIZE][i], size);
        cells[BETWEEN][i] = larger(cells[BETWEEN][i], columns[BETWEEN][c]);
        for (int q = VARIATION; q < START; q++) cells[q][i] = worse(cells[q][i], columns[q][c]);
        for (int q = START; q < QUANTITIES; q++) cells[q][i] += columns[q][c];
    }
}

/* By how much f differs at an edge from what the cell's polynomial makes of it; 0 where it is not known. */
INLINE double gap(double polynomial, double known, double allowed) {
    double found = fabs(polynomial - known) - allowed;
    return found > 0.0 && found < INFINITY ? found : 0.0;
}

/* see_pole in null_rules.py, from values y at the nodes: the steps by which its height is below 1, 0 if none is seen,
 * and where it is. */
INLINE uint8_t see_pole(const Rule *rule, double blind, const double *y, int64_t stride, double largest, float *place) {
    const double *tau = rule->nodes;
    int64_t m = rule->m, i = 0;
    while (i < m - 1 && !(fabs(y[i * stride]) >= C.near * largest)) i++;
    int at_edge = i == 0 || i == m - 1;
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

/* Sizes of one cell's values at the nodes; return the largest. Of complex ones moduli count, of several the sum. */
INLINE double sizes_of(int64_t m, const double *y, const double *slope, int64_t n, int64_t columns, int64_t parts,
                       double *sizes) {
    double largest = 0.0;
    for (int64_t i = 0; i < m; i++, y += n * columns) {
        double size = 0.0;
        for (int64_t j = 0; j < columns; j += parts) size += size_at(y, j, parts);
        sizes[i] = size * (slope ? slope[i * n] : 1.0);
        largest = larger(largest, sizes[i]);
    }
    return largest;
}

/* Estimates of cells from those on the unit interval; see scale_estimates in null_rules.py. */
INLINE void estimate_cells(const Setting *set, double eps, const Summary s, const double *scale, const double *reach,
                           int64_t here, int64_t tail, int64_t looks, Cell *cells, Tile factor) {
    Tile at_start = {0}, at_stop = {0}, width = {0}, far = {0}, noise, floor, side, error;
    int64_t refinable[WIDE];
    double inmost = set->rule->nodes[0], finest = 4.0 * set->eps / inmost, narrowest = sqrt(set->tiny);
    for (int64_t c = 0; c < here; c++) {
        const Cell *cell = cell_at(cells, c, tail);
        at_start[c] = cell->at_start, at_stop[c] = cell->at_stop, width[c] = cell->stop - cell->start;
        if (looks || !set->infinite) continue;
        Piece p = piece_of(set, cell->row);
        if ((p.down > 0.0 && cell->start == 0.0) || (p.up > 0.0 && cell->stop == 0.0)) far[c] = s[HIGHEST][c];
    }
    for (int c = 0; c < WIDE; c++) {
        double whole = s[SIZE][c] * scale[c];
        floor[c] = C.floor * eps * whole;
        noise[c] = smaller(C.place * set->eps * reach[c] * s[VARIATION][c], whole) + floor[c];
        double allowed = C.beyond * s[HIGHEST][c];
        double at_left = gap(s[START][c], at_start[c], allowed), at_right = gap(s[STOP][c], at_stop[c], allowed);
        double left = s[LEFT][c] + at_left, right = s[RIGHT][c] + at_right, hidden = at_left + at_right;
        side[c] = (right > C.rougher * left ? 1.0 : 0.0) - (left > C.rougher * right ? 1.0 : 0.0);
        side[c] *= s[DECAY][c] >= C.unresolved ? 2.0 : 1.0;
        error[c] = larger(noise[c], larger(far[c], larger(s[BETWEEN][c], s[ERROR][c] + hidden * inmost)) * scale[c]);
    }
    for (int c = 0; c < WIDE; c++) {
        int lost = !(s[SIZE][c] * scale[c] < INFINITY) | !(error[c] < INFINITY);
        int blunt = !(scale[c] > reach[c] * finest), narrow = !(width[c] > narrowest);
        refinable[c] = splittable(set, lost | (error[c] > noise[c]), blunt, narrow, width[c]);
        factor[c] = lost ? 0.0 : scale[c];
        error[c] = lost ? INFINITY : error[c];
        floor[c] = !(scale[c] > 0.0) ? set->tiny : lost ? 0.0 : floor[c];
        side[c] = lost ? 0.0 : side[c];
    }
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(cells, c, tail);
        cell->error = error[c], cell->floor = floor[c], cell->at_middle = s[MIDDLE][c];
        cell->lean = (int8_t)side[c], cell->refinable = (int8_t)refinable[c];
    }
}

/* _between in interval.py: how far f at the looks, the rows of y behind the nodes and an edge, is from the polynomial. */
INLINE void look_between(const Setting *set, double eps, const double *y, const double *slope, int64_t n,
                         int64_t columns, int64_t low, int64_t first, int64_t width, const double *values,
                         int64_t stride, const double *largest, const double *scale, const double *reach, Summary of) {
    const Rule *rule = set->rule;
    int64_t m = rule->m;
    Tile nodes[MOST_NODES], looks[LOOKS], seen[LOOKS];
    for (int64_t i = 0; i < m; i++) memcpy(nodes[i], values + i * stride, sizeof(Tile));
    load(y + (m + 1) * n * columns, slope ? slope + (m + 1) * n : slope, LOOKS, n, columns, low, first, width, seen);
    weigh(rule->all + (FUNCTIONALS + SHARES) * m, LOOKS, m, nodes, looks);
    Tile blur, most = {0};
    for (int c = 0; c < WIDE; c++)
        blur[c] = C.rounded * smaller(C.place * set->eps * reach[c] / larger(set->tiny, scale[c]), 1.0);
    if (set->parts == 1) {
        for (int k = 0; k < LOOKS; k++)
            for (int c = 0; c < WIDE; c++) most[c] = worse(most[c], fabs(looks[k][c] - seen[k][c]));
        for (int c = 0; c < WIDE; c++)
            of[BETWEEN][c] = excess(most[c], C.floor * eps * largest[c] + blur[c] * of[VARIATION][c]);
        return;
    }
    for (int64_t c = 0; c < width; c += 2) {
        double varies = larger(of[VARIATION][c], of[VARIATION][c + 1]);
        of[BETWEEN][c] = largest_gap(m, nodes, looks, seen, c, 2, C.floor * eps, blur[c] * varies);
    }
}

/* Which columns of a tile may have spikes: whose values rise steeply somewhere, and those that `alone` makes what they
 * are, by how much; what rounding explains. Most tiles have none. */
typedef struct {
    Tile steep, alone, alike, off, quiet;
    int any;
} Suspects;

INLINE void suspect(const Setting *set, int64_t columns, double eps, const Summary of, const Tile *sums,
                    const double *values, int64_t stride, int64_t first, int64_t width, const double *largest,
                    const double *steepest, const double *scale, const double *reach, const Cell *cells, Suspects *s) {
    int64_t m = set->rule->m, steep = 0, unresolved = 0, found = 0;
    for (int c = 0; c < WIDE; c++) {
        double blur = smaller(C.place * set->eps * reach[c] / larger(set->tiny, scale[c]), 1.0);
        s->quiet[c] = C.above * eps * larger(largest[c], of[SIZE][c] + of[VARIATION][c] * (blur / (2.0 * eps)));
        s->steep[c] = 0.0;
        steep += !(sums[0][c] == sums[0][c] && steepest[c] <= 0.0), unresolved += of[DECAY][c] >= C.unresolved;
    }
    if (steep) see_rising(m, values, stride, s->steep);
    if (unresolved) see_alone(set->rule->alone, set->rule->lengths, m, SPIKE_NULLS, sums + 1, s->alone, s->alike, s->off);
    if (columns == 1) {
        Tile at_start, at_stop;
        for (int64_t c = 0; c < WIDE; c++) {
            const Cell *cell = cell_at(cells, first + (c < width ? c : 0), 0);
            at_start[c] = cell->at_start, at_stop[c] = cell->at_stop;
        }
        see_rising_at_edge(at_start, values, stride, s->steep);
        see_rising_at_edge(at_stop, values + (m - 1) * stride, -stride, s->steep);
    }
    for (int c = 0; c < WIDE; c++)
        found += s->steep[c] > 0.0 || of[BETWEEN][c] > 0.0 || (unresolved && s->alike[c] > C.alike && s->off[c] > s->quiet[c]);
    s->any = found > 0;
}

/* Note the spikes of columns: spikes.py in estimates. */
INLINE void note_spikes(const Setting *set, int64_t columns, const Summary of, const double *values, int64_t stride,
                        int64_t first, int64_t width, const double *largest, const Cell *cells, const Suspects *s,
                        const Spikes *to) {
    for (int64_t c = 0; c < width; c++) {
        const Cell *cell = cell_at(cells, (first + c) / columns, tail_of(set));
        int unresolved = of[DECAY][c] >= C.unresolved;
        if (!(largest[c] < INFINITY)) continue;
        if (!unresolved && of[BETWEEN][c] > larger(C.beyond * of[HIGHEST][c], s->quiet[c]))
            for (int k = 0; k < LOOKS; k++) note_look(set->rule, cell, k, to);
        int64_t at = unresolved && s->alike[c] > C.alike && s->off[c] > s->quiet[c] ? (int64_t)s->alone[c] : -1;
        note_column(set, values, stride, c, s->steep[c] > 0.0, at, cell, 0.0, to);
    }
}

/* Apply the rule to a group of cells, `here` of n, from `low` on; see `measure`. */
INLINE void measure_group(const Setting *set, int64_t columns, double eps, double blind, Cell *cells, int64_t low,
                          int64_t here, int64_t n, const double *y, const double *slope, const Layout *layout,
                          int64_t looks, const Spikes *spikes) {
    const Rule *rule = set->rule;
    int64_t m = rule->m, tail = columns > 1 ? columns : 0;
    Tile sums[FUNCTIONALS], size, few[MOST_NODES], scale = {0}, reach = {0}, scales, reaches, factor, largest, steepest;
    Summary summary, part;
    Suspects suspects;
    const double *values = 0;
    int64_t stride = n * columns;
    if (columns > 1) {
        memset(summary, 0, sizeof summary);
        memset(scales, 0, sizeof scales), memset(reaches, 0, sizeof reaches);
    }
    for (int64_t c = 0; c < here; c++)
        scale[c] = layout->scale[low + c], reach[c] = fabs(layout->reach[low + c]);
    for (int64_t first = 0; first < here * columns; first += WIDE) {
        int64_t width = here * columns - first < WIDE ? here * columns - first : WIDE;
        values = y + low * columns + first, stride = n * columns;
        if (slope || width < WIDE) {
            load(y, slope, m, n, columns, low, first, width, few);
            values = few[0], stride = WIDE;
        }
        const double *middle = values + m / 2 * stride;
        fold(rule, values, stride, sums, size, largest, steepest);
        if (columns == 1) {
            judge_columns(set, eps, sums, size, scale, reach, middle, summary);
            if (looks)
                look_between(set, eps, y, slope, n, 1, low, first, width, values, stride, largest, scale, reach, summary);
            suspect(set, 1, eps, summary, sums, values, stride, first, width, largest, steepest, scale, reach,
                    cell_at(cells, low, 0), &suspects);
            if (suspects.any)
                note_spikes(set, 1, summary, values, stride, first, width, largest, cell_at(cells, low, 0), &suspects, spikes);
            if (looks)
                note_alone(set, 1, y - n, slope ? slope - n : slope, n, low, first, width, reach, scale, suspects.quiet,
                           cell_at(cells, low, 0), spikes);
            continue;
        }
        for (int64_t c = 0; c < width; c++) {
            int64_t at = (first + c) / columns;
            scales[c] = scale[at], reaches[c] = reach[at];
            cell_at(cells, low + at, tail)->columns[(first + c) % columns] = sums[0][c];
        }
        judge_columns(set, eps, sums, size, scales, reaches, middle, part);
        if (looks)
            look_between(set, eps, y, slope, n, columns, low, first, width, values, stride, largest, scales, reaches, part);
        suspect(set, columns, eps, part, sums, values, stride, first, width, largest, steepest, scales, reaches,
                cell_at(cells, low, tail), &suspects);
        if (suspects.any)
            note_spikes(set, columns, part, values, stride, first, width, largest, cell_at(cells, low, tail), &suspects, spikes);
        if (looks)
            note_alone(set, columns, y - n * columns, slope ? slope - n : slope, n, low, first, width, reaches,
                       scales, suspects.quiet, cell_at(cells, low, tail), spikes);
        add_columns(set, part, first, width, summary);
    }
    Cell *group = cell_at(cells, low, tail);
    estimate_cells(set, eps, summary, scale, reach, here, tail, looks, group, factor);
    for (int64_t c = 0; c < here; c++) {
        Cell *cell = cell_at(group, c, tail);
        if (columns > 1) scale_columns(cell, factor[c], columns, set->parts);
        else cell->value = factor[c] == 0.0 ? 0.0 : sums[0][c] * factor[c];
        cell->height = 0;
        if (!(summary[DECAY][c] >= C.unresolved && cell->error < INFINITY)) continue;
        if (columns == 1) {
            cell->height = see_pole(rule, blind, values + c, stride, largest[c], &cell->pole);
        } else {
            double sizes[MOST_NODES];
            const double *at = y + (low + c) * columns;
            double most = sizes_of(m, at, slope ? slope + low + c : slope, n, columns, set->parts, sizes);
            cell->height = see_pole(rule, blind, sizes, 1, most, &cell->pole);
        }
    }
}

/* Apply the rule to f's values y (m, n, columns) on n cells, times the slope (m, n), if there is one. With edges there
 * are two rows more: f at the edges of first cells is entered, too, where it is not NaN. With looks their rows come
 * last. Layout as in `place`. Spikes are counted, and written where there is room for MOST_SPIKES of each column. */
EXPORT void measure(const Setting *set, int64_t edges, int64_t looks, double eps, Cell *cells, int64_t n, const double *y,
                    const double *slope, double *layout, int64_t stride, int64_t *spiky, double *room) {
    const Layout rows = rows_of(layout, stride);
    const Spikes spikes = {spiky, room};
    int64_t columns = set->columns, tail = tail_of(set), group = group_of(columns), last = set->rule->m + 1;
    double blind = cbrt(eps * eps); /* rounding hides how high a pole is below its root, in distances between nodes */
    const double *inner = y + (edges ? n * columns : 0);
    const double *along = slope && edges ? slope + n : slope;
    PARALLEL(sharing(n * columns, set->threads))
    for (int64_t low = 0; low < n; low += group) {
        int64_t here = n - low < group ? n - low : group;
        for (int64_t c = low; edges && c < low + here; c++) {
            Cell *cell = cell_at(cells, c, tail);
            double before = sum_of(y + c * columns, columns) * (slope ? slope[c] : 1.0);
            double after = sum_of(y + (last * n + c) * columns, columns) * (slope ? slope[last * n + c] : 1.0);
            cell->at_start = isnan(cell->at_start) ? NAN : before;
            cell->at_stop = isnan(cell->at_stop) ? NAN : after;
        }
        if (columns == 1) measure_group(set, 1, eps, blind, cells, low, here, n, inner, along, &rows, looks, &spikes);
        else measure_group(set, columns, eps, blind, cells, low, here, n, inner, along, &rows, looks, &spikes);
    }
}
