"""What is said when integrals fail, once for each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quadgrad._core._torch import carries_derivative, in_transform
from quadgrad._core.errors import (
    IntegrationError,
    IntegrationWarning,
    SeveredGradientWarning,
    UnmarkedJumpWarning,
    prescription,
    speaker,
    warn,
)
from quadgrad._core.gradient.error import gradient_error
from quadgrad._core.lanes import plain
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.problem import Problem
from quadgrad._core.result import Derivative, Result, describe
from quadgrad._core.status import Status
from quadgrad._core.verbs.escapes import escaped

__all__ = ["any_failed", "did_fail", "report", "severed", "warn_if_severed"]


def report(
    result: Result,
    inner: InnerRecord,
    outer: InnerRecord | None,
    on_failure: Literal["warn", "raise", "ignore"],
    log: bool = False,
) -> None:
    """Warn, raise or tell the surrounding integral about failures of this call and of those inside it."""
    _report_jump(inner, outer)
    sentences = [_count("integrals", result, result.detail)]
    if result.derivative is not None:
        sentences.append(_count("derivatives", result.derivative))
    if outer is not None:
        failures = dict(inner.failures)
        failed = did_fail(result.status)
        if bool(failed.any()):
            sentence = describe(result.status[failed], result.plan) + result.detail
            failures[sentence] = failures.get(sentence, 0) + int(failed.sum())
        value, error = plain(result.value).detach(), plain(result.error)
        # The error of a logarithm is the relative one of what it is the logarithm of.
        outer.hear(error, torch.ones_like(value) if log else value, failures)
        _show(result, outer)
    if on_failure == "ignore" or (on_failure == "warn" and outer is not None):
        return
    sentences += [
        f"{count} integrals inside the integrand did not converge. {sentence}"
        for sentence, count in inner.failures.items()
    ]
    text = " ".join(filter(None, sentences))
    if text and on_failure == "raise":
        raise IntegrationError(text)
    if text:
        warn(text, IntegrationWarning)


@dataclass(frozen=True)
class InnerIntegral:
    """An integral inside f, which knows how wrong it is and its gradient; see :class:`Uncertain`."""

    result: Result

    @property
    def outputs(self) -> tuple[Tensor]:
        """The integral, in the graph."""
        return (self.result.value,)

    @property
    def errors(self) -> tuple[Tensor]:
        """Its error."""
        return (self.result.error,)

    def gradient_errors(self, cotangents: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return how wrong its gradients are, as :func:`quadgrad.gradient_error` tells."""
        errors = gradient_error(self.result, tuple(tensors), cotangents[0])
        assert isinstance(errors, tuple)
        return errors


def _show(result: Result, outer: InnerRecord) -> None:
    """Show an integral whose derivative may be asked for to whoever collects such."""
    if outer.uncertain is None or not carries_derivative(result.value):
        return
    if in_transform() or result.primal is None:
        outer.hidden = True
    else:
        outer.uncertain.append(InnerIntegral(result))


def _count(what: str, found: Result | Derivative, detail: str = "") -> str:
    """Say how many did not converge, and why, or nothing."""
    failed = int(did_fail(found.status).sum())
    why = f"{failed} of {found.status.numel()} {what} did not converge. "
    return why + describe(found.status, found.plan) + detail if failed else ""


def any_failed(status: Tensor) -> bool:
    """Whether any integral has not converged: to read the one status of a single integral takes a tenth as long."""
    return bool(status.item()) if status.numel() == 1 else bool(status.any())


def did_fail(status: Tensor) -> Tensor:
    """Whether integrals did not become what was asked for: a fixed sample was not asked to converge."""
    return (status != int(Status.CONVERGED)) & (status != int(Status.SAMPLED))


def _report_jump(inner: InnerRecord, outer: InnerRecord | None) -> None:
    if outer is not None:
        outer.jump = outer.jump or inner.jump
    elif inner.jump:
        warn(inner.jump, UnmarkedJumpWarning)


def severed(problem: Problem, probe: Tensor) -> list[str]:
    """Return the names of what requires grad, args and what f closes over, if f's output does not.

    None where a breakpoint requires grad: then f may rightly depend on the argument by comparison only.
    """
    if not torch.is_grad_enabled() or probe.requires_grad or in_transform() or not problem.batch:
        return []
    points = getattr(problem.limits, "points", None)
    if points is not None and points.requires_grad:
        return []
    values = [argument.value for argument in problem.integrand.arguments]
    lost = [f"args[{i}]" for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    return lost + escaped(problem)


def _edges() -> str:
    """Say how an edge that a comparison makes is differentiated."""
    if speaker.get() is not None:
        return ""
    return "An edge that moves goes into points or jumps of quad, into region=Where of cubature and qmc. "


def warn_if_severed(lost: list[str], called: str = "") -> None:
    """Warn of what requires grad although f's output does not; and say how the line is found.

    ``called`` is what is to be added to the call so that it gives a number.
    """
    if lost:
        warn(
            f"{' and '.join(lost)} require{'s' * (len(lost) == 1)} grad, but the integrand's output does not: "
            "something inside it leaves torch (.item(), float(), .detach(), NumPy) or decides by comparison "
            "(>, argmax, round), and the gradient is lost. quadgrad.bridge.wrap differentiates what leaves torch. "
            f"{_edges()}If no gradient is meant, pass it detached{prescription(called)}",
            SeveredGradientWarning,
        )
