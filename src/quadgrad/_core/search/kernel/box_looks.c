/* Which boxes are blind to what f is elsewhere: the inside of neighbours.py, which explains it. */

#include "boxes.h"

enum { KEYS = 1 << 14, KEY = 49 }; /* of masses by their exponent and three digits of the rest: never negative */

/* Cells in order by integral, `first` of each; what is asked of each of the integrals, and room for each cell. Those
 * that are `ready` and have a blind cell are not ready any more. */
typedef struct {
    double higher, larger, above, matters, each, least;
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

/* Mark the cells of an integral that are to blame, if what all have missed matters; return whether any is. */
INLINE int mark_blind(const BoxColumns *cells, const BoxLook *look, int64_t i, double whole) {
    int blind = 0;
    if (!(whole > look->matters * look->target[i])) return 0;
    for (int64_t at = look->first[i]; at < look->first[i + 1]; at++) {
        int64_t k = look->order[at];
        int marked = look->missed[k] > look->each * whole && cells->whole[SPLITTABLE * cells->stride + k] > 0;
        look->marked[k] |= (uint8_t)marked, blind |= marked;
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

INLINE int64_t key_of(double mass) {
    int64_t bits;
    memcpy(&bits, &mass, sizeof bits);
    return bits >> KEY;
}

enum { COUNT, SORT, CHOOSE }; /* passes over all faces: how many matter, how many of each mass, and which */

/* Choose faces of an integral: all that matter, or if these are too many, evenly from all by mass, without sorting them:
 * of each mass it is counted how many come before. Return how many, which they are, and for how many each stands; there
 * is room for KEYS counts. */
INLINE int64_t choose_faces(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, int64_t i,
                            int64_t *cell, int64_t *face, int64_t *stride, int64_t *many) {
    int64_t all = 0, chosen = 0;
    for (int pass = COUNT; pass <= CHOOSE; pass++) {
        if (pass == SORT) *stride = all > look->looks ? (all + look->looks - 1) / look->looks : 1;
        if (pass == SORT && *stride == 1) continue;
        if (pass == SORT) memset(many, 0, KEYS * sizeof *many);
        for (int64_t side = 0; side < 2 * set->rule->d; side++)
            for (int64_t at = look->first[i]; at < look->first[i + 1]; at++) {
                double mass = mass_at(set, cells, look, side, look->order[at]);
                if (!(mass > look->least * look->target[i])) continue;
                if (pass == COUNT) all++;
                else if (pass == SORT) many[key_of(mass)]++;
                else if (*stride == 1 || many[key_of(mass)]++ % *stride == 0)
                    cell[chosen] = look->order[at], face[chosen++] = side;
            }
        if (pass == SORT)
            for (int64_t key = KEYS, before = 0; key-- > 0;) {
                int64_t here = many[key];
                many[key] = before, before += here;
            }
    }
    return chosen;
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

/* Place a point just beyond a face of a cell; its coordinates are `step` numbers apart. */
INLINE void place_beyond(const BoxColumns *cells, int64_t d, int64_t face, int64_t k, double *point, int64_t step) {
    for (int64_t axis = 0; axis < d; axis++) {
        double width = width_at(cells, axis, k), aside = axis != face / 2 ? 0.0 : face % 2 ? 0.5 : -0.5;
        double low = (double)cells->whole[(LEVEL + d + axis) * cells->stride + k] * width;
        point[axis * step] = low + 0.5 * width + aside * (1.0 + 0x1p-12) * width;
    }
}

/* Mark cells that are blind to what f is at the faces of those beside them; return how many integrals are ready still.
 * Of `numbers` there is room for: the cells and sides of `looks` faces, the order of points and the cells they are in,
 * KEYS counts, and another order. Of points for (d, looks). */
EXPORT int64_t mark_blind_boxes(const BoxSetting *set, const BoxColumns *cells, const BoxLook *look, int64_t *numbers,
                                double *point, uint8_t *ready) {
    int64_t d = set->rule->d, looks = look->looks, left = 0;
    int64_t *cell = numbers, *face = cell + looks, *at = face + looks, *many = at + 2 * looks, *other = many + KEYS;
    Locating to = locating(set, cells, point, looks, at + looks);
    for (int64_t i = 0; i < look->running; i++) {
        if (!ready[i]) continue;
        int64_t stride, count = choose_faces(set, cells, look, i, cell, face, &stride, many), first = look->first[i];
        double whole = 0.0;
        for (int64_t k = 0; k < count; k++) {
            at[k] = k;
            place_beyond(cells, d, face[k], cell[k], point + k, looks);
        }
        locate_all(&to, look->order + first, look->first[i + 1] - first, at, other, count);
        for (int64_t k = first; k < look->first[i + 1]; k++) look->missed[look->order[k]] = 0.0;
        for (int64_t k = 0; k < count; k++) {
            int64_t large = to.answer[k];
            double size = cells->real[(FACES + face[k]) * cells->stride + cell[k]];
            if (!(size > look->higher * cells->real[large])) continue;
            if (look->volume[large] < look->larger * look->volume[cell[k]]) continue;
            double missed = mass_at(set, cells, look, face[k], cell[k]) * (double)stride;
            look->missed[large] += missed, whole += missed;
        }
        if (mark_blind(cells, look, i, whole)) ready[i] = 0;
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
        mark_blind(cells, look, i, whole);
    }
}
