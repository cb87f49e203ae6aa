"""What was searched, and the points at which it is asked for: the caller's own shapes and lanes, made flat."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import add_lanes, in_transform, outside_transforms, without_derivatives
from quadgrad._core.antiderivative.heights import Values
from quadgrad._core.antiderivative.places import Places
from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.lanes import Lanes, plain
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.problem import Problem

__all__ = ["Curve", "Points", "keep_inside", "receive", "thinking"]


@dataclass(frozen=True)
class Curve:
    """A searched problem and its curve, flattened over the batch and all lanes, without derivatives.

    ``signs`` ``(batch, 2)`` are the integrals of f's positive and negative part, ``error`` ``(batch,)`` that of the
    curve, ``sizes`` ``(batch,)`` the modulus of the integral from a to b. ``dtype`` is that of heights.
    """

    problem: Problem
    limits: Limits
    values: Values
    places: Places
    signs: Tensor
    error: Tensor
    sizes: Tensor
    dtype: torch.dtype
    lanes: Lanes | None = None


@dataclass(frozen=True)
class Points:
    """What the caller passed, flattened: ``(p,)``, and whose it is; ``restore`` gives results the caller's shape.

    ``fixed`` is the same without derivatives, ``eps`` the spacing of numbers of its dtype. Where f's derivatives
    are asked for, lanes that F was made without stay hidden in ``flat``: in each of them parameters have a gradient
    of their own. They stand in front of ``fixed``, and whatever is found for that is to be :meth:`lowered`.
    """

    flat: Tensor
    fixed: Tensor
    owner: Tensor
    restore: Callable[[Tensor], Tensor]
    eps: float
    hidden: Lanes | None = None

    @property
    def owners(self) -> Tensor:
        """Whose each of the fixed points is."""
        return self.owner if self.hidden is None else self.owner.repeat(self.hidden.count)

    def lowered(self, found: Tensor) -> Tensor:
        """Give each hidden lane what belongs to it."""
        return found if self.hidden is None else self.hidden.lower(found.reshape(self.hidden.count, -1))


@contextmanager
def thinking() -> Generator[None]:
    """Leave all transforms and derivatives."""
    outside: AbstractContextManager[Any] = outside_transforms() if in_transform() else nullcontext()
    with without_derivatives(), outside:
        yield


def receive(given: Any, name: str, curve: Curve, flows: bool) -> Points:
    """Broadcast what was passed with the batch, lanes of transforms included, and flatten it."""
    device, dtype = curve.limits.a.device, curve.limits.a.dtype
    if not isinstance(given, Tensor):  # Python numbers have no dtype of their own
        given = torch.as_tensor(given, dtype=None if hasattr(given, "dtype") else dtype, device="cpu")
    if given.is_complex():
        raise TypeError(f"{name} is a complex tensor ({given.dtype}): it must be real")
    own, made = curve.lanes, curve.problem.batch_shape
    batch = made[len(own.sizes) :] if own else made
    try:
        shape = broadcast_shapes(given.shape, batch)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(given.shape)} does not broadcast with the batch {tuple(batch)}: give each "
            f"integral several with shape (n, {', '.join('1' * len(batch))})"
        ) from None
    lanes = Lanes.of([given, *([own.carrier] if own else [])]) if in_transform() else None
    spread, sizes = given.to(device, dtype).expand(shape), lanes.sizes if lanes else ()
    # Lanes in which F was made stand beside its batch, all others in front, or stay hidden.
    mine = [i for i, level in enumerate(lanes.levels if lanes else ()) if own and level in own.levels]
    rest = [i for i in range(len(sizes)) if i not in mine]
    hidden = _lanes_of([lanes.levels[i] for i in rest], [sizes[i] for i in rest], device) if lanes else None
    hidden = hidden if rest and flows else None
    extra = len(shape) - len(batch)
    first, last = len(sizes) + extra, len(sizes) + len(shape)
    order = [*rest, *range(len(sizes), first), *mine, *range(first, last)]
    whole = (*sizes, *shape)
    count = 1 if hidden is None else hidden.count
    lifted = lanes.lift(spread) if lanes else spread
    flat = lifted.reshape(whole).permute(order).reshape(count, -1)
    flat = flat[0] if hidden is None else hidden.lower(flat)
    repeats = flat.numel() // max(1, curve.problem.batch)
    owner = torch.arange(curve.problem.batch, device=device).repeat(repeats)

    def restore(value: Tensor) -> Tensor:
        event = value.shape[1:]
        if lanes is None:
            return value.reshape((*shape, *event))
        if hidden is not None:
            value = hidden.lift(value)
        back = [order.index(i) for i in range(len(order))]
        value = value.reshape((*(whole[i] for i in order), *event))
        value = value.permute(*back, *range(len(order), len(order) + len(event)))
        return lanes.lower(value.reshape((lanes.count, *shape, *event)))

    with thinking():
        fixed = plain(flat).reshape(-1)
    eps = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    return Points(flat, fixed, owner, restore, eps, hidden)


def _lanes_of(levels: list[int], sizes: list[int], device: torch.device) -> Lanes:
    """Return some lanes of those around."""
    with outside_transforms():
        carrier = torch.zeros(sizes, device=device)
    return Lanes(tuple(levels), tuple(sizes), add_lanes(carrier, levels))


def keep_inside(points: Points, curve: Curve) -> Points:
    """Refuse points outside of their limits, but for the rounding of x, and put those onto them."""
    limits, batch = curve.limits, curve.problem.batch
    with thinking():
        ends = torch.stack([end.expand(batch) for end in (limits.a, limits.b)]).aminmax(dim=0)
        if batch == 1:
            low, high = ends.min, ends.max
        else:
            low, high = (end.index_select(0, points.owners) for end in ends)
        x, eps = points.fixed, 2.0 * max(limits.rounding.eps, points.eps)
        if x.numel() == 0:
            return points
        bad = (x < low) | (x > high)
        if not bool(bad.any()):
            return points
        bad = (x < low - eps * low.abs()) | (x > high + eps * high.abs())
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            which = int(points.owners[i])
            a, b = (float(end.expand(batch)[which]) for end in (limits.a, limits.b))
            of = f" of integral {which}" if batch > 1 else ""
            raise ValueError(
                f"x = {float(x[i]):.17g} is outside of the interval [{a:.10g}, {b:.10g}]{of}: F is known there "
                "alone. Make it on a wider interval"
            )
        return replace(points, fixed=torch.minimum(torch.maximum(x, low), high))
