"""Where a distribution in one dimension lives: limits that move with its parameters, its centre and its width."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution, constraints

from quadgrad._core.distributions.transport import draw, uniforms
from quadgrad._core.lanes import plain

__all__ = ["Line", "lay_out_line", "limits_of", "support_moves"]

QUANTILES = (1e-3, 0.25, 0.5, 0.75, 1.0 - 1e-3)
"""Where the line is divided, and what its width is: one half may be a needle beside the other."""

NORMAL_QUARTILES = 1.349
"""How far apart the quartiles of a standard normal distribution are."""

End = float | Tensor


@dataclass(frozen=True)
class Line:
    """The support as the image of a stretch of z, ``x = anchor + scale * z``, where the distribution is of order 1.

    ``a``, ``b`` are limits in z, which carry the gradient of the support's; the others are fixed. ``points``
    ``(*batch, k)`` divide it, and ``inner`` is a harmless x.
    """

    a: End
    b: End
    anchor: Tensor
    scale: Tensor
    points: Tensor | None
    inner: Tensor


def limits_of(distribution: Any) -> tuple[End, End]:
    """Return the ends of the support of a distribution in one dimension.

    Raises
    ------
    ValueError
        If they are not known.
    """
    if isinstance(distribution, distributions.VonMises):  # its density has a period, and the support it names none
        return -math.pi, math.pi
    if type(distribution) is TransformedDistribution:
        return _through(distribution)
    if isinstance(distribution, MixtureSameFamily):
        ends = limits_of(distribution.component_distribution)
        if any(isinstance(end, Tensor) for end in ends):
            raise ValueError("the components of the mixture have supports of their own, where its density jumps")
        return ends
    try:
        return _ends(distribution.support)
    except NotImplementedError:
        return -math.inf, math.inf


def _ends(support: Any) -> tuple[End, End]:
    lower, upper = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    if isinstance(support, constraints.independent):
        raise ValueError("the support is not one in one dimension")
    return lower, upper


def _through(distribution: Any) -> tuple[End, End]:
    """Return the ends of the image of the base's support: what torch says of it may be all numbers."""
    ends = [
        end.double() if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64, device="cpu")
        for end in limits_of(distribution.base_dist)
    ]
    rising = True
    for transform in distribution.transforms:
        if not transform.bijective:
            raise ValueError(f"{type(transform).__name__} is not monotone: the ends of its image are not known")
        sign = transform.sign
        signs = plain(sign.sign() if isinstance(sign, Tensor) else torch.tensor(sign, device="cpu")).flatten()
        if bool((signs != signs[0]).any()):
            raise ValueError("the transforms rise in some integrals and fall in others")
        rising = rising == bool(signs[0] > 0)
        # What infinity is mapped to does not move, and its derivative would be NaN.
        ends = [
            transform(end.detach()).detach() if bool(plain(end).isinf().all()) else transform(end) for end in ends
        ]
    lower, upper = ends if rising else ends[::-1]
    if any(bool(plain(end).isnan().any()) for end in (lower, upper)):
        raise ValueError("the transforms do not tell the ends of their image")
    infinite = [bool(plain(end).isinf().all()) for end in (lower, upper)]
    return -math.inf if infinite[0] else lower, math.inf if infinite[1] else upper


def support_moves(distribution: Any) -> bool:
    """Whether parameters may move the support: then weights of densities do not tell how expectations change."""
    if isinstance(distribution, Independent):
        return support_moves(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return support_moves(distribution.component_distribution)
    if type(distribution) is TransformedDistribution:
        if support_moves(distribution.base_dist):
            return True
        return not _is_whole(distribution.base_dist) and any(map(_has_tensors, distribution.transforms))
    support = _constraint(distribution)
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    moving = any(isinstance(bound, Tensor) and bound.is_floating_point() for bound in bounds)
    return moving and not bool(getattr(support, "is_discrete", False))


def _is_whole(distribution: Any) -> bool:
    """Whether the support is known to be all numbers."""
    return any(_constraint(distribution) is whole for whole in (constraints.real, constraints.real_vector))


def _constraint(distribution: Any) -> Any:
    """Return what torch says of each number of a value; None if it says nothing."""
    try:
        support = distribution.support
    except (NotImplementedError, AttributeError):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _has_tensors(transform: Any) -> bool:
    inner = [getattr(transform, "base_transform", None), *getattr(transform, "parts", [])]
    if any(_has_tensors(t) for t in inner if t is not None):
        return True
    return any(isinstance(v, Tensor | torch.nn.Module) for v in vars(transform).values())


def lay_out_line(distribution: Any, still: Any, dtype: torch.dtype, device: torch.device) -> Line:
    """Return the line over which a distribution is integrated; ``still`` is the same one without gradient.

    Each component of a mixture has its own anchor, scale and inner x, along the last dimension.
    """
    if isinstance(distribution, MixtureSameFamily):
        limits_of(distribution)
        components = distribution.component_distribution, still.component_distribution
        line = lay_out_line(*components, dtype, device)
        ends = [e.expand(line.anchor.shape)[..., 0] if isinstance(e, Tensor) else e for e in (line.a, line.b)]
        points = line.points
        if points is not None:
            points = torch.stack(
                (points[..., 0].amin(-1), points[..., 1].mean(-1), points[..., 2].amax(-1)), dim=-1
            )
        return replace(line, a=ends[0], b=ends[1], points=points)
    ends = [e.to(dtype) if isinstance(e, Tensor) else float(e) for e in limits_of(distribution)]
    finite = [isinstance(e, Tensor) or math.isfinite(e) for e in ends]
    places = _quantiles(still, dtype, device)
    zero, one = (torch.full(still.batch_shape, v, dtype=dtype, device=device) for v in (0.0, 1.0))
    if all(finite) or places is None:
        anchor, scale = zero, one
        inner = sum(0.5 * (e.detach() if isinstance(e, Tensor) else e) for e in ends) if all(finite) else 0.0
    elif any(finite):
        # Near the end a density may be singular: there z, not x, must be exact.
        end = ends[0] if finite[0] else ends[1]
        anchor = zero + (end.detach() if isinstance(end, Tensor) else end)
        reach = (places[..., -1] if finite[0] else places[..., 0]) - anchor
        scale = _positive(reach.abs())
        inner = anchor + scale if finite[0] else anchor - scale
    else:
        inner = anchor = torch.where(places[..., 2].isfinite(), places[..., 2], 0.0)
        scale = _positive((places[..., 3] - places[..., 1]) / NORMAL_QUARTILES)
    a, b = ((e - anchor) / scale if isinstance(e, Tensor) or math.isfinite(e) else e for e in ends)
    points = None
    if places is not None:
        points = (places[..., ::2] - anchor[..., None]) / scale[..., None]
        points = torch.where(points.isfinite(), points, torch.nan)
    return Line(a, b, anchor, scale, points, zero + inner)


def _positive(width: Tensor) -> Tensor:
    return torch.where((width > 0.0) & width.isfinite(), width, 1.0)


def _quantiles(still: Any, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return five quantiles ``(*batch, 5)``; None if none is known."""
    with torch.no_grad():
        u = torch.tensor(QUANTILES, dtype=dtype, device=device)
        shape = (5, *(1,) * len(still.batch_shape), 1)
        try:
            uniforms(still)
        except ValueError:
            return _moments(still, dtype)
        return draw(still, u.reshape(shape).expand(5, *still.batch_shape, 1))[0].to(dtype).movedim(0, -1)


def _moments(still: Any, dtype: torch.dtype) -> Tensor | None:
    """Return what the quantiles would be if the distribution were normal."""
    try:
        mean, deviation = still.mean.to(dtype), still.stddev.to(dtype)
    except NotImplementedError:
        return None
    z = torch.special.ndtri(torch.tensor(QUANTILES, dtype=dtype, device=mean.device))
    return mean[..., None] + deviation[..., None] * z
