"""Where a distribution in one dimension lives: limits that move with its parameters, its centre and its width."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    ``(*batch, k)`` divide it.
    """

    a: End
    b: End
    anchor: Tensor
    scale: Tensor
    points: Tensor | None


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
    ends = [torch.as_tensor(end, dtype=torch.float64) for end in limits_of(distribution.base_dist)]
    rising = True
    for transform in distribution.transforms:
        if not transform.bijective:
            raise ValueError(f"{type(transform).__name__} is not monotone: the ends of its image are not known")
        sign = transform.sign
        signs = plain(sign.sign() if isinstance(sign, Tensor) else torch.tensor(sign)).flatten()
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
    try:
        support = distribution.support
    except (NotImplementedError, AttributeError):
        return False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    moving = any(isinstance(bound, Tensor) and bound.is_floating_point() for bound in bounds)
    return moving and not bool(getattr(support, "is_discrete", False))


def _is_whole(distribution: Any) -> bool:
    """Whether the support is known to be all numbers."""
    try:
        support = distribution.support
    except (NotImplementedError, AttributeError):
        return False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _has_tensors(transform: Any) -> bool:
    inner = [getattr(transform, "base_transform", None), *getattr(transform, "parts", [])]
    if any(_has_tensors(t) for t in inner if t is not None):
        return True
    return any(isinstance(v, Tensor | torch.nn.Module) for v in vars(transform).values())


def lay_out_line(distribution: Any, still: Any, dtype: torch.dtype, device: torch.device) -> Line:
    """Return the line over which a distribution is integrated; ``still`` is the same one without gradient."""
    ends = [e.to(dtype) if isinstance(e, Tensor) else float(e) for e in limits_of(distribution)]
    finite = [isinstance(e, Tensor) or math.isfinite(e) for e in ends]
    places = _quantiles(still, dtype, device)
    zero, one = (torch.full((), v, dtype=dtype, device=device) for v in (0.0, 1.0))
    if all(finite) or places is None:
        anchor, scale = zero, one
    elif any(finite):
        # Near the end a density may be singular: there z, not x, must be exact.
        end = ends[0] if finite[0] else ends[1]
        anchor = end.detach() if isinstance(end, Tensor) else zero + end
        reach = (places[..., -1] if finite[0] else places[..., 0]) - anchor
        scale = _positive(reach.abs())
    else:
        anchor = places[..., 2]
        scale = _positive((places[..., 3] - places[..., 1]) / NORMAL_QUARTILES)
        anchor = torch.where(anchor.isfinite(), anchor, 0.0)
    a, b = ((e - anchor) / scale if isinstance(e, Tensor) or math.isfinite(e) else e for e in ends)
    points = None
    if places is not None:
        points = (places - anchor[..., None]) / scale[..., None]
        points = torch.cat((points[..., :1], points[..., 2:3], points[..., 4:]), dim=-1)
        points = torch.where(points.isfinite(), points, torch.nan)
    return Line(a, b, anchor, scale, points)


def _positive(width: Tensor) -> Tensor:
    return torch.where((width > 0.0) & width.isfinite(), width, 1.0)


def _quantiles(still: Any, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return five quantiles ``(*batch, 5)``, then those of a mixture's components; None if none is known."""
    with torch.no_grad():
        u = torch.tensor(QUANTILES, dtype=dtype, device=device)
        shape = (5, *(1,) * len(still.batch_shape), 1)
        try:
            uniforms(still)
            x, weights = draw(still, u.reshape(shape).expand(5, *still.batch_shape, 1))
        except ValueError:
            return _moments(still, dtype)
        if weights is None:
            return x.to(dtype).movedim(0, -1)
        each = x.to(dtype).movedim(1, -1)  # (components, *batch, 5)
        outer = torch.stack(
            (each[..., 0].amin(0), each[..., 1].amin(0), (weights * each[..., 2]).sum(0), each[..., 3].amax(0),
             each[..., 4].amax(0)), dim=-1,
        )  # fmt: skip
        inner = each[..., [0, 2, 4]].movedim(0, -2).flatten(-2)
        return torch.cat((outer, inner), dim=-1)


def _moments(still: Any, dtype: torch.dtype) -> Tensor | None:
    """Return what the quantiles would be if the distribution were normal."""
    try:
        mean, deviation = still.mean.to(dtype), still.stddev.to(dtype)
    except NotImplementedError:
        return None
    z = torch.special.ndtri(torch.tensor(QUANTILES, dtype=dtype, device=mean.device))
    return mean[..., None] + deviation[..., None] * z
