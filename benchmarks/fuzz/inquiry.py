"""What is asked of a claim that was wrong: is it the rounding of f, and could it have been seen?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.fuzz.claims import Claims
from benchmarks.fuzz.sample import Sample, join
from benchmarks.fuzz.ways import WAYS, Call, call, lanes

__all__ = ["contrast", "rounding"]

FAINT = 1e4
"""Nothing below so many times the smallest normal number is a scale."""


def rounding(way: str, this: Call, claims: Claims) -> tuple[float, float]:
    """Return the error that rounding explains, and the integral of the modulus."""
    sample = this.sample
    if "events" in way or "complex" in way:
        assert this.other is not None
        sample = join(sample, this.other, as_complex="complex" in way)
    if "float32" in way:
        sample = sample.to(torch.float32)
    return _noise(sample, claims)


def _noise(sample: Sample, claims: Claims) -> tuple[float, float]:
    """Return what a step of one ulp in x and 2 eps of f make of the sum on the cells of a call; the sum of moduli.

    That is 4 standard deviations of the sum of independent steps, plus 2 eps times the integral of the modulus.
    """
    dtype = sample.a.dtype
    eps = torch.finfo(dtype).eps
    if claims.place is not None and claims.place < 2:
        end = (sample.a, sample.b)[claims.place].reshape(1, 1)
        read, near = (_values(sample, x, None) for x in (end, end * (1 + 2 * eps)))
        return 4 * float((near - read).abs().sum() + eps * read.abs().sum()), float(read.abs().sum())
    # On cells of the claim's own tolerance: on n times as many independent steps cancel to 1/sqrt(n) of that.
    plan = call(sample, rtol=claims.rtol).plan
    limits = (sample.a, sample.b, sample.marks())
    x, w = plan.nodes(*limits).to(dtype), plan.weights(*limits).double()
    near = torch.nextafter(x, torch.full_like(x, torch.inf))
    y, moved = (_values(sample, nodes, claims.place).reshape(*x.shape, -1) for nodes in (x, near))
    steps, sizes = (torch.nan_to_num(w * t.abs().sum(-1), 0.0, 0.0, 0.0) for t in (moved - y, y))
    size = float(sizes.sum())
    noise = 4 * float(steps.norm()) + 2 * eps * size
    if claims.log:
        whole = float(sample.exact().abs().max())
        noise, size = (n / whole if whole > 0 else 0.0 for n in (noise, size))
    return noise, size


def _values(sample: Sample, x: Tensor, place: int | None) -> Tensor:
    """Return f at nodes of one integral, or its derivative by a parameter; in double precision."""
    args = [arg.reshape(1, 1) for arg in sample.args]
    if place is None:
        y = sample.f(x, *args).detach()
        return y.to(torch.complex128) if y.is_complex() else y.double()
    moving = args[place - 2].expand_as(x).clone().requires_grad_()
    args[place - 2] = moving
    y = sample.f(x, *args)
    parts = torch.view_as_real(y).unbind(-1) if y.is_complex() else (y,)
    slopes = [
        torch.autograd.grad(part.sum(), moving, retain_graph=True, materialize_grads=True)[0] for part in parts
    ]
    return torch.stack(slopes, dim=-1).double()


def contrast(way: str, this: Call, seed: int, number: int = 0) -> float:
    """Return by how much f differs from f without its feature at any node of a call, over the scale of the latter.

    The call is that of the claim of this ``number``: what others of the same way saw, at a finer tolerance or with
    other parameters, is not known to it. Infinite where there is no hidden feature; of a pair that of the one that
    shows less.
    """
    watched: list[tuple[Sample, list[Any]]] = []

    def watch(sample: Sample) -> Sample:
        heard: list[Any] = []
        watched.append((sample, heard))

        def listen(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def spy(x: Tensor, *args: Tensor) -> Tensor:
                # The call that comes first asks for the shape at one place, of which search knows nothing: of a
                # batch that is a place of another integral.
                asks = x.numel() <= 1 and not heard
                heard.append(None if asks else tuple(t.detach().clone() for t in (x, *args)))
                return f(x, *args)

            return spy

        return replace(sample, f=listen(sample.f), log_f=listen(sample.log_f) if sample.log_f else None)

    if this.sample.without is None:
        return torch.inf
    again = Call(watch(this.sample), watch(this.other) if this.other else None, seed)
    shown: list[tuple[Sample, list[Any]]] = []
    for place, claims in enumerate((lanes if way == "vmap" else WAYS[way])(again)):
        if claims.place is None:  # derivatives are of the value before them
            shown = [(sample, list(heard)) for sample, heard in watched]
            for _, heard in watched:
                heard.clear()
        else:
            shown = [
                (sample, [*before, *heard]) for (sample, before), (_, heard) in zip(shown, watched, strict=True)
            ]
        if place == number:
            seen = [(sample, [block for block in heard if block is not None]) for sample, heard in shown]
            return min(
                (max(_contrast(sample, block) for block in heard) for sample, heard in seen if heard),
                default=torch.inf,
            )
    return torch.inf


def _contrast(sample: Sample, block: tuple[Tensor, ...]) -> float:
    """Return the largest difference at some nodes."""
    assert sample.without is not None
    y, plain = sample.f(*block), sample.without(*block)
    scale = max(float(plain.abs().max()), FAINT * torch.finfo(y.dtype).tiny)
    return float((y - plain).abs().max()) / scale
