/* Halves of cells that a kept plan no longer needs, merged: the other body of merge_worthwhile in verbs/merging.py. */

#include "kernel.h"

/* A plan's cells, sorted by row, and `kind` where they are not all spread evenly, else NULL; of each of `batch` integrals
 * of `count` pieces the error that one of its cells may have for it to be merged, below 0 where none shall be. What is left, in as
 * much memory; how many cells each integral has then: at most the part `worth` of what it had, or as many. */
typedef struct {
    const int64_t *row;
    const double *start, *stop, *error;
    const int8_t *kind;
    const double *allowed;
    int64_t n, count, batch;
    double merged, worth;
    int64_t *to_row;
    double *to_start, *to_stop, *to_error;
    int8_t *to_kind;
    int64_t *fewer, *order;
} Merger;

/* Put the cells from `low` to before `high`, of one piece, in ascending order of their place: those that are measured
 * from its lower end first. Mostly they are nearly in order. */
static void sort_piece(const Merger *m, int64_t low, int64_t high) {
    int64_t *order = m->order, gap = 1;
    while (gap < (high - low) / 9) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (int64_t i = low + gap; i < high; i++) {
            int64_t cell = order[i], j = i;
            double at = m->start[cell];
            for (; j >= low + gap; j -= gap) {
                double other = m->start[order[j - gap]];
                if ((other < 0.0) == (at < 0.0) ? other <= at : at < 0.0) break;
                order[j] = order[j - gap];
            }
            order[j] = cell;
        }
}

static void copy_cell(const Merger *m, int64_t from, int64_t to) {
    m->to_row[to] = m->row[from];
    m->to_start[to] = m->start[from], m->to_stop[to] = m->stop[from], m->to_error[to] = m->error[from];
    if (m->kind) m->to_kind[to] = m->kind[from];
}

/* Whether two cells that were written one behind the other are halves of one, and fine enough to be merged. */
static int are_halves(const Merger *m, int64_t left, double limit) {
    int64_t right = left + 1;
    double start = m->to_start[left], middle = m->to_stop[left], other = m->to_start[right], width = middle - start;
    if (m->to_row[left] != m->to_row[right] || width != m->to_stop[right] - other) return 0;
    if (!(m->to_error[left] <= limit && m->to_error[right] <= limit)) return 0;
    if (m->kind && (m->to_kind[left] != LINEAR || m->to_kind[right] != LINEAR)) return 0;
    /* A left half begins at an even multiple of its width, from either end of its piece. */
    return (start == 0.0 && middle == 0.5 && other == -0.5) || (middle == other && fmod(start / width, 2.0) == 0.0);
}

/* Write one integral's cells behind `top` others, merged again and again from the tips of chains; return how many there are. */
static int64_t merge_one(const Merger *m, int64_t low, int64_t high, double limit, int64_t top) {
    int64_t first = top;
    for (int64_t i = low; i < high; i++) {
        copy_cell(m, m->order[i], top++);
        for (; top > first + 1 && are_halves(m, top - 2, limit); top--) {
            m->to_stop[top - 2] = m->to_start[top - 1] == -0.5 && m->to_start[top - 2] == 0.0 ? 1.0 : m->to_stop[top - 1];
            m->to_error[top - 2] += m->to_error[top - 1];
        }
    }
    return top - first;
}

/* Merge, and return how many cells are left. */
EXPORT int64_t merge_cells(const Merger *m) {
    int64_t top = 0, low = 0;
    for (int64_t owner = 0; owner < m->batch; owner++) {
        int64_t high = low, piece = low;
        for (; high < m->n && m->row[high] < (owner + 1) * m->count; high++) m->order[high] = high;
        int64_t size = high - low, fewer = size;
        if (size && m->allowed[owner] >= 0.0) {
            for (int64_t i = low; i < high; i++)
                if (i + 1 == high || m->row[i + 1] != m->row[i]) sort_piece(m, piece, i + 1), piece = i + 1;
            fewer = merge_one(m, low, high, m->merged * m->allowed[owner] / size, top);
        }
        if (!(fewer < size && fewer <= m->worth * size)) {
            for (int64_t i = low; i < high; i++) copy_cell(m, i, top + i - low);
            fewer = size;
        }
        m->fewer[owner] = fewer;
        top += fewer;
        low = high;
    }
    return top;
}
