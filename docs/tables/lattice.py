"""Search the generating vector of quadgrad's lattice, component by component, and write it: half a minute.

The points of a lattice with 2**m points are the multiples of ``z / 2**m`` modulo 1. One vector serves every m here,
as in Cools, Kuo and Nuyens (*SIAM J. Sci. Comput.* 28, 2006): the next component is the one whose figure of merit
exceeds least, at the worst m, what the best component for that m alone would have reached.

The figure is that of Korobov's space of smoothness 1. It is the mean over all points of products of ``omega(x) =
2 pi**2 (x**2 - x + 1/6)``: of the mean product over all pairs that the new component forms with those before and,
each a tenth as important as the one before, over all sets of three, four and five. With pairs alone the vector did
as well as theirs on pairs, and 2**14 points left an error of 2e-3 in a smooth function of four variables, not 7e-8.

For odd components the sums over points are correlations on the cyclic group that 5 generates, one for each power of
two, and take no longer than Fourier transforms (Nuyens and Cools, *Math. Comp.* 75, 2006).
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

LEVELS = 20  # up to 2**20 points
FIRST = 6  # from 2**6 on
DIMENSIONS = 1024
IMPORTANCE = (1.0, 0.1, 0.01, 0.001)  # of sets of two, three, four and five
OURS = pathlib.Path(__file__).parents[2] / "src" / "quadgrad" / "_core" / "points" / "lattice.csv"


def omega(x: np.ndarray) -> np.ndarray:
    return 2 * np.pi**2 * (x * x - x + 1 / 6)


def powers(level: int) -> np.ndarray:
    """Return the odd numbers below ``2**level`` up to their sign, as powers of 5."""
    numbers = np.ones(max(1, 1 << level >> 2), dtype=np.int64)
    for k in range(len(numbers).bit_length() - 1):
        half = 1 << k
        numbers[half : 2 * half] = numbers[:half] * pow(5, half, 1 << level) % (1 << level)
    return numbers


class Search:
    """Products at the points that are new at each level: odd multiples of ``2**-level``, up to their sign."""

    def __init__(self, levels: int = LEVELS, first: int = FIRST) -> None:
        self.levels, self.first, self.count = levels, first, 0
        self.kernels = [omega(powers(level) / (1 << level)) for level in range(levels + 1)]
        self.kernels[0] = omega(np.zeros(1))
        self.spectra = [np.fft.rfft(kernel) for kernel in self.kernels]
        # At each level, of the components so far: sums over all sets of one, two, three and four of their products.
        self.products = [np.zeros((len(IMPORTANCE), len(kernel))) for kernel in self.kernels]

    def figures(self) -> np.ndarray:
        """Return the figure of each power of 5 as the next component, in a row per level from the first on."""
        weights = [share / max(1, math.comb(self.count, k)) for k, share in enumerate(IMPORTANCE, 1)]
        total, rows = np.zeros(1), []
        for level, (kernel, spectrum) in enumerate(zip(self.kernels, self.spectra, strict=True)):
            before = weights @ self.products[level]
            size, signs = len(kernel), 1 if level < 2 else 2
            total = np.resize(total, size) + signs * np.fft.irfft(np.fft.rfft(before).conj() * spectrum, n=size)
            if level >= self.first:
                rows.append(np.resize(total, len(self.kernels[-1])) / (1 << level))
        return np.stack(rows)

    def append(self, exponent: int) -> None:
        """Take ``5**exponent`` as the next component."""
        for kernel, products in zip(self.kernels, self.products, strict=True):
            values = np.roll(kernel, -exponent % len(kernel))
            products[1:] += products[:-1] * values  # the right-hand side is made first
            products[0] += values
        self.count += 1


def main() -> None:
    search, candidates, vector = Search(), powers(LEVELS), [1]
    search.append(0)
    while len(vector) < DIMENSIONS:
        figures = search.figures()
        exponent = int((figures / figures.min(axis=1, keepdims=True)).max(axis=0).argmin())
        search.append(exponent)
        component = int(candidates[exponent])
        vector.append(min(component, (1 << LEVELS) - component))  # the same figure, and smaller
    OURS.write_text("".join(f"{component}\n" for component in vector))


if __name__ == "__main__":
    main()
