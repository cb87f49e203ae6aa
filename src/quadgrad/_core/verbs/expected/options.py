"""The options of a call, and how what the engine found becomes an answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.mode import Finished, GradientMode
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.ranks import Ranks
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.verbs.inputs import sampled_tolerances

__all__ = ["Options", "finish", "judge", "quietly", "size_of"]


@dataclass(frozen=True)
class Options:
    """How well, with how much, and by which derivative."""

    n: int | None
    replicates: int
    confidence: float
    seed: int | None
    plan: Any
    rtol: float | None
    atol: float
    gradient: GradientMode
    construction: str
    chunk_size: int | None
    ranks: Ranks

    def compared(self) -> dict[str, Any]:
        """Return what has to be the same on all ranks."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "ranks"}
        return own | {"plan": repr(self.plan)}

    @property
    def tolerances(self) -> tuple[float, float]:
        """The tolerances, the usual ones where none is given."""
        return sampled_tolerances(self.rtol, self.atol)

    @property
    def fixed(self) -> bool:
        """Whether n is asked for, and no tolerance."""
        return self.n is not None and (self.rtol, self.atol) == (None, 0.0)


def quietly(record: InnerRecord, compute: Callable[[], Result]) -> Result:
    """Return a result of the engine; what it would have warned of is entered in a record.

    Its own failure is not: that will be judged, and told, by the caller.
    """
    with InnerRecord(kept_by_a_verb=True) as inner:
        result = compute()
    failures = {sentence: n for sentence, n in inner.failures.items() if sentence != result.message}
    record.note(0.0, failures)
    record.jump = record.jump or inner.jump
    return result


def finish(result: Result, function: Callable[[Tensor], Tensor], batch_shape: tuple[int, ...]) -> Result:
    """Return a result whose value is a function of what was integrated, also for :func:`quadgrad.gradient_error`.

    ``function`` maps ``(batch, components)`` to ``(batch, *event)``.
    """
    raw = result.value
    flat = raw.reshape(math.prod(batch_shape), raw.shape[-1])
    value = function(flat)
    value = value.reshape((*batch_shape, *value.shape[1:]))
    primal = None if result.primal is None else Finished(result.primal, function)
    return replace(result, value=value, primal=primal)


def size_of(value: Tensor, rank: int) -> Tensor:
    """Return the modulus of the largest component of values ``(*batch, *event)``."""
    modulus = value.detach().abs()
    return modulus.flatten(rank).amax(rank) if modulus.ndim > rank else modulus


def judge(result: Result, error: Tensor, tolerances: tuple[float, float], noise: Tensor | None = None) -> Result:
    """Return a result with another error, no longer converged where that does not meet the tolerance.

    ``noise`` is an error that is accepted in any case, that of rounding where terms cancel.
    """
    value = result.value
    size = size_of(value, error.ndim)
    allowed = (tolerances[0] * size).clamp_min(tolerances[1])
    missed = (result.status == int(Status.CONVERGED)) & ~(
        error <= allowed if noise is None else error <= torch.maximum(allowed, noise)
    )
    status = torch.where(missed, int(Status.MAX_NFEV), result.status)
    return replace(result, error=error, status=status)
