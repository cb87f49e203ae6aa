"""What a search hands over, and how noisy it takes f to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR, PLACE, null_rule_error, weigh
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.nesting import current_record
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, concatenate

__all__ = [
    "Found", "Places", "Tail", "call_places", "estimate_cells", "hear", "hear_anew", "inner_error",
    "join_needs", "join_places", "noise", "replace_some",
]  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Places inside the intervals of some integrals, ``(k,)``, where search found f rough.

    Each leaves something in ``doubt`` of its integral.
    """

    owner: Tensor
    place: Tensor
    doubt: Tensor


def join_places(parts: Iterable[Places | None]) -> Places | None:
    """Return the places of all searches."""
    given = [part for part in parts if part is not None]
    return concatenate(given) if given else None


@dataclass(frozen=True)
class Tail:
    """A series towards an end of a piece: cells, the terms' codes, its limit and error, and where the rest ends.

    ``edge`` is a fraction of the piece, measured from the ``upper`` end, or from the lower one.
    """

    owner: int
    piece: int
    upper: bool
    start: Tensor
    stop: Tensor
    kind: int
    code: Tensor
    errors: Tensor
    value: float | Tensor
    error: float
    edge: float
    nfev: int


@dataclass(slots=True)
class Found:
    """What search hands over: the cells, and each integral's totals and end."""

    plan: Any
    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor
    lost: Tensor | None = None
    """Of a sample: at how many points of each integral f was not finite."""
    effective: Tensor | None = None
    """Of a sample: the effective number of points."""
    tails: list[Tail] | None = field(default=None, kw_only=True)
    """Series towards ends of pieces, as search has found out."""
    found_places: Places | None = field(default=None, kw_only=True)
    """Where f is rough, as search has found out: :mod:`quadgrad._core.search.piles.watch`."""
    faint: bool | None = field(default=None, kw_only=True)
    """Of intervals: whether search saw next to nothing of any; None if it cannot tell."""
    seen: Tensor | None = field(default=None, kw_only=True)
    """Of several pieces or real components: the sums of the sizes of cells' values, ``(pieces, components)``."""
    spikes: Tensor | None = field(default=None, kw_only=True)
    """What single nodes saw: ``(k, 3)``, the row, the place, and how far nodes were apart there."""
    need: Tensor | None = field(default=None, kw_only=True)
    """How many nodes each integral ``(batch,)`` seems to need, NaN where nobody asked."""


def replace_some(found: Found, again: Found, who: Tensor) -> Found:
    """Return what was found, and of some integrals ``(batch,)`` what was found when they were searched again."""
    plan = found.plan.take(~who[found.plan.owner]).join(again.plan)
    value = torch.where(align(who, found.value), again.value, found.value)
    error, status = (torch.where(who, getattr(again, name), getattr(found, name)) for name in ("error", "status"))
    nfev, need = found.nfev + torch.where(who, again.nfev, 0), join_needs(found.need, again.need)
    return Found(plan, value, error, status, nfev, need=need)


def join_needs(one: Tensor | None, later: Tensor | None) -> Tensor | None:
    """Return what integrals seem to need, as it was told last."""
    return one if later is None else later if one is None else torch.where(later.isnan(), one, later)


def call_places(problem: Problem, owner: Tensor, x: Tensor) -> Tensor:
    """Return f at places ``(m, k)`` of integrals, ``(m, k, components)``."""
    step = max(1, problem.block // len(x))
    if x.shape[1] <= step:
        y = problem.integrand(x, owner).detach()
    else:
        blocks = (slice(low, low + step) for low in range(0, x.shape[1], step))
        y = torch.cat([problem.integrand(x[:, block], owner[block]).detach() for block in blocks], 1)
    y = y.resolve_conj().resolve_neg().reshape(*x.shape, -1)
    return torch.view_as_real(y.to(torch.complex128)).flatten(2) if y.is_complex() else y.double()


def estimate_cells(
    problem: Problem, row: Tensor, start: Tensor, stop: Tensor, kind: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate over single cells: values ``(n, components)``, errors ``(n,)``, and what rounding makes of these.

    Errors are the largest of any component, infinite where f is not finite.
    """
    rule, eps = problem.rule.tensors(torch.float64, row.device), noise(problem)
    layout = lay_out(problem.pieces, row, start, stop, kind)
    x, factor = layout.nodes(rule.nodes)
    values = call_places(problem, row // problem.pieces.count, x) * factor[..., None]
    sums = weigh(rule, values, values.abs())
    # Rounding of x shakes f, and that of a phase computed from it, as much again.
    shaken = (layout.reach / layout.scale * (PLACE * problem.pieces.rounding.eps)).clamp_max(1.0)
    shaken = sums.variation * shaken[:, None]
    error, *_ = null_rule_error(rule, sums.nulls, sums.size.add(shaken, alpha=4.0 / eps), eps)
    rounding = torch.maximum(shaken, FLOOR * eps * sums.size)
    error, rounding = (t.amax(1) for t in (error + shaken, rounding))
    return sums.value, error.masked_fill(~values.isfinite().all(2).all(0), torch.inf), rounding


def hear(y: Tensor) -> Tensor | None:
    """Return how far f ``(rows, n, *event)``, just called, is off for integrals inside it, ``(rows, n)``."""
    record = current_record()
    return record.take(y, y.shape[0] * y.shape[1]) if record is not None and record.heard else None


def hear_anew() -> None:
    """Forget what integrals inside f have said in calls before."""
    record = current_record()
    if record is not None and record.heard:
        record.heard.clear()


def inner_error(problem: Problem, off: Tensor, row: Tensor, start: Tensor, stop: Tensor, kind: Tensor) -> Tensor:
    """Return what integrals inside f, ``off`` ``(m, n)`` at the nodes of cells, add to the cells' errors."""
    rule = problem.rule.tensors(torch.float64, row.device)
    _, factor = lay_out(problem.pieces, row, start, stop, kind).nodes(rule.nodes)
    return (rule.weights[:, None] * off * factor.abs()).sum(0).nan_to_num(0.0, 0.0, 0.0)


def noise(problem: Problem) -> float:
    """Return the relative noise of f: that of its dtype, or the error of integrals inside it."""
    eps, inner = problem.tolerance.eps, current_record()
    return eps if inner is None else max(eps, inner.noise / FLOOR, inner.typical / FLOOR)
