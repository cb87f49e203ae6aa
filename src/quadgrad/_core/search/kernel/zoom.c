/* Closing in on the greatest bend of f: one step of the other body of zoom in search/piles/zoom.py. */

#include "kernel.h"

enum { DIVISIONS = 8, SURE = 3 };

/* A stretch that is closed in on, which was once `whole` wide; the bends of the last rounds; its number among those
 * asked for; the integral. Behind it stand, of each column, f's size and f at low, middle and high. */
typedef struct {
    double low, high, whole, bends[SURE + 1];
    int64_t number, owner;
    double columns[];
} Stretch;

/* What is asked: the numbers of zoom.py, the eps of f and of x; f at the places, (places, n, columns), in the first
 * round at both ends and all divisions, then at those that are new, and the places and integrals that are asked for
 * next; of all stretches what was found, see `zoom`. */
typedef struct {
    double eps, ulp, narrow, bounded, falls, lasts;
    int64_t n, columns, round;
    Stretch *stretches;
    double *place, *doubt;
    int8_t *found;
    int64_t *spent;
    const double *y;
    double *x;
    int64_t *owner;
} Zoom;

/* A product by itself: it must not become part of a fused sum, lest places differ from those of the tensor operations. */
INLINE double product(double a, double b) {
    volatile double exactly = a * b;
    return exactly;
}

INLINE Stretch *stretch_at(const Zoom *z, int64_t i) {
    return (Stretch *)((double *)z->stretches + i * ((int64_t)(sizeof(Stretch) / sizeof(double)) + 4 * z->columns));
}

INLINE double place_of(const Stretch *s, int64_t division) {
    return s->low + product(s->high - s->low, (double)division / DIVISIONS);
}

/* f at a division of the i-th stretch, some of which are known from the round before. */
INLINE double value_at(const Zoom *z, const Stretch *s, int64_t i, int64_t division, int64_t column) {
    int64_t known = z->round && division % 4 == 0;
    if (known) return s->columns[(1 + division / 4) * z->columns + column];
    int64_t row = z->round ? division - 1 - division / 5 : division;
    return z->y[(row * z->n + i) * z->columns + column];
}

INLINE double bend_at(const Zoom *z, const Stretch *s, int64_t i, int64_t division, int64_t column) {
    double before = value_at(z, s, i, division - 1, column), after = value_at(z, s, i, division + 1, column);
    return fabs(after - 2.0 * value_at(z, s, i, division, column) + before);
}

/* The largest bend beside f's size, and at which division. */
INLINE double find_bend(const Zoom *z, const Stretch *s, int64_t i, int64_t *at) {
    double most = -1.0;
    for (int64_t division = 1; division < DIVISIONS; division++) {
        double bend = 0.0;
        int wild = 0; /* the pole itself rather than its neighbours */
        for (int64_t j = 0; j < z->columns; j++) {
            double size = s->columns[j], here = bend_at(z, s, i, division, j) / (size > 0.0 ? size : 1.0);
            bend = here <= bend ? bend : here < DBL_MAX ? here : DBL_MAX;
            wild |= !(fabs(value_at(z, s, i, division, j)) < INFINITY);
        }
        if (wild) bend = INFINITY;
        if (bend > most) most = bend, *at = division;
    }
    return most;
}

/* Where a line through values at two divisions is at a place, and its slope. */
INLINE double line(const Zoom *z, const Stretch *s, int64_t i, int64_t column, int64_t first, int64_t last,
                   double place, double *slope) {
    double x0 = place_of(s, first), y0 = value_at(z, s, i, first, column);
    *slope = (value_at(z, s, i, last, column) - y0) / (place_of(s, last) - x0);
    return y0 - product(*slope, x0 - place);
}

/* _corner in zoom.py */
INLINE double corner(const Zoom *z, const Stretch *s, int64_t i, int64_t at, double otherwise) {
    at = at < 2 ? 2 : at > DIVISIONS - 2 ? DIVISIONS - 2 : at;
    int64_t column = 0;
    for (int64_t j = 1; j < z->columns; j++) {
        double here = bend_at(z, s, i, at, j), most = bend_at(z, s, i, at, column);
        if (most == most && (here > most || here != here)) column = j;
    }
    double rise, fall, left = line(z, s, i, column, 0, at - 1, otherwise, &rise);
    double right = line(z, s, i, column, at + 1, DIVISIONS, otherwise, &fall), away = (left - right) / (fall - rise);
    return fabs(away) <= place_of(s, 1) - s->low ? otherwise + away : otherwise;
}

/* Open the stretches, from `low` to `high` each, of which f is known at both ends and all divisions. */
EXPORT void begin_zoom(const Zoom *z, const double *low, const double *high, const int64_t *owner) {
    for (int64_t i = 0; i < z->n; i++) {
        Stretch *s = stretch_at(z, i);
        s->low = low[i], s->high = high[i], s->whole = high[i] - low[i], s->number = i, s->owner = owner[i];
        z->place[i] = low[i], z->doubt[i] = 0.0, z->found[i] = 0, z->spent[i] = 0;
    }
}

INLINE void size_up(const Zoom *z, Stretch *s, int64_t i) {
    for (int64_t j = 0; j < z->columns; j++) {
        double size = 0.0;
        for (int64_t division = 0; division <= DIVISIONS; division++) {
            double here = fabs(value_at(z, s, i, division, j));
            if (here > size && here < INFINITY) size = here;
        }
        s->columns[j] = size;
    }
}

/* Judge a stretch, and halve it twice around the greatest bend; return whether to go on. */
INLINE int close_in(const Zoom *z, Stretch *s, int64_t i) {
    int64_t at = 1, number = s->number, sure = z->round >= SURE;
    double bend = find_bend(z, s, i, &at), width = s->high - s->low, largest = 0.0;
    double *now = &s->bends[z->round % (SURE + 1)], before = s->bends[(z->round + SURE) % (SURE + 1)];
    double first = s->bends[(z->round + 1) % (SURE + 1)];
    for (int64_t j = 0; j < z->columns; j++) largest = larger(largest, s->columns[j]);
    /* As close as numbers are: what is left is the bend between neighbours. */
    int close = width <= 0.5 * DIVISIONS * z->ulp * larger(fabs(s->low), fabs(s->high)) || width < z->narrow;
    int even = bend <= 16.0 * z->eps, nothing = bend * (width / s->whole) <= 4.0 * z->eps && !even;
    double middle = place_of(s, at);
    *now = bend;
    if (!even) z->place[number] = nothing ? corner(z, s, i, at, middle) : middle;
    int falls = sure && bend < z->falls * first;
    /* A bend that rounding hides is that of a kink, or of something smooth. */
    int known = close && !even;
    if (sure) known |= (nothing && !falls) || (even && !falls && before > z->lasts * first);
    z->found[number] = (int8_t)known;
    /* Between the neighbours beside a jump it may be anywhere; a singularity is where f is largest. */
    double apart = 2.0 * larger(width / DIVISIONS, z->ulp * fabs(middle)) * largest;
    z->doubt[number] = known && close ? larger(bend <= z->bounded ? apart * bend : 0.0, DBL_MIN) : 0.0;
    if (close || even || falls || (nothing && sure)) return 0;
    for (int64_t j = 0; j < z->columns; j++) {
        double seen[3];
        for (int k = 0; k < 3; k++) seen[k] = value_at(z, s, i, at - 1 + k, j);
        for (int k = 0; k < 3; k++) s->columns[(1 + k) * z->columns + j] = seen[k];
    }
    s->low = middle - width / DIVISIONS, s->high = middle + width / DIVISIONS;
    return 1;
}

/* Go one round on; the stretches that go on further, whose number is returned, move to the front, and are asked for. */
EXPORT int64_t go_on_zooming(const Zoom *z) {
    int64_t kept = 0, size = (int64_t)(sizeof(Stretch) / sizeof(double)) + 4 * z->columns;
    for (int64_t i = 0; i < z->n; i++) {
        Stretch *s = stretch_at(z, i);
        if (!z->round) size_up(z, s, i);
        z->spent[s->number] += z->round ? DIVISIONS - 2 : DIVISIONS + 1;
        if (!close_in(z, s, i)) continue;
        memmove(stretch_at(z, kept++), s, (size_t)size * sizeof(double));
    }
    for (int64_t i = 0; i < kept; i++) {
        const Stretch *s = stretch_at(z, i);
        int64_t row = 0;
        for (int64_t division = 1; division < DIVISIONS; division++)
            if (division % 4) z->x[row++ * kept + i] = place_of(s, division);
        z->owner[i] = s->owner;
    }
    return kept;
}
