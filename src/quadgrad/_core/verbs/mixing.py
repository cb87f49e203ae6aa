"""An integrand that mixes what it is called with is refused: what it gives for one x depends on those beside it.

It sums over ``args``, takes the first of them for all, or normalises by what it finds among the x. Since it is
called with many nodes of many integrals at once, its numbers would be wrong, and converge all the same.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from quadgrad._core.errors import IntegrandError
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.problem import Problem

__all__ = ["refuse_mixing"]

APART = 1e-3
"""Values that differ by more than this part of them are not the same: solvers inside f may share steps among its x,
whose tolerance is most often smaller, and what takes x as a whole is off by far more."""

ASIDE = 0.1875
"""How far off, relative to the interval, the x are that stand beside the one that is compared."""

_MIXES = (
    "the {} gives {:.6g} and {:.6g} for the same x, called with other x beside it: it takes x or args as a whole, "
    "as p[0], p[..., 0], p.sum(), x.max(), softmax and BatchNorm in training mode (net.eval()) do. It is called "
    "with many x of many integrals at once, and each entry of a tensor in args is another integral: pass a vector "
    "or matrix that belongs to one as quadgrad.element(t, ndim=k) and go over its last dimensions, or close over it"
)


def refuse_mixing(problem: Problem, probe: Tensor, index: int) -> None:
    """Compare what f gave for the integral ``index``, outside of transforms, with what it gives beside others.

    Of a single integral that was opened by the nodes of its first cell, f is called at three of them.

    Raises
    ------
    IntegrandError
        If they differ by more than rounding, or solvers inside f, make of them.
    """
    integrand, batch, opening = problem.integrand, problem.batch, problem.opening
    if not integrand.vectorized or (batch < 2 and opening is None):
        return
    if opening is not None:
        owner, at, step = slice(0, 1), -1, (opening.x.shape[0] - 1) // 2
        x, alone = opening.x[: 2 * step + 1 : step], probe[2 * step]
    elif problem.block < 3:
        return
    else:  # what is compared comes last: it is the first that is taken for all
        owner, at = torch.tensor([batch - 1, batch // 2, index], device=probe.device), (-1, -1)
        # Others than the one that is compared stand aside: where limits are shared all x would be the largest, too.
        limits = problem.limits.detach()
        aside, x = limits.inner_points(batch, ASIDE), limits.inner_points(batch)
        x = torch.cat((aside.index_select(0, owner[:2]), x.index_select(0, owner[2:])))[None]
        alone = probe[(0,) * (integrand.rank + 1)]
    record = current_record()
    own = InnerRecord(depth=record.depth if record else 1, again=True)  # what integrals inside f say is of no node
    with torch.no_grad() if problem.flowing else nullcontext(), own:
        together = integrand(x, owner)[at]
        if together.tolist() != alone.tolist():  # quicker than a comparison of tensors
            _refuse(problem, alone.detach(), together, x, owner)


def _refuse(problem: Problem, alone: Tensor, together: Tensor, x: Tensor, owner: Tensor | slice) -> None:
    """Raise if the values differ by more than rounding, and f is not random."""
    near = max(APART, problem.tolerance.rtol, problem.tolerance.eps**0.5)
    integrand = problem.integrand

    def differs(y: Tensor) -> Tensor:
        apart = (y - together).abs() > near * torch.maximum(y.abs(), together.abs())
        return apart | (y.isfinite() != together.isfinite())

    if not bool(differs(alone).any()):
        return
    # Calls of another length may be rounded otherwise, which f may amplify: not those of this one, beside others.
    apart = differs(together)
    for places in ((2, 2, 2), (0, 0, 2)):
        chosen = torch.tensor(places, device=x.device)
        own = owner if isinstance(owner, slice) else owner[chosen]
        apart = apart | differs(integrand(x.index_select(int(x.shape[0] == 1), chosen), own)[-1, -1])
    if bool(apart.any()) and not bool(differs(integrand(x, owner)[-1, -1]).any()):  # else it is random
        one, other = (y[apart].flatten()[0] for y in (alone, together))
        numbers = (y.item() if not y.is_complex() else abs(y.item()) for y in (one, other))
        raise IntegrandError(_MIXES.format(integrand.name, *numbers))
