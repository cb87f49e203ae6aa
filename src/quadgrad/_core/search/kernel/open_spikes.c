/* Places that single nodes saw and no narrow cell is around: the other body of find_open in search/looks/open_spikes.py. */

#include "kernel.h"

/* A plan's cells, sorted by row; no kinds where all have linear nodes. */
typedef struct {
    const int64_t *row;
    const double *start, *stop;
    const int8_t *kind;
    int64_t n;
} Plan;

/* What is asked: spikes as written in spikes.h, the plan, how integrals have ended, the numbers of open_spikes.py; room; and
 * what is found: cells, and for each the place and the distance. */
typedef struct {
    const double *spikes;
    int64_t n;
    Plan plan;
    const int64_t *status;
    int64_t rows, count, many, most;
    double resolved, same;
    int64_t *heads, *order, *spare, *windows;
    double *key;
    int64_t *cell;
    double *place, *apart;
    int64_t found;
} OpenSpikes;

enum { ROW, PLACE, APART, SPIKE, AROUND = 8, FEW = 8 };

INLINE double from_lower(double place) { return place < 0.0 ? 1.0 + place : place; }

/* Sort places in `index` by ascending keys; equal ones stay in order. */
static void sort(int64_t *index, int64_t n, const double *key, int64_t *spare) {
    for (int64_t low = 0; low < n; low += FEW) {
        int64_t high = low + FEW < n ? low + FEW : n;
        for (int64_t i = low + 1; i < high; i++) {
            int64_t at = index[i], to = i;
            for (; to > low && key[index[to - 1]] > key[at]; to--) index[to] = index[to - 1];
            index[to] = at;
        }
    }
    for (int64_t size = FEW; size < n; size *= 2)
        for (int64_t low = 0; low + size < n; low += 2 * size) {
            int64_t i = 0, j = low + size, stop = j + size < n ? j + size : n, to = low;
            memcpy(spare, index + low, (size_t)size * sizeof *spare);
            while (i < size && j < stop) index[to++] = key[index[j]] < key[spare[i]] ? index[j++] : spare[i++];
            memcpy(index + to, spare + i, (size_t)(size - i) * sizeof *spare);
        }
}

/* How wide a cell is, by its scale at a place or as near to that as it comes. */
INLINE double scale_at(const Plan *plan, int64_t c, double place) {
    double start = plan->start[c], stop = plan->stop[c];
    if (!plan->kind || plan->kind[c] == LINEAR) return stop - start;
    int lower = start >= 0.0;
    double outer = lower ? stop : start, inner = lower ? start : stop;
    double rate = log(inner == 0.0 ? exp2(-C.depth) : inner / outer);
    double fraction = lower == (place < 0.0) ? place + (lower ? 1.0 : -1.0) : place;
    fraction = smaller(larger(fraction, start), start + (stop - start));
    return larger(fabs(fraction), fabs(outer) * exp(rate)) * fabs(rate);
}

/* The cells from the last that begins no later than `low` to the last that begins no later than `high`, of a row's, in
 * ascending order, at most AROUND; return how many there are. */
INLINE int64_t look_around(const Plan *plan, int64_t first, int64_t stop, double low, double high, int64_t *around) {
    double begins[AROUND], before = -1.0;
    int64_t n = 0, last = -1;
    for (int64_t c = first; c < stop; c++) {
        double begin = from_lower(plan->start[c]);
        if (begin <= low && begin >= before) before = begin, last = c;
        if (!(begin > low && begin <= high)) continue;
        if (n == AROUND - 1) return AROUND;
        int64_t to = n++;
        for (; to > 0 && begins[to - 1] > begin; to--) begins[to] = begins[to - 1], around[to] = around[to - 1];
        begins[to] = begin, around[to] = c;
    }
    if (last < 0) return n;
    memmove(around + 1, around, (size_t)n * sizeof *around);
    around[0] = last;
    return n + 1;
}

/* The same of cells that are sorted: their places stand in `order`. */
INLINE int64_t look_up(const Plan *plan, const int64_t *order, int64_t n, double low, double high, int64_t *around) {
    int64_t at = 0, beyond = n, found = 0;
    while (at < beyond) {
        int64_t middle = (at + beyond) / 2;
        if (from_lower(plan->start[order[middle]]) <= low) at = middle + 1;
        else beyond = middle;
    }
    for (at = at > 0 ? at - 1 : 0; at < n && found < AROUND; at++) {
        double begin = from_lower(plan->start[order[at]]);
        if (begin > low && begin > high) break;
        around[found++] = order[at];
    }
    return found;
}

/* Put the spikes of integrals that are done in order, by rows and places; return how many there are. */
static int64_t arrange(const OpenSpikes *ask) {
    int64_t *heads = ask->heads, n = 0;
    memset(heads, 0, (size_t)(ask->rows + 1) * sizeof *heads);
    for (int64_t i = 0; i < ask->n; i++) {
        const double *spike = ask->spikes + SPIKE * i;
        int64_t row = (int64_t)spike[ROW];
        ask->key[i] = from_lower(spike[PLACE]);
        if (ask->status[row / ask->count] == C.converged) heads[row + 1]++, n++;
    }
    for (int64_t row = 0; row < ask->rows; row++) heads[row + 1] += heads[row];
    for (int64_t i = 0; i < ask->n; i++) {
        int64_t row = (int64_t)ask->spikes[SPIKE * i + ROW];
        if (ask->status[row / ask->count] == C.converged) ask->order[heads[row]++] = i;
    }
    return n; /* now each row's head is where the next one begins */
}

/* Enter which of a row's spikes, in `mine`, are open; return how many. */
static int64_t find_in_row(const OpenSpikes *ask, int64_t *mine, int64_t n, int64_t first, int64_t stop, int64_t *open) {
    const Plan *plan = &ask->plan;
    int64_t found = 0, *sorted = 0, cells = stop - first;
    sort(mine, n, ask->key, ask->spare);
    if (n > FEW) { /* places are looked up sooner than cells are sorted where they are few */
        sorted = ask->spare + cells;
        double *begin = (double *)(sorted + cells);
        for (int64_t c = 0; c < cells; c++) sorted[c] = c, begin[c] = from_lower(plan->start[first + c]);
        sort(sorted, cells, begin, ask->spare);
        for (int64_t c = 0; c < cells; c++) sorted[c] += first;
    }
    for (int64_t i = 0; i < n; i++) {
        const double *spike = ask->spikes + SPIKE * mine[i];
        double at = ask->key[mine[i]], apart = spike[APART], width = INFINITY;
        if (i) { /* of cells and their children, or their halves, several have seen the same */
            double before = ask->spikes[SPIKE * mine[i - 1] + APART];
            if (at - ask->key[mine[i - 1]] < ask->same * smaller(apart, before)) continue;
        }
        double low = smaller(larger(at - apart, 0.0), 1.0), high = smaller(larger(at + apart, 0.0), 1.0);
        int64_t around[AROUND], k = sorted ? look_up(plan, sorted, cells, low, high, around)
                                           : look_around(plan, first, stop, low, high, around);
        if (k > ask->many) continue;
        for (int64_t j = 0; j < k; j++) width = smaller(width, scale_at(plan, around[j], spike[PLACE]));
        if (!(width < INFINITY && width >= ask->resolved * apart)) continue;
        int64_t *window = ask->windows + ask->many * mine[i];
        for (int64_t j = 0; j < ask->many; j++) window[j] = j < k ? around[j] : -1;
        open[found++] = mine[i];
    }
    return found;
}

/* Enter the cells around places that no narrow cell is around, the widest apart first; of each integral no more than the
 * `most`. There is room for `many` cells of each spike. */
EXPORT void find_open(OpenSpikes *ask) {
    int64_t n = arrange(ask), next = 0, open = 0, *order = ask->order, *heads = ask->heads;
    const Plan *plan = &ask->plan;
    for (int64_t i = 0, stop; i < n; i = stop) {
        int64_t row = (int64_t)ask->spikes[SPIKE * order[i] + ROW], high = plan->n, step = 1;
        stop = heads[row];
        /* From the last row's cells on in growing steps, then by bisection. */
        while (next + step < high && plan->row[next + step] < row) next += step, step *= 2;
        if (next + step < high) high = next + step;
        while (next < high) {
            int64_t middle = (next + high) / 2;
            if (plan->row[middle] < row) next = middle + 1;
            else high = middle;
        }
        int64_t first = next;
        while (next < plan->n && plan->row[next] == row) next++;
        open += find_in_row(ask, order + i, stop - i, first, next, order + open);
    }
    for (int64_t i = 0; i < open; i++) ask->key[order[i]] = -ask->spikes[SPIKE * order[i] + APART];
    sort(order, open, ask->key, ask->spare);
    memset(heads, 0, (size_t)(ask->rows / ask->count) * sizeof *heads);
    ask->found = 0;
    for (int64_t i = 0; i < open; i++) {
        const double *spike = ask->spikes + SPIKE * order[i];
        int64_t row = (int64_t)spike[ROW];
        if (heads[row / ask->count]++ >= ask->most) continue;
        const int64_t *window = ask->windows + ask->many * order[i];
        for (int64_t j = 0; j < ask->many && window[j] >= 0; j++, ask->found++)
            ask->cell[ask->found] = window[j], ask->place[ask->found] = spike[PLACE], ask->apart[ask->found] = spike[APART];
    }
}
