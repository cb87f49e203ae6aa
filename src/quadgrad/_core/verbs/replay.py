"""The fixed sum of a plan, without search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.gradient.boundary import Treatment, carries_gradient, replay_with_limits, singular_marks
from quadgrad._core.gradient.boxes import replay_boxes
from quadgrad._core.integrand import Integrand
from quadgrad._core.keywords import names_ours
from quadgrad._core.logspace.scaling import attach_shift, shift_on_plan, take_logarithm
from quadgrad._core.mesh.limits import stack_points
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.replay import REPLAY_BLOCK
from quadgrad._core.result import Result
from quadgrad._core.tolerance import returned_dtype
from quadgrad._core.verbs.cut import replay_cut
from quadgrad._core.verbs.inputs import flatten, flatten_box
from quadgrad._core.verbs.regions import open_region

__all__ = ["replay"]


@names_ours
def replay(
    f: Callable[..., Any],
    plan: Plan,
    a: Any = None,
    b: Any = None,
    args: Any = (),
    *,
    region: Any = None,
    points: Any = None,
    log: bool = False,
) -> Tensor:
    """Integrate f on the cells of a plan: no search, no error estimate, no waiting for the device.

    Compiles with ``torch.compile(fullgraph=True)``. The plan is trusted; to have it checked, pass it to
    :func:`quadgrad.quad` instead.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` as for :func:`quadgrad.quad`.
    plan : Plan
        From an earlier :class:`quadgrad.Result`.
    a, b : float or Tensor
        Limits, finite or infinite as the plan's were; broadcast to the plan's batch. Of boxes their corners,
        ``(*batch, d)``.
    args : tuple
        Further arguments of f.
    region : Ball, Sphere, Simplex, Nested, Where or Boundary, optional
        As for :func:`quadgrad.cubature`, of the kind that the plan was made for. Where a function cuts it out of
        boxes its zeros are looked for in the plan's cells, which waits for the device, does not compile whole, and
        is not for ``torch.func.vmap``.
    points : Tensor, optional
        As many breakpoints as the plan was made with.
    log : bool
        Whether f returns a logarithm, as for :func:`quadgrad.quad`: then that of the sum is returned, NaN where
        ``a > b``. f is called once more, for the scale of the sum.

    Returns
    -------
    Tensor, shape ``batch + event``
        The integrals, differentiable with respect to everything.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> plan = qg.quad(torch.sin, 0.0, torch.tensor(1.0)).plan
    >>> qg.replay(torch.sin, plan, 0.0, torch.tensor(2.0))
    tensor(1.4161)
    """
    if not isinstance(plan, Plan):
        hint = ": pass result.plan" if isinstance(plan, Result) else ", after f: replay(f, plan, a, b)"
        raise TypeError(f"a plan of quadgrad.quad or cubature is needed, not {type(plan).__name__}{hint}")
    with WithoutAutocast() as unaided:
        f = unaided.restore(f)
        if isinstance(plan, CutPlan):
            if not isinstance(region, Where | Boundary):
                raise TypeError("the plan is one of a Where or Boundary: pass region=, as it was made with")
            _refuse_points(points, log)
            return replay_cut(f, plan, a, b, args, region)
        f, a, b, args, _ = open_region("replay", f, a, b, args, region, True)
        if isinstance(plan, BoxPlan):
            return _replay_boxes(f, plan, a, b, args, points, log)
        pieces = 1 if points is None else 1 + stack_points(points).shape[-1]
        if not isinstance(plan, IntervalPlan):
            raise TypeError(f"a plan of quadgrad.quad or cubature is needed, not {type(plan).__name__}")
        if plan.pieces - plan.found != pieces:
            made = plan.pieces - plan.found - 1
            raise ValueError(f"the plan was made with {made} breakpoints for each integral")
        try:
            integrand, limits, *_ = flatten(f, a, b, args, points, trusted=plan)
        except RuntimeError as error:
            raise ValueError(
                f"an input does not broadcast to the plan's batch {plan.batch_shape}: {error}"
            ) from None
        limits = limits.with_found(plan.places, plan.batch)
        treatment, shift = None, None
        if log:
            shift = shift_on_plan(integrand, plan, limits.detach().pieces(), REPLAY_BLOCK)
            integrand = attach_shift(integrand, shift)
        if any(carries_gradient(mark) for mark in limits.marks):
            singular = singular_marks(integrand, limits, plan.batch)
            treatment = Treatment(singular, tuple(mask & False for mask in singular), singular)
        value = replay_with_limits(integrand, plan, limits, treatment, chunk_size=None)
        value = value if shift is None else take_logarithm(value, shift)
        return _returned(integrand, plan, value)


def _replay_boxes(
    f: Callable[..., Any], plan: BoxPlan, a: Any, b: Any, args: Any, points: Any, log: bool
) -> Tensor:
    """Return the sum over a plan of boxes."""
    _refuse_points(points, log)
    try:
        integrand, box, *_ = flatten_box(f, a, b, args, trusted=plan)
    except RuntimeError as error:
        raise ValueError(f"an input does not broadcast to the plan's batch {plan.batch_shape}: {error}") from None
    return _returned(integrand, plan, replay_boxes(integrand, plan, box, chunk_size=None))


def _refuse_points(points: Any, log: bool) -> None:
    if points is not None or log:
        raise ValueError("a plan of boxes has neither points nor log=True")


def _returned(integrand: Integrand, plan: Plan, value: Tensor) -> Tensor:
    """Return integrals in the shape of the batch, in the dtype that a verb returns."""
    dtype = returned_dtype(integrand.call_dtype, torch.float32)
    value = value.to(dtype.to_complex() if value.is_complex() else dtype)
    return value.reshape(plan.batch_shape + tuple(value.shape[1:]))
