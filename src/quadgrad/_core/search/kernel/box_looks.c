/* Which boxes are blind to what f is elsewhere: the inside of neighbours.py, which explains it. */

#include "boxes.h"

/* Cells in order by integral, `first` of each; what is asked of each of the integrals, and room for each cell. Those
 * that are `ready` and have a blind cell are not ready any more. */
typedef struct {
    double higher, above, matters, each, least;
    int64_t n, running, looks;
    const double *target;
    const uint8_t *ready;
    int64_t *order, *first;
    double *missed, *volume;
    uint8_t *marked;
} BoxLook;

INLINE double width_at(const BoxColumns *cells, int64_t axis, int64_t k) {
    return power_of_2(-cells->whole[(LEVEL + axis) * cells->stride + k]);
}

INLINE Locating locating(const BoxSetting *set, const BoxColumns *cells, const double *point, int64_t k,
                         int64_t *answer) {
    const int64_t *level = cells->whole + LEVEL * cells->stride;
    return (Locating){set->rule->d, cells->stride, k, level, level + set->rule->d * cells->stride, point, answer};
}

/* halve_widest in neighbours.py */
INLINE void halve_widest(const BoxSetting *set, const BoxColumns *cells, int64_t k) {
    int64_t *axis = cells->whole + AXIS * cells->stride + k, widest = 0;
    const int64_t *level = cells->whole + LEVEL * cells->stride + k;
    for (int64_t along = 1; along < set->rule->d; along++)
        if (level[along * cells->stride] < level[widest * cells->stride]) widest = along;
    if (level[*axis * cells->stride] > level[widest * cells->stride]) *axis = widest;
}

/* Mark the cells of an integral that are to blame, if what all have missed matters; return whether any is. */
INLINE int mark_blind(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, int64_t i, double whole) {
    int blind = 0;
    if (!(whole > look->matters * look->target[i])) return 0;
    for (int64_t at = look->first[i]; at < look->first[i + 1]; at++) {
        int64_t k = look->order[at];
        int marked = look->missed[k] > look->each * whole && cells->whole[SPLITTABLE * cells->stride + k] > 0;
        look->marked[k] |= (uint8_t)marked, blind |= marked;
        if (marked) halve_widest(set, cells, k);
    }
    return blind;
}

/* The mass at a face of a cell, 0 if nothing is across. */
INLINE double mass_at(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, int64_t face, int64_t k) {
    int64_t axis = face / 2, stride = cells->stride, level = cells->whole[(LEVEL + axis) * stride + k];
    int64_t place = cells->whole[(LEVEL + set->rule->d + axis) * stride + k];
    int64_t all = (int64_t)1 << (level < 62 ? level : 62);
    if (face % 2 ? place + 1 >= all : place == 0) return 0.0;
    return cells->real[(FACES + face) * stride + k] * look->volume[k];
}

/* Put the cells of integrals that are ready in order by integral. */
EXPORT void order_boxes(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look) {
    const int64_t *owner = cells->whole + OWNER * cells->stride;
    int64_t *first = look->first + 1;
    memset(look->first, 0, (size_t)(look->running + 1) * sizeof(int64_t));
    for (int64_t k = 0; k < look->n; k++) first[owner[k]] += look->ready[owner[k]] != 0;
    for (int64_t i = 0, before = 0; i < look->running; i++) {
        int64_t here = first[i];
        first[i] = before, before += here;
    }
    for (int64_t k = 0; k < look->n; k++) {
        if (!look->ready[owner[k]]) continue;
        int64_t depth = 0;
        for (int64_t axis = 0; axis < set->rule->d; axis++) depth += cells->whole[(LEVEL + axis) * cells->stride + k];
        look->volume[k] = power_of_2(-depth);
        look->order[first[owner[k]]++] = k;
    }
}

/* Mark cells that are blind to what f is at the faces of those beside them. There is room for 5 numbers of each of the
 * `looks` faces, and for points (d, looks). Return how many integrals are ready still. */
EXPORT int64_t mark_blind_boxes(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, int64_t *numbers,
                                double *point, uint8_t *ready) {
    int64_t d = set->rule->d, room = look->looks, left = 0;
    int64_t *cell = numbers, *face = cell + room, *at = face + room, *other = at + room;
    Locating to = locating(set, cells, point, room, other + room);
    for (int64_t i = 0; i < look->running; i++) {
        if (!ready[i]) continue;
        int64_t *order = look->order + look->first[i], n = look->first[i + 1] - look->first[i], count = 0;
        double whole = 0.0;
        for (int64_t k = 0; k < n; k++) {
            look->missed[order[k]] = 0.0;
            for (int64_t side = 0; side < 2 * d; side++)
                if (mass_at(set, cells, look, side, order[k]) > look->least * look->target[i])
                    cell[count] = order[k], face[count++] = side;
        }
        for (int64_t k = 0; k < count; k++) {
            at[k] = k;
            for (int64_t axis = 0; axis < d; axis++) {
                double width = width_at(cells, axis, cell[k]);
                double step = axis != face[k] / 2 ? 0.0 : face[k] % 2 ? 0.5 : -0.5;
                double low = (double)cells->whole[(LEVEL + d + axis) * cells->stride + cell[k]] * width;
                point[axis * room + k] = low + 0.5 * width + step * (1.0 + 0x1p-12) * width;
            }
        }
        locate_all(&to, order, n, at, other, count);
        for (int64_t k = 0; k < count; k++) {
            int64_t small = cell[k], large = to.answer[k], axis = face[k] / 2;
            if (!(cells->real[(FACES + face[k]) * cells->stride + small] > look->higher * cells->real[large])) continue;
            int wider = 0;
            for (int64_t along = 0; along < d; along++) {
                const int64_t *level = cells->whole + (LEVEL + along) * cells->stride;
                wider |= along != axis && level[large] < level[small];
            }
            if (!wider) continue;
            double missed = mass_at(set, cells, look, face[k], small);
            look->missed[large] += missed, whole += missed;
        }
        if (mark_blind(set, cells, look, i, whole)) ready[i] = 0;
        left += ready[i] != 0;
    }
    return left;
}

/* Mark cells that are blind to what f is at points (d, k) anywhere, `height`, of which `many` are each integral's, one
 * after another, and each stands for a `share` of its cube. There is room for the order of the points and answers. */
EXPORT void mark_unseen_boxes(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, const double *point,
                              int64_t k, const double *height, const int64_t *many, const double *share, int64_t *at) {
    Locating to = locating(set, cells, point, k, at + k);
    int64_t next = 0;
    for (int64_t i = 0; i < look->running; next += many[i++]) {
        if (!many[i]) continue;
        int64_t first = look->first[i], count = look->first[i + 1] - first;
        double whole = 0.0;
        for (int64_t p = next; p < next + many[i]; p++) at[p] = p;
        locate_all(&to, look->order + first, count, at + next, at + 2 * k, many[i]);
        for (int64_t c = first; c < first + count; c++) look->missed[look->order[c]] = 0.0;
        for (int64_t p = next; p < next + many[i]; p++) {
            double seen = cells->real[to.answer[p]], missed = (height[p] - seen) * share[i];
            if (!(height[p] > look->above * seen)) continue;
            look->missed[to.answer[p]] += missed, whole += missed;
        }
        mark_blind(set, cells, look, i, whole);
    }
}
