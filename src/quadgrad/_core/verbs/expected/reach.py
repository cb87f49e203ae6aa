"""What derivatives can reach: f is called once, at a few draws, before a method is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform, without_derivatives
from quadgrad._core.closure import Closure, stand_in, uncompiled
from quadgrad._core.distributions.transport import draw, uniforms
from quadgrad._core.errors import SeveredGradientWarning, prescription, warn
from quadgrad._core.integrand import tensor_and_ndim
from quadgrad._core.lanes import plain
from quadgrad._core.points import make_sequence
from quadgrad._core.points.joe_kuo import DIMENSIONS
from quadgrad._core.verbs.expected.question import Question

__all__ = ["Reach", "look", "warn_of_severed"]

DRAWS = 16
"""Draws for each expectation at which f is called."""


@dataclass(frozen=True)
class Reach:
    """What f's values depend on, as far as torch knows.

    ``by_draws`` tells whether their derivatives by the draws are there and not all 0, ``density`` whether the
    distribution has one. ``severed`` are the numbers of arguments that require grad, and that no value depends on;
    ``closed`` tells that f uses other tensors that require grad, without any value depending on one. ``own``: f
    depends on something else that carries a gradient than the draws. ``varies``: not all draws have the same value.
    ``steps``: no derivative by the draws is there, and values are few, so that f is constant but for jumps.
    """

    by_draws: bool
    density: bool
    severed: tuple[int, ...] = ()
    closed: bool = False
    own: bool = False
    varies: bool = False
    steps: bool = False


def look(question: Question) -> Reach:
    """Call f at a few draws."""
    with without_derivatives():
        x = _draws(question)
    if x is None:
        still = question.still()
        shape = (*still.batch_shape, *still.event_shape)
        anywhere = torch.full(shape, 0.5, dtype=question.wide, device=question.device)
        return Reach(by_draws=True, density=_has_density(question, anywhere))
    density = _has_density(question, x)
    args = [tensor_and_ndim(a)[0] for a in question.args]
    if in_transform():
        by_draws, steps = _look_under_transform(question, x, args)
        return Reach(by_draws, density, steps=steps)
    continuous = x.is_floating_point()
    closure = Closure()
    with torch.enable_grad(), uncompiled:
        places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        given = [stand_in(args[i], connected=False) for i in places]
        for i, tensor in zip(places, given, strict=True):
            args[i] = tensor
        leaf = x.detach().requires_grad_() if continuous else x
        start = leaf.view_as(leaf)
        y = closure.around(lambda x, *args: _all_values(question, x, args))(start, *args)
        inputs = [leaf, *given] if continuous else given
        slopes: list[Any] = [None] * len(inputs)
        if y.requires_grad and inputs:
            weight = torch.rand(y.shape, dtype=y.dtype, device=y.device, generator=_generator(y.device))
            # A cotangent of its own given to grad would load SymPy.
            slopes = list(torch.autograd.grad((y * weight).sum().real, inputs, allow_unused=True))
    path = continuous and slopes[0] is not None
    by_draws = path and bool((slopes[0] != 0.0).any())
    slopes = slopes[1:] if continuous else slopes
    severed = tuple(i for i, slope in zip(places, slopes, strict=True) if slope is None)
    with torch.enable_grad(), uncompiled:
        still = [a.detach() if isinstance(a, Tensor) else a for a in args]
        closed = bool(closure.tensors) and not _all_values(question, x.detach(), still).requires_grad
    own = any(slope is not None for slope in slopes) or (bool(closure.tensors) and not closed)
    varies = bool((y.detach() != y.detach()[:1]).any())
    return Reach(by_draws, density, severed, closed, own, varies, not path and _are_few(y.detach()))


def _are_few(y: Tensor, dim: int = 0) -> bool:
    """Tell whether no more than half of the values along a dimension are different ones."""
    each = (torch.view_as_real(y) if y.is_complex() else y).sort(dim).values
    return bool(((each.diff(dim=dim) != 0.0).sum(dim) < DRAWS // 2).all())


def _all_values(question: Question, x: Tensor, args: Any) -> Tensor:
    y, weight = question.values(x, args)
    columns = question.columns(y)
    return columns if weight is None else torch.cat((columns, weight[..., None].to(columns.dtype)), dim=-1)


def _generator(device: torch.device) -> torch.Generator:
    """Return one of our own: the global one is nobody's business here."""
    generator = torch.Generator(device)
    generator.manual_seed(0)
    return generator


def _draws(question: Question) -> Tensor | None:
    """Return draws ``(16, *batch, *event)``; None if no way to any is known."""
    still = question.still()
    shape = (DRAWS, *question.batch_shape, *still.event_shape)
    try:
        d = uniforms(still)
        u = make_sequence("sobol" if d <= DIMENSIONS else "random", d, device=question.device).points(0, DRAWS)[0]
        u = u.to(question.wide).reshape(DRAWS, *(1,) * len(question.batch_shape), d)
        x, weights = draw(still, u.expand(DRAWS, *question.batch_shape, d))
        x = x if weights is None else x[0]
    except ValueError:
        try:
            x = still.mean[None]
        except NotImplementedError:
            return None
        x = torch.where(x.isfinite(), x, 0.5)
    x = x.expand(shape)
    return x.to(question.dtype) if x.is_floating_point() else x


def _has_density(question: Question, x: Tensor) -> bool:
    try:
        with without_derivatives():
            question.still().log_prob(x.to(question.wide) if x.is_floating_point() else x)
    except NotImplementedError:
        return False
    except RuntimeError:  # some of torch's own do not bear every dtype
        return False
    return True


def _look_under_transform(question: Question, x: Tensor, args: list[Any]) -> tuple[bool, bool]:
    """Tell ``by_draws`` and ``steps`` where a transform is open, by a product with the Jacobian."""
    try:
        by_draws = False
        if x.is_floating_point():
            y, pull = cast(Any, torch.func.vjp(lambda x: _all_values(question, x, args), x))
            (slope,) = pull(torch.ones_like(y))
            by_draws = bool((plain(slope) != 0.0).any())
        else:
            y = _all_values(question, x, args)
        values = plain(y)
        return by_draws, not by_draws and _are_few(values, values.ndim - y.ndim)  # lanes are in front
    except RuntimeError:  # f may not bear it
        return True, False


def warn_of_severed(reach: Reach) -> None:
    """Warn of what requires grad and is used for a hard decision only, or leaves torch."""
    reasons = [f"args[{', '.join(map(str, reach.severed))}] requires grad"] if reach.severed else []
    if reach.closed:
        reasons.append("f uses tensors that require grad, such as a network's weights")
    if reasons:
        warn(
            f"{' and '.join(reasons)}, but f's values do not depend on them through torch: they decide by "
            "comparison (>, argmax, round), or something leaves torch (.item(), NumPy). Their gradient is missing, "
            "whatever the estimator: those of the distribution's parameters are there. Make the decision soft, or "
            "a random one whose probability is a parameter of the distribution; or detach them"
            f"{prescription()}",
            SeveredGradientWarning,
        )
