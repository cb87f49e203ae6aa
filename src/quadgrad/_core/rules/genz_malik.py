"""Fully symmetric rules on boxes, of degree 7, 9 and 11 (Genz and Malik; Berntsen, Espelid and Genz).

A rule is a list of *generators*: a few coordinates on [-1, 1], the others being 0, of which all permutations and
signs are nodes, with one weight for all of these. Weights solve the moment equations of the even monomials; there
are more of them than weights, and they are consistent in any number of dimensions: the squares of the coordinates
are chosen so. Null rules come from the same nodes: they annihilate all polynomials up to a lower degree.

Degree 7 is that of Genz and Malik (*J. Comput. Appl. Math.* 6, 1980, and *SIAM J. Numer. Anal.* 20, 1983); the
degrees 9 and 11 extend it (Berntsen, Espelid and Genz, *ACM TOMS* 17, 1991, have rules of these degrees).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np

from quadgrad._core.rules.box import BoxRule
from quadgrad._core.rules.rule import Array

__all__ = ["DEGREES", "genz_malik"]

NEAR, FAR, CORNER = 9 / 70, 9 / 10, 9 / 19
FIRST, SECOND = 0.37246023271511882, 0.63781512605042017
"""Squares of coordinates. The two of degree 11 make its equations consistent, to all digits."""

DEGREES: dict[int, tuple[tuple[float, ...], ...]] = {
    7: ((), (NEAR,), (FAR,), (FAR, FAR)),
    9: ((), (NEAR,), (759 / 1190,), (FAR,), (FAR, NEAR), (FAR, FAR), (FAR, FAR, FAR)),
    11: (
        (), (NEAR,), (FIRST,), (SECOND,), (FAR,), (NEAR, NEAR), (FAR, NEAR), (FAR, SECOND), (FAR, FAR),
        (FAR, FAR, NEAR), (FAR, FAR, FAR), (FAR, FAR, FAR, FAR),
    ),
}  # fmt: skip
"""Generators by degree, as the squares of coordinates that are not 0; all have the corners of a smaller box,
too."""

Generator = tuple[float, ...]


@cache
def genz_malik(degree: int, d: int) -> BoxRule:
    """Return the rule of a degree in d dimensions."""
    generators = [g for g in DEGREES[degree] if len(g) <= d] + [(CORNER,) * d]
    orbits = [_orbit(g, d) for g in generators]
    counts = np.array([len(orbit) for orbit in orbits])
    moments = [_moments(generators, counts, d, k) for k in range(degree // 2 + 1)]
    exact = np.concatenate(
        [[np.prod([1 / (2 * q + 1) for q in p]) for p in _partitions(k, d)] for k in range(degree // 2 + 1)]
    )
    weights = _solve(np.vstack(moments), exact)
    nulls = _null_rules(moments, counts, weights)
    expand = np.repeat(np.arange(len(orbits)), counts)
    nodes = 0.5 + 0.5 * np.vstack(orbits)
    return BoxRule(
        f"gm{degree}", nodes, weights[expand], degree, tuple(n[:, expand] for n in nulls), _lines(nodes),
        orbits=tuple(map(len, orbits)),
    )  # fmt: skip


def _orbit(generator: Generator, d: int) -> Array:
    """Return all permutations and signs of the square roots of a generator, ``(count, d)``."""
    values = generator
    nodes: list[Array] = []
    arrangements = sorted({tuple(p) for p in _arrangements(generator)})
    signs = np.array(list(product((1.0, -1.0), repeat=len(values)))).reshape(2 ** len(values), len(values))
    for places in combinations(range(d), len(values)):
        for arrangement in arrangements:
            block = np.zeros((len(signs), d))
            block[:, list(places)] = signs * np.sqrt(np.array(arrangement))
            nodes.append(block)
    return np.vstack(nodes) if nodes else np.zeros((1, d))


def _arrangements(values: Generator) -> Iterator[Generator]:
    """Yield the different orders of a few values; many equal ones, as of corners, have one."""
    if not values:
        yield ()
    for value in sorted(set(values)):
        rest = list(values)
        rest.remove(value)
        for others in _arrangements(tuple(rest)):
            yield (value, *others)


def _partitions(n: int, parts: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """Yield the ways to write n as at most so many numbers, descending: the even monomials of degree 2 n."""
    if n == 0:
        yield ()
    elif parts:
        for k in range(min(n, most or n), 0, -1):
            yield from ((k, *rest) for rest in _partitions(n - k, parts - 1, k))


def _moments(generators: list[Generator], counts: Array, d: int, k: int) -> Array:
    """Return the sums of the monomials of degree 2 k over each generator's nodes, ``(monomials, generators)``."""
    return np.array([[_moment(g, p, d) for g in generators] for p in _partitions(k, d)]) * counts


def _moment(generator: Generator, powers: tuple[int, ...], d: int) -> float:
    """Return the mean of a monomial over a generator's nodes."""
    left = Counter(generator)

    def mean(powers: tuple[int, ...], places: int) -> float:
        if not powers:
            return 1.0
        sum_ = 0.0
        for value in list(left):
            if (count := left[value]) > 0:
                left[value] -= 1
                sum_ += count * value ** powers[0] * mean(powers[1:], places - 1)
                left[value] += 1
        return sum_ / places

    return mean(powers, d)


def _solve(moments: Array, exact: Array) -> Array:
    """Return the weights of generators, ``(generators,)``."""
    scale = np.abs(moments).max(0)
    weights = np.linalg.lstsq(moments / scale, exact, rcond=None)[0] / scale
    residual = exact - moments @ weights  # once more, for the last digits
    return np.asarray(weights + np.linalg.lstsq(moments / scale, residual, rcond=None)[0] / scale, dtype=np.float64)


def _null_rules(moments: list[Array], counts: Array, weights: Array) -> list[Array]:
    """Return three levels of null rules ``(k, generators)``, as long (over the nodes) as the rule itself.

    Each level annihilates two degrees less than the one before, and is orthogonal to it.
    """
    root = np.sqrt(counts)
    length = np.sqrt((counts * weights**2).sum())
    levels: list[Array] = []
    before = np.zeros((0, len(counts)))
    for fewer in (1, 2, 3):
        rows = np.vstack(moments[:-fewer]) / root
        rows = np.vstack((rows / np.linalg.norm(rows, axis=1, keepdims=True), before))
        singular = np.linalg.svd(rows)
        rank = int((singular[1] > 1e-10).sum())
        found = singular[2][rank:]
        before = np.vstack((before, found))
        levels.append(length * found / root)
    return levels


def _lines(nodes: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the places of the nodes on each axis through the centre, ``(d, s)``, ascending along it."""
    off = np.abs(nodes - 0.5) > 0.0
    lines: list[Any] = []
    for axis in range(nodes.shape[1]):
        others = np.delete(off, axis, axis=1)
        on = np.flatnonzero(~others.any(axis=1))
        lines.append(on[nodes[on, axis].argsort()])
    return np.array(lines, dtype=np.int64)
