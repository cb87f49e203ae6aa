"""Running integrals: what comes before the first one, and their errors. It knows no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.sampled.difference import rounding
from quadgrad._core.sampled.samples import Samples, as_tensor

__all__ = ["accumulate"]


def accumulate(
    samples: Samples, running: Tensor, initial: Any, gap_errors: Callable[[Samples], Tensor] | None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return running integrals for the true dx, after ``initial``, along the caller's dim, and errors if asked.

    Errors of gaps are added up without signs: those of neighbours need not cancel. So is rounding, a spacing for
    each addition, as sums run from one end to the other.
    """
    running = samples.scaled(running)
    first = None if initial is None else _first(initial, samples, running)
    if first is not None:
        running = torch.cat((first.expand(*running.shape[:-1], 1), running + first), -1)
    running = running.movedim(-1, samples.dim)
    if gap_errors is None:
        return running
    samples = samples.detached()
    noise = samples.count * rounding(samples)
    # Of two samples or fewer nothing is known.
    errors = gap_errors(samples) if samples.count >= 3 else torch.full_like(noise, torch.inf)
    errors = (errors + noise).cumsum(-1).nan_to_num(torch.inf, torch.inf)
    if first is not None:
        errors = torch.nn.functional.pad(errors, (1, 0))
    return running, errors.movedim(-1, samples.dim)


def _first(initial: Any, samples: Samples, running: Tensor) -> Tensor:
    """Return the integral at the first sample as ``(..., 1)``."""
    first = as_tensor("initial", initial, running.device)
    rows = running.shape[:-1]
    if first.ndim == 0:
        first = first.reshape(1)
    elif first.ndim == running.ndim and first.shape[samples.dim] == 1:
        first = first.movedim(samples.dim, -1)
    if first.shape[-1] != 1 or not all(
        p in (1, q) for p, q in zip(first.shape[:-1][::-1], rows[::-1], strict=False)
    ):
        raise ValueError(
            f"initial of shape {tuple(first.shape)} is neither a number nor one for each row: that has size 1 "
            f"along dim={samples.dim} and otherwise y's sizes, {tuple(rows)}"
        )
    if first.is_complex():
        return first.to(running.dtype.to_complex())
    return first.to(running.dtype)
