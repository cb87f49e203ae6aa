"""Series towards ends of integrals with several components: one of them leads, and its cells serve all.

The cells are those that :mod:`.tails` finds for the component that is largest there. On them every other one must
have a limit that is as good: as a sine has between the zeros of a cosine, and a wave of another frequency has not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR, PLACE, SAFETY, null_rule_error, weigh
from quadgrad._core.estimates.series import DROPPED, limits_of
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.search.ends.tails import find_tails, wave_goes_on
from quadgrad._core.search.ends.towards import GOOD, Line, find_gains
from quadgrad._core.search.task import Tail, noise

__all__ = ["find_tail_of_all", "is_single"]

LOOKS = 16
"""At so many places components are compared."""


def is_single(integrand: Integrand) -> bool:
    """Whether it has one real component."""
    return integrand.event == () and not (integrand.output_dtype or torch.float64).is_complex


def find_tail_of_all(line: Line, distance: float, size: float, oscillates: bool) -> Tail | None:
    """Return a tail as :func:`.find_tails` does, of an integral of several components."""
    problem, row, upper, integrand = line.problem, line.row, line.upper, line.problem.integrand
    like = problem.pieces.lower.double()
    start, stop = like.new_tensor([[-distance, 0.0] if upper else [0.0, distance]]).unbind(1)
    tau = torch.linspace(0.05, 0.95, LOOKS, dtype=torch.float64, device=like.device)
    rows = torch.full_like(start, row, dtype=torch.int64)
    x, _ = lay_out(problem.pieces, rows, start, stop, None).nodes(tau)
    height = _parts(integrand(x, rows // problem.pieces.count).detach()).abs().nan_to_num(0.0, 0.0, 0.0).mean(0)[0]
    line.spent += LOOKS
    if not height.numel() or not float(height.max()) > 0.0:
        return None
    leading = Line(replace(problem, integrand=_one(integrand, int(height.argmax()))), row, upper, again=line.again)
    (tail,) = find_tails([leading], [distance], [size], [oscillates])
    line.spent += leading.spent
    if tail is not None:
        line.spent += len(tail.code) * problem.rule.nodes.size
        tail = _with_all(problem, tail, row, size, height > 0.0)
    return tail


def _parts(y: Tensor) -> Tensor:
    """Return real components ``(m, n, k)``."""
    y = torch.view_as_real(y) if y.is_complex() else y
    return y.reshape(*y.shape[:2], -1).double()


def _one(integrand: Integrand, index: int) -> Integrand:
    """Return one real component as an integrand."""
    core = replace(integrand, stack=None, captured=None)

    def function(x: Tensor, *args: Any) -> Tensor:
        return _parts(core.evaluate(x, list(args)))[..., index]

    return replace(integrand, function=function, vectorized=True, event=(), output_dtype=torch.float64)


def _with_all(problem: Problem, tail: Tail, row: int, size: float, present: Tensor) -> Tail | None:
    """Return a tail with the limits of all components, if all are good enough."""
    rule, n = problem.rule.tensors(torch.float64, tail.code.device), len(tail.code)
    rows = torch.full_like(tail.code, row)
    kinds = torch.full_like(rows, tail.kind, dtype=torch.int8)
    layout = lay_out(problem.pieces, rows, tail.start, tail.stop, kinds)
    x, factor = layout.nodes(rule.nodes)
    y = problem.integrand(x, rows // problem.pieces.count).detach()
    if not bool(y.isfinite().all()):
        return None
    event = y.shape[2:]
    y = (y.to(torch.complex128) if y.is_complex() else y.double()).reshape(*y.shape[:2], -1)
    values = y * factor[..., None]
    eps, terms = noise(problem), torch.tensordot(rule.weights.to(values.dtype), values, 1)
    errors = torch.zeros_like(terms.real)
    # Rounding of x shakes f, and that of a phase computed from it, as much again.
    shaking = (layout.reach / layout.scale * (PLACE * problem.pieces.rounding.eps)).clamp_max(1.0)[:, None]
    for part in (values.real, values.imag) if values.is_complex() else (values,):
        sums = weigh(rule, part, part.abs())
        shaken = sums.variation * shaking
        each, *_ = null_rule_error(rule, sums.nulls, sums.size.add(shaken, alpha=4.0 / eps), eps)
        errors = errors + torch.maximum(each + shaken, FLOOR * eps * sums.size)
    limit, gain = find_gains(partial(limits_of, code=tail.code), terms)
    others = [limits_of(terms[: n - k], tail.code[: n - k]) for k in range(1, DROPPED + 1)]
    apart = torch.stack([(limit - other).abs() for other in others]).amax(0)
    error = SAFETY * apart + (gain * (errors + eps * terms.abs().amax(0))).sum(0)
    allowed = GOOD * max(problem.tolerance.atol, problem.tolerance.rtol * max(size, float(limit.abs().max())))
    worst = max(float(error.nan_to_num(torch.inf, torch.inf).max()), tail.error)
    if not worst <= allowed:
        return None
    for index in present.nonzero()[:, 0].tolist():
        if not wave_goes_on(replace(problem, integrand=_one(problem.integrand, index)), tail, row):
            return None
    return replace(tail, value=limit.reshape(event), error=worst)
