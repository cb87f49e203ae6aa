"""Cells towards one end of a piece, and the series that their integrals are the terms of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.estimates.series import encode
from quadgrad._core.mesh.interval import LINEAR
from quadgrad._core.problem import Problem
from quadgrad._core.search.task import Tail, estimate_cells

__all__ = ["GOOD", "Best", "Line", "find_gains", "integrate_cells", "make_tail"]

GOOD = 0.1
"""A tail is taken if its error is below this part of the tolerance of what is known."""


class Line:
    """f towards one end of a piece, as a function of u that grows without bound on the way.

    u and the values of f are on the host: what follows from a few of them is decided step by step, which on another
    device would wait for each step. f itself is called where the problem is.
    """

    def __init__(
        self, problem: Problem, row: int, upper: bool, limits: tuple[float, ...] = (), again: bool = False
    ) -> None:
        self.device = problem.pieces.lower.device
        # Unless the piece's limits are known they are asked for, which on another device waits for it.
        lower, high = limits or (float(end) for end in problem.pieces.ends(torch.tensor([row], device=self.device)))
        self.problem, self.row, self.upper, self.spent = problem, row, upper, 0
        self.again = again  # farther out, where the wave may be too fast for a scan's places
        self.end = high if upper else lower
        self.other = lower if upper else high
        self.sign = 1.0 if upper else -1.0
        self.infinite = math.isinf(self.end)
        self.double = self.infinite and math.isinf(self.other)
        self.span = high - lower
        self.start = (0.0 if self.double else self.other) if self.infinite else self.end  # what u is measured from
        self.owner = torch.tensor([row // problem.pieces.count], device=self.device)
        # No farther from the end than that, lest nothing is left for the rest.
        self.least = 0.5 if self.infinite else 1.0 / (0.75 * self.span)
        # What was told together with other lines: f where waves are looked for first; whether rounding hides it.
        # Where an end is not at 0 rounding of x itself grows, and cells with logarithmic nodes know by how much.
        self.scanned: Tensor | None = None
        self.hides = None if self.infinite or self.end == 0.0 else False

    def x(self, u: Tensor) -> Tensor:
        return self.start + self.sign * (u if self.infinite else -1.0 / u)

    def __call__(self, u: Tensor) -> Tensor:
        self.spent += len(u)
        y = self.problem.integrand(self.x(u)[:, None].to(self.device), self.owner).detach()
        return y.double().reshape(-1).cpu()

    def u_of(self, distance: float) -> float:
        """Return u at a fraction of the piece, measured from the end."""
        if not self.infinite:
            return 1.0 / (distance * self.span)
        return 1.0 / distance - distance / (1.0 - distance) if self.double else (1.0 - distance) / distance

    def u_at(self, fractions: Tensor) -> Tensor:
        """Return u at fractions of the piece."""
        each = [self.u_of(distance) for distance in fractions.tolist()]
        return torch.tensor(each, dtype=torch.float64, device="cpu")

    def fraction(self, u: Tensor) -> Tensor:
        """Return the fraction of the piece at u, measured from the end, positive."""
        if not self.infinite:
            return 1.0 / (u * self.span)
        if self.double:  # u = p / q - q / p, p = 1 - q: q = 2 / (2 + u + sqrt(4 + u^2))
            return 2.0 / (2.0 + u + torch.sqrt(4.0 + u * u))
        return 1.0 / (1.0 + u)


def _cells(lines: list[Line], outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, start and stop of cells between fractions ``(n,)`` from the ends, where the problem is."""
    device = lines[0].device
    row, upper = (
        torch.tensor([(line.row, line.upper) for line in lines], device=device)
        .repeat_interleave(len(outer), 0)
        .unbind(1)
    )
    outer, inner = (t.to(device).repeat(len(lines)) for t in (outer, inner))
    return row, torch.where(upper > 0, -outer, inner), torch.where(upper > 0, -inner, outer)


def integrate_cells(lines: list[Line], outer: Tensor, inner: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Integrate between fractions ``(n,)``: values and errors, which are infinite where f is not finite.

    Of several lines, the cells of one after those of the other.
    """
    problem = lines[0].problem
    row, start, stop = _cells(lines, outer, inner)
    kinds = None if kind == LINEAR else torch.full_like(row, kind, dtype=torch.int8)
    value, error, rounding = estimate_cells(problem, row, start, stop, kinds)
    for line in lines:
        line.spent += problem.rule.nodes.size * len(outer)
    terms, errors = torch.stack((value[:, 0], torch.maximum(error, rounding))).cpu()  # read at once
    return terms, errors


Best = tuple[float, float, int, int]
"""Limit, error, how many terms it takes, and the column, or the number of the first term."""


def find_gains(function: Callable[[Tensor], Tensor], terms: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function of terms, and how much errors of each of them count in it, or in the sum of its columns.

    Not by ``torch.func.vjp``, nor with a cotangent, which load torch's compiler, and SymPy: 800 modules, 70 MiB.
    """
    with torch.inference_mode(False), torch.enable_grad():
        terms = terms.clone().detach().requires_grad_()
        value = function(terms)
        (gain,) = torch.autograd.grad((value.real if value.is_complex() else value).sum(), terms)
    return value.detach(), gain.abs()


def make_tail(
    line: Line, fractions: Tensor, errors: Tensor, how: tuple[int, int], best: Best | None, size: float,
    part: float | None = None,
) -> Tail | None:  # fmt: skip
    """Return a tail of the terms between fractions, if its error is a small enough ``part`` of the whole."""
    if best is None:
        return None
    (value, error, used, column), (kind, method), problem = best, how, line.problem
    part = GOOD * problem.tolerance.rtol if part is None else part
    if not error <= max(GOOD * problem.tolerance.atol, part * max(size, abs(value))):
        return None
    _, start, stop = _cells([line], fractions[:used], fractions[1 : used + 1])
    code = encode(torch.arange(used, device=line.device), method, column, line.upper)
    return Tail(
        owner=line.row // problem.pieces.count, piece=line.row % problem.pieces.count, upper=line.upper,
        start=start, stop=stop, kind=kind, code=code, errors=errors[:used].to(line.device), value=value,
        error=error, edge=float(fractions[0]), nfev=line.spent,
    )  # fmt: skip
