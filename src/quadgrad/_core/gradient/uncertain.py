"""What integrals and wrapped functions inside f add to the errors of derivatives: they know how wrong they are.

Their sum on a plan is formed once more, with gradient. Each is asked how wrong the gradients of what it gave are,
times what the sum hands back to it; and where f is no multiple of what it gave, that is off, too, with the error of
the value itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.gradient.derivative import Variables, as_reals
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.rows import gradients, zeros
from quadgrad._core.integrand import Integrand
from quadgrad._core.nesting import InnerRecord, Uncertain
from quadgrad._core.reduce import align

__all__ = ["computes_with_uncertain", "errors_of_uncertain", "uncertain_errors_by"]


def computes_with_uncertain(integrand: Integrand, x: Tensor) -> bool:
    """Whether f computes with what may be wrong, told from one node ``x``."""
    with torch.enable_grad(), InnerRecord(uncertain=[]) as record:
        integrand.probe(x)
    return bool(record.uncertain or record.heard or record.hidden)


def errors_of_uncertain(
    replay: Callable[[], Tensor], weight: Tensor, tensors: Sequence[Tensor], depth: int
) -> list[Tensor]:
    """Return for each tensor the error of its gradient, of the replayed values times the weight.

    ``depth`` is that of the integral, on which depends how well those inside it are computed.
    """
    errors = [zeros(t) for t in tensors]
    with torch.enable_grad(), InnerRecord(uncertain=[], depth=depth, again=True) as record:
        value = replay()
    if record.hidden:  # in a transform of f's own, where nothing can be asked
        return [error + torch.inf for error in errors]
    parts = record.uncertain or []
    outputs = [y for part in parts for y in part.outputs]
    if not outputs or not value.requires_grad:
        return errors
    total = as_reals((value * weight.conj()).sum(), 0)[..., 0].sum()
    handed = iter(gradients(total, outputs))
    for part in parts:
        back = [next(handed) for _ in part.outputs]
        if all(one is None for one in back):
            continue
        back = [torch.zeros_like(y) if g is None else g for y, g in zip(part.outputs, back, strict=True)]
        errors = [e + more for e, more in zip(errors, part.gradient_errors(back, tensors), strict=True)]
    beside = [_beside(total, tensor, parts, outputs) for tensor in tensors]
    return [error + more for error, more in zip(errors, beside, strict=True)]


def uncertain_errors_by(primal: Primal, plan: Any, variables: Variables) -> Tensor | None:
    """Return what is added to the errors of derivatives with respect to variables, ``(batch, variables)``.

    Of each variable that of its worst entry; None if there is nothing, and inside transforms, where it cannot be
    told. What all integrals share gets the sum over all of them.
    """
    problem, batch = primal.problem, plan.batch
    f, limits = problem.integrand, problem.limits.detach()
    if in_transform() or not len(plan) or not variables.names:
        return None
    if not computes_with_uncertain(f, limits.inner_points(batch)[:1]):
        return None
    arguments, leaves = list(f.arguments), list[Tensor]()
    for i in variables.arguments:
        value = arguments[i].value.detach()
        leaves.append(value.expand(batch, *value.shape[1:]).clone().requires_grad_())
        arguments[i] = replace(arguments[i], value=leaves[-1], shared=False)
    apart = replace(problem, integrand=replace(f, arguments=tuple(arguments)), limits=limits, chunk_size=None)
    whole = replace(primal, problem=apart)
    tensors = (*leaves, *variables.parameters.tensors)
    errors = errors_of_uncertain(lambda: whole.replay(plan), primal.slope, tensors, problem.depth)
    each = [error.reshape(batch, -1).amax(1) for error in errors[: len(leaves)]]
    each += [error.amax().expand(batch) for error in errors[len(leaves) :]]
    return torch.stack(each, dim=1)


def _beside(total: Tensor, tensor: Tensor, parts: Sequence[Uncertain], outputs: Sequence[Tensor]) -> Tensor:
    """Return how wrong the gradient is because the values are, where f is no multiple of them."""
    off = [error for part in parts for error in part.errors]
    error = zeros(tensor)
    if all(one is None or not bool((one != 0.0).any()) for one in off):
        return error
    try:
        found: Any = torch.autograd.grad(total, (tensor,), create_graph=True, allow_unused=True)
        gradient = found[0]
        if gradient is None or not gradient.requires_grad:
            return error
        entries = as_reals(gradient, 0).flatten()
        if all(g is None for g in gradients(entries.sum(), outputs)):
            return error
        shifts = torch.stack([_shift(gradients(entry, outputs), off) for entry in entries]).to(error)
    except (RuntimeError, NotImplementedError):  # something has no second derivative
        return error + torch.inf
    return torch.linalg.vector_norm(shifts.unflatten(0, (*tensor.shape, -1)), dim=-1)


def _shift(slopes: Sequence[Tensor | None], off: Sequence[Tensor | None]) -> Tensor:
    """Return how far a number is off whose slopes by outputs are these, which are off."""
    parts = [
        (align(error, slope) * slope.abs()).nan_to_num(0.0, torch.inf).sum().double()
        for slope, error in zip(slopes, off, strict=True)
        if slope is not None and error is not None
    ]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)
