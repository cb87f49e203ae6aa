"""Adaptive integration over boxes in several dimensions, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.plans.base import Plan
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.result import Result
from quadgrad._core.verbs.boxes import integrate_boxes, prepare_boxes
from quadgrad._core.verbs.cut import integrate_cut
from quadgrad._core.verbs.quad import check_options, quad
from quadgrad._core.verbs.regions import open_region
from quadgrad._core.verbs.sample import refuse_log

__all__ = ["cubature"]


def cubature(
    f: Callable[..., Any],
    a: Any = None,
    b: Any = None,
    args: Any = (),
    *,
    region: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    rule: str = "auto",
    max_nfev: int | None = None,
    gradient: GradientMode = Reuse(),
    plan: Plan | None = None,
    vectorized: bool = True,
    log: bool = False,
    chunk_size: int | None = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f over boxes in several dimensions, adaptively and differentiably, for each element of a batch."""
    if torch.compiler.is_compiling():  # search cannot be traced: one graph break instead of many
        call_eagerly = cast("Callable[..., Result]", torch.compiler.disable(cubature))
        return call_eagerly(
            f, a, b, args, region=region, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev,
            gradient=gradient, plan=plan, vectorized=vectorized, log=log, chunk_size=chunk_size,
            on_failure=on_failure,
        )  # fmt: skip
    check_options(on_failure, chunk_size, gradient)
    tolerances = (rtol, atol)
    if isinstance(region, Where | Boundary):
        refuse_log(log)
        return integrate_cut(
            f, a, b, args, region, tolerances, rule=rule, max_nfev=max_nfev, gradient=gradient, plan=plan,
            vectorized=vectorized, chunk_size=chunk_size, on_failure=on_failure,
        )  # fmt: skip
    f, a, b, args, vectorized = open_region("cubature", f, a, b, args, region, vectorized)
    problem = prepare_boxes(f, a, b, args, vectorized, tolerances, rule, max_nfev, chunk_size)
    if problem is None:
        return quad(
            OneCoordinate(f, vectorized), _only(a), _only(b), args, rtol=rtol, atol=atol,
            rule="gk21" if rule == "auto" else rule, max_nfev=max_nfev, gradient=gradient, plan=plan,
            vectorized=vectorized, log=log, chunk_size=chunk_size, on_failure=on_failure,
        )  # fmt: skip
    refuse_log(log)
    return integrate_boxes(problem, tolerances, gradient, plan, on_failure)


@dataclass(frozen=True)
class OneCoordinate:
    """A function of points that have one coordinate, as one of numbers."""

    f: Callable[..., Any]
    vectorized: bool

    def __call__(self, x: Any, *args: Any) -> Any:
        """Return f at numbers x."""
        return self.f(x.unsqueeze(-1), *args) if self.vectorized else self.f([x], *args)


def _only(corner: Any) -> Any:
    """Return the only coordinate of a corner."""
    if isinstance(corner, list | tuple):
        corner = corner if len(corner) > 1 or not isinstance(corner[0], torch.Tensor | float | int) else corner[0]
        return corner if isinstance(corner, torch.Tensor | float | int) else torch.as_tensor(corner)[..., 0]
    return corner if isinstance(corner, float | int) or not corner.ndim else corner[..., 0]
