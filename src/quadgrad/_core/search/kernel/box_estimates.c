/* What f's values say about boxes: the inside of estimates/boxes.py, which explains it. */

#include "boxes.h"

enum { NUMBERS = 32, MOST_ORBITS = 64 }; /* so many columns at a time, which stay in registers */

/* Values of f on n new cells from `first` on, with several columns each; room for what is read of them, the matrices of
 * `Readings` with rows for n cells; and where all new cells are, in matrices with rows of `stride`. */
typedef struct {
    const double *y;
    double *values, *sizes;
    const double *scale, *corner, *side, *trust;
    const int64_t *owner, *row, *level, *place;
    int64_t n, first, stride;
    double noise;
} Estimating;

/* The sums over all orbits of `width` columns. A NaN anywhere shows in the sum of the sizes, and need be looked for
 * there alone. */
INLINE void sum_orbits(const BoxRule *rule, const double *y, int64_t stride, int64_t width, double (*sums)[NUMBERS],
                       double *size, double *height) {
    double most[NUMBERS] = {0.0}, total[NUMBERS] = {0.0};
    for (int64_t g = 0; g < rule->g; g++) {
        double sum[NUMBERS] = {0.0}, moduli[NUMBERS] = {0.0};
        for (int64_t k = 0; k < rule->orbits[g]; k++, y += stride)
            for (int64_t i = 0; i < width; i++) {
                double modulus = fabs(y[i]);
                sum[i] += y[i];
                moduli[i] += modulus;
                most[i] = larger(most[i], modulus);
            }
        for (int64_t i = 0; i < width; i++) total[i] += rule->sizes[g] * moduli[i];
        memcpy(sums[g], sum, sizeof sum);
    }
    for (int64_t i = 0; i < width; i++) size[i] = total[i], height[i] = total[i] == total[i] ? most[i] : NAN;
}

/* The functionals of `width` columns from the number `first` of their block on. */
INLINE void read_columns(const BoxSetting *set, const Estimating *to, int64_t first, int64_t width, double *height) {
    const BoxRule *rule = set->rule;
    int64_t stride = to->n * set->columns, rows = 1 + rule->nulls;
    const double *y = to->y + first;
    double sums[MOST_ORBITS][NUMBERS], size[NUMBERS], *out = to->values + first;
    sum_orbits(rule, y, stride, width, sums, size, height);
    for (int64_t r = 0; r < rows; r++) {
        double sum[NUMBERS] = {0.0};
        for (int64_t g = 0; g < rule->g; g++)
            for (int64_t i = 0; i < width; i++) sum[i] += rule->functionals[r * rule->g + g] * sums[g][i];
        memcpy(out + r * stride, sum, (size_t)width * sizeof *sum);
    }
    memcpy(out + rows * stride, size, (size_t)width * sizeof *size);
    out += (rows + 1) * stride;
    for (int64_t axis = 0; axis < rule->d; axis++)
        for (int64_t r = 0; r < 6; r++) {
            double sum[NUMBERS] = {0.0};
            const double *face = y + (rule->m + 2 * axis + r) * stride;
            for (int64_t k = 0; k < rule->s; k++)
                for (int64_t i = 0; i < width; i++)
                    sum[i] += rule->along[r * rule->s + k] * y[rule->lines[axis * rule->s + k] * stride + i];
            for (int64_t i = 0; r < 2 && i < width; i++) sum[i] -= face[i];
            memcpy(out + (r * rule->d + axis) * stride, sum, (size_t)width * sizeof *sum);
        }
}

/* The largest size of f in cells, and close to each of their faces. */
INLINE void read_sizes(const BoxSetting *set, const Estimating *to, int64_t first, int64_t count) {
    const BoxRule *rule = set->rule;
    int64_t c = set->columns;
    for (int64_t r = 0; r < 2 * rule->d; r++)
        for (int64_t i = first; i < first + count; i++) {
            double most = 0.0;
            for (int64_t j = 0; j < c; j++) most = worse(most, fabs(to->y[((rule->m + r) * to->n + i) * c + j]));
            to->sizes[(1 + r) * to->n + i] = most;
        }
}

/* What is told of one column of a cell: its error, the integral of abs(f), what may be hidden between nodes and faces,
 * what x being rounded makes of f, and how slowly null rules fall, 1 where they do not. */
typedef struct {
    double error, size, hidden, blur, fall;
} Told;

INLINE double finite_or(double x, double otherwise) { return isfinite(x) ? x : otherwise; }
INLINE double not_nan(double x, double otherwise) { return x == x ? x : otherwise; }

/* The largest abs of a few numbers, one row after another, and at least `least`. */
INLINE double largest_of_rows(const double *v, int64_t step, int64_t count, double least) {
    double most = 0.0;
    for (int64_t k = 0; k < count; k++) most = worse(most, fabs(v[k * step]));
    return most < least ? least : most;
}

/* The error of a column from the null rules of all levels, and how slowly they fall. */
INLINE void judge_nulls(const BoxSetting *set, const double *null, int64_t step, double rounding, Told *told) {
    const BoxConstants *c = set->c;
    double level[3];
    for (int k = 0; k < 3; null += set->rule->levels[k++] * step)
        level[k] = largest_of_rows(null, step, set->rule->levels[k], DBL_MIN);
    int above[3] = {level[0] > rounding, level[1] > rounding, level[2] > rounding};
    double fall = worse(level[0] / level[1] * above[0], level[1] / level[2] * above[1]);
    fall = fall > 1.0 ? 1.0 : fall;
    if (!(above[0] || above[1] || above[2])) fall = 1.0;
    double error = worse(fall * fall * level[2], worse(level[0], level[1]) * (fall == 1.0));
    error = c->safety * (fall > c->rough ? c->slow * error : error);
    if (!(above[0] && above[1])) error = worse(error, rounding);
    if (!(above[0] || above[1] || above[2])) error = rounding;
    told->error = error, told->fall = fall;
}

/* One column of a cell; to `rough` and `gaps` what each axis has of both is added, gaps in the order of the tensors. */
INLINE Told judge_column(const BoxSetting *set, const double *v, int64_t step, double noise, const double *spread,
                         double *rough, double *gaps, int *kinked) {
    const BoxConstants *c = set->c;
    int64_t d = set->rule->d, nulls = set->rule->nulls;
    const double *along = v + (2 + nulls) * step;
    Told told = {.size = v[(1 + nulls) * step]};
    double size = told.size, most = 0.0, hidden = 0.0, top[MOST_AXES];
    for (int64_t axis = 0; axis < d; axis++) {
        top[axis] = fabs(along[(4 * d + axis) * step]) + fabs(along[(5 * d + axis) * step]);
        told.blur += spread[axis] * (top[axis] + size);
    }
    told.blur = set->flat ? smaller(told.blur, size) : 0.0;
    judge_nulls(set, v + step, step, c->rounded * noise * size + told.blur, &told);
    for (int64_t axis = 0; axis < d; axis++) {
        double next = fabs(along[(2 * d + axis) * step]) + fabs(along[(3 * d + axis) * step]);
        double above = worse(top[axis] - 20.0 * noise * size, 0.0);
        above *= above > c->straight * next && above > told.error;
        most = worse(most, above);
        *kinked |= !(above == 0.0);
        rough[axis] += top[axis];
        for (int64_t side = 0; side < 2; side++) {
            double gap = fabs(along[(side * d + axis) * step]) - c->beyond * top[axis];
            gap = isfinite(gap) && gap > 0.0 ? gap : 0.0;
            gaps[axis] += gap, hidden += gap;
        }
    }
    told.error = worse(told.error, c->kink * most);
    told.hidden = hidden * (0.5 * (1.0 - set->rule->outermost) * c->hidden);
    return told;
}

/* All columns of a cell together: the largest of their quantities, of complex ones the moduli. */
INLINE Told judge_columns(const BoxSetting *set, const double *v, int64_t step, double noise, const double *spread,
                          double *rough, double *gaps, int *kinked) {
    Told all = {0.0};
    for (int64_t j = 0; j < set->columns; j += set->parts) {
        Told one = judge_column(set, v + j, step, noise, spread, rough, gaps, kinked);
        if (set->parts == 2) {
            Told other = judge_column(set, v + j + 1, step, noise, spread, rough, gaps, kinked);
            one.error = hypot(one.error, other.error), one.size = hypot(one.size, other.size);
            one.hidden = hypot(one.hidden, other.hidden), one.blur = hypot(one.blur, other.blur);
            one.fall = worse(one.fall, other.fall);
        }
        if (set->columns == set->parts) return one;
        all.error = worse(all.error, one.error), all.size = worse(all.size, one.size);
        all.hidden = worse(all.hidden, one.hidden), all.blur = worse(all.blur, one.blur);
        all.fall = worse(all.fall, one.fall);
    }
    return all;
}

/* The axis along which to halve a cell: where f is roughest, on a near-tie the widest. */
INLINE int64_t choose_axis(const BoxSetting *set, const double *inner, const double *gaps, const double *width,
                           const int64_t *level, double size, double noise) {
    const BoxConstants *c = set->c;
    int64_t d = set->rule->d, least = level[0], axis = 0, ties = 0;
    double top = 0.0, best = -1.0;
    for (int64_t k = 0; k < d; k++) {
        top = larger(top, inner[k] + gaps[k]);
        least = level[k] < least ? level[k] : least;
    }
    int tied[MOST_AXES];
    for (int64_t k = 0; k < d; k++) ties += tied[k] = inner[k] + gaps[k] >= c->tie * top - 10.0 * noise * size;
    for (int64_t k = 0; k < d; k++) {
        double key = level[k] > least + c->ahead && ties > 1 ? 0.0 : width[k] * tied[k];
        key += tied[k] * 1e-300;
        if (key > best) best = key, axis = k;
    }
    /* A singular point in the middle of a face or of an axis stays there when another axis is halved, for ever. */
    int64_t deepest = level[axis];
    double most = 0.0;
    for (int64_t k = 0, first = 1; k < d; k++)
        if (level[k] + c->ahead < deepest && inner[k] > c->unresolved * size && (first || inner[k] > most))
            most = inner[k], axis = k, first = 0;
    return axis;
}

/* Enter where some cells are: a row of numbers after another, as memory hands over what is next in it. */
INLINE void enter_places(const BoxSetting *set, const Estimating *in, const BoxColumns *to, int64_t at, int64_t count) {
    int64_t d = set->rule->d, i = in->first + at, *whole = to->whole + at;
    size_t size = (size_t)count * sizeof *whole;
    memcpy(whole + OWNER * to->stride, in->owner + i, size);
    memcpy(whole + ROW * to->stride, in->row + i, size);
    for (int64_t axis = 0; axis < d; axis++) {
        memcpy(whole + (LEVEL + axis) * to->stride, in->level + axis * in->stride + i, size);
        memcpy(whole + (LEVEL + d + axis) * to->stride, in->place + axis * in->stride + i, size);
    }
}

/* Enter what is read of a cell, whose place is entered: value, error, how both are known, and where to halve it. */
INLINE void judge_cell(const BoxSetting *set, const Estimating *in, const BoxColumns *to, int64_t at) {
    const BoxConstants *c = set->c;
    int64_t d = set->rule->d, n = in->stride, i = in->first + at, stride = to->stride, columns = set->columns, depth = 0;
    int64_t level[MOST_AXES];
    double spread[MOST_AXES], width[MOST_AXES], reach[MOST_AXES], inner[MOST_AXES] = {0.0}, gaps[MOST_AXES] = {0.0};
    double *sums = to->sums + at, *real = to->real + at;
    int64_t *whole = to->whole + at;
    for (int64_t k = 0; k < d; k++) {
        depth += level[k] = whole[(LEVEL + k) * stride];
        width[k] = set->flat ? fabs(in->side[k * n + i]) : power_of_2(-level[k]);
        if (!set->flat) continue;
        double corner = in->corner[k * n + i];
        reach[k] = larger(fabs(corner), fabs(corner + in->side[k * n + i]));
        spread[k] = smaller(c->place * set->eps * reach[k] / width[k], 1.0);
    }
    if (!set->flat) memset(spread, 0, sizeof spread);
    int kinked = 0;
    double scale = in->scale[i], volume = fabs(scale), noise = in->noise;
    Told told = judge_columns(set, in->values + at * columns, in->n * columns, noise, spread, inner, gaps, &kinked);
    double size = told.size * volume, blur = told.blur * volume, off = told.error * volume;
    double least = told.fall < c->smooth && !kinked ? c->least : 1.0;
    double trust = in->trust ? larger(in->trust[i], least) : 1.0;
    /* The floor is the rounding of f alone; see `bound_error`. */
    double floor = finite_or(size * (c->floor * noise), 0.0);
    double least_error = finite_or(smaller(blur, size) + floor, 0.0);
    double error = not_nan(worse(worse(off * trust, told.hidden * volume), least_error), INFINITY);
    int curable = error > least_error && !(isfinite(error) && error <= c->safety * c->slow * blur);
    for (int64_t j = 0; j < columns; j++)
        sums[j * stride] = isinf(error) ? 0.0 : in->values[at * columns + j] * scale;
    sums[columns * stride] = error, sums[(columns + 1) * stride] = floor;
    for (int64_t k = 0; k < d; k++) inner[k] = not_nan(inner[k], INFINITY);
    int64_t axis = choose_axis(set, inner, gaps, width, level, size / volume, noise);
    int wide = level[axis] < c->deepest && whole[(LEVEL + d + axis) * stride] < c->farthest;
    if (set->flat) wide &= 0.5 * width[axis] * set->beside > c->narrowest * set->eps * reach[axis];
    whole[SPLITTABLE * stride] = curable * (2 * wide - 1), whole[AXIS * stride] = axis;
    real[RAW * stride] = not_nan(off, INFINITY), real[TRUST * stride] = trust, real[LEAST * stride] = least;
    double unit = volume * power_of_2(depth);
    for (int64_t k = 0; k <= 2 * d; k++)
        real[(k ? LEAST + k : HEIGHT) * stride] = finite_or(in->sizes[k * in->n + at] * unit, 0.0);
}

/* Enter what f's values say about cells, a few at a time, of which all that is read stays in the nearest cache. */
EXPORT void estimate_boxes(const BoxSetting *set, const Estimating *in, const BoxColumns *to) {
    int64_t c = set->columns, some = c < NUMBERS ? NUMBERS / (c ? c : 1) : 1;
    int threads = sharing(set->rule->rows * in->n, set->threads);
    PARALLEL(threads)
    for (int64_t first = 0; first < in->n; first += some) {
        int64_t count = in->n - first < some ? in->n - first : some;
        double height[NUMBERS];
        for (int64_t i = first; i < first + count; i++) in->sizes[i] = 0.0;
        for (int64_t at = first * c; at < (first + count) * c; at += NUMBERS) {
            int64_t left = (first + count) * c - at, width = left < NUMBERS ? left : NUMBERS;
            if (left >= NUMBERS) read_columns(set, in, at, NUMBERS, height);
            else read_columns(set, in, at, left, height);
            for (int64_t i = 0; i < width; i++)
                in->sizes[(at + i) / c] = worse(in->sizes[(at + i) / c], height[i]);
        }
        read_sizes(set, in, first, count);
        enter_places(set, in, to, first, count);
        for (int64_t i = first; i < first + count; i++) judge_cell(set, in, to, i);
    }
}

/* Correct the errors of the children of n parents, which stand next to each other, by what their parents' turned out to
 * be, and doubt those whose nodes saw what is new. */
EXPORT void compare_boxes(const BoxSetting *set, const BoxColumns *children, const BoxColumns *parents, int64_t n) {
    const BoxConstants *c = set->c;
    int64_t columns = set->columns, d = set->rule->d, told = FACES + 2 * d;
    for (int64_t i = 0; i < n; i++) {
        double *sums = children->sums + 2 * i, *real = children->real + 2 * i, gap = 0.0;
        int64_t *whole = children->whole + 2 * i, stride = children->stride, step = parents->stride;
        const double *parent = parents->sums + i, *known = parents->real + i;
        for (int64_t j = 0; j < columns; j++)
            gap = worse(gap, fabs(sums[j * stride] + sums[j * stride + 1] - parent[j * step]));
        double raw = known[RAW * step];
        double trust = not_nan(worse(c->caution * gap / raw, known[TRUST * step] * c->learnt), 1.0);
        trust = isinf(trust) ? 1.0 : larger(smaller(trust, 1.0 / c->least), c->least);
        if (isinf(raw)) trust = 1.0;
        double extra = gap > raw ? 0.25 * gap : 0.0, before = known[(told + 2) * step];
        for (int k = 0; k < 2; k++, sums++, real++, whole++) {
            /* Beside a kink or a jump what the parent was off says nothing of the children. */
            double own = worse(trust, real[LEAST * stride]), learnt = worse(real[RAW * stride] * own, extra);
            double *error = sums + columns * stride, floor = error[stride];
            *error = *error > real[RAW * stride] ? worse(*error, learnt) : worse(learnt, floor);
            real[TRUST * stride] = own;
            whole[SPLITTABLE * stride] += whole[SPLITTABLE * stride] == 0 && *error > 2.0 * floor;
            double *doubt = real + told * stride, off = doubt[2 * stride];
            if (off > c->rougher * before && before > 0.0 && off > doubt[0])
                doubt[0] = off, doubt[stride] = -1.0 - doubt[3 * stride];
        }
    }
}

/* Keep where each integral was seen to be highest: its height, which was `before` as high, and that cell's lower corner
 * and width. */
EXPORT void remember_boxes(const BoxSetting *set, const BoxColumns *cells, int64_t n, const double *before, double *top,
                           double *corner) {
    int64_t d = set->rule->d, stride = cells->stride;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = cells->whole[ROW * stride + i];
        double height = cells->real[HEIGHT * stride + i];
        if (!(height >= top[row] && height > before[row])) continue;
        top[row] = height;
        for (int64_t axis = 0; axis < d; axis++) {
            double *to = corner + row * 2 * d + axis, width = power_of_2(-cells->whole[(LEVEL + axis) * stride + i]);
            to[0] = (double)cells->whole[(LEVEL + d + axis) * stride + i] * width, to[d] = width;
        }
    }
}
