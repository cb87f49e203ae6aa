"""Integrands that are not deterministic are refused: their derivative would be that of other numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad.errors import IntegrandError
from quadgrad.integrand import Integrand
from quadgrad.lanes import somewhere
from quadgrad.limits import Limits
from quadgrad.maps import frame
from quadgrad.plan import Plan
from quadgrad.search.estimate import largest_component

__all__ = ["refuse_disagreement", "refuse_noise"]

_NOISY = (
    "the integrand is not deterministic: called again at the same nodes it gave other values than before. Switch "
    "dropout off (module.eval()), draw random numbers before the call and pass them in args"
)


def refuse_noise(integrand: Integrand, plan: Plan, limits: Limits) -> None:
    """Call f twice at the same nodes."""
    if len(plan) == 0:
        return
    dtype = limits.a.dtype
    layout = frame(limits.pieces(), plan.row[:1], plan.start[:1].to(dtype), plan.stop[:1].to(dtype))
    with torch.no_grad():
        x, _ = layout.nodes(plan.tau.to(dtype), slice(0, 1))
        once, again = (integrand(x, plan.owner[:1]).detach() for _ in range(2))
    differs = (once - again).abs() > torch.finfo(dtype).eps ** 0.5 * once.abs()
    if bool(somewhere(differs).any()):
        raise IntegrandError(_NOISY)


def refuse_disagreement(replayed: Tensor, searched: Tensor, error: Tensor, block: int) -> None:
    """Compare what replay and search have found, given the error of the latter, ``block`` integrals at a time."""
    found = replayed.detach()
    parts = (slice(first, first + block) for first in range(0, error.shape[0], block))
    if any(_disagrees(found[part], searched[part], error[part]) for part in parts):
        raise IntegrandError(_NOISY)


def _disagrees(replayed: Tensor, searched: Tensor, error: Tensor) -> bool:
    gap = largest_component((replayed - searched).abs())
    agrees = (gap <= error) | error.isinf()  # a NaN agrees with nothing
    return bool(somewhere(~agrees).any())
