"""What quad claims about a sample, and the verdict on it.

A claim is one number with its reported error: the value of an integral, or one entry of a gradient. It is

* false success, if it converged, and the true error is above the tolerance *and* above the reported error;
* understated, if it converged, within the tolerance, and the true error is above the reported one;
* silent, if it converged and is NaN, or its error is, and no warning was given;

the true error in both taken less two ulp of the exact number, which is rounded once, and 1e-319 (1e-41 in single
precision) where nothing is normal. Whether that is the rounding of f itself, or cannot be seen, is found out for
each of these by itself (:mod:`benchmarks.fuzz.inquiry`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.fuzz.sample import Sample

__all__ = ["Claims", "Verdict", "value_claims"]

EPS = torch.finfo(torch.float64).eps
DENORMAL, DENORMAL_SINGLE = 1e-319, 1e-41
"""Thousands of times the smallest number there is: below it f itself is 0, or has hardly a digit."""


@dataclass(frozen=True)
class Claims:
    """Numbers, one an integral (with a trailing dimension where f has events), beside the truth.

    Attributes
    ----------
    what : str
        ``"value"``, or what it is the derivative by; a word on the call.
    found, exact : Tensor, shape (n,) or (n, events)
    reported, allowed : Tensor, shape (n,)
        The error as reported and as the tolerance allows it; NaN allows none (as of ``gradient_error``).
    converged : Tensor of bool, shape (n,)
    nodes : Tensor or None
        Evaluations of each integral.
    place : int or None
        Which limit or parameter the derivative is by; None for values.
    budget : int or None
        What no integral may spend more than.
    warned : bool
        Whether a warning was given.
    ended : Tensor of bool, or None
        Where a NaN would be silent, if not where ``converged``: derivatives whose error is infinite count as not
        converged, and yet must not be NaN without a word.
    chosen : Tensor or None
        Which integrals of the sample these are, if not all in order.
    log : bool
        Whether it is the logarithm.
    rtol : float
        What the value's cells were searched to.
    eps : float
        Of the dtype in which f was called.
    slack : float
        What share of the integral of the modulus of f, or of its derivative, is allowed at least: what cancels in
        all is not held against a tolerance that is relative to next to nothing.
    share : float or None
        Evaluations of a kept plan over those of fresh calls, where these need twenty cells or more.
    """

    what: str
    found: Tensor
    exact: Tensor
    reported: Tensor
    allowed: Tensor
    converged: Tensor
    nodes: Tensor | None = None
    place: int | None = None
    budget: int | None = None
    warned: bool = False
    log: bool = False
    rtol: float = 1e-9
    eps: float = EPS
    slack: float = 50 * EPS
    share: float | None = None
    ended: Tensor | None = None
    chosen: Tensor | None = None

    def judge(self) -> Verdict:
        """Compare all claims with the truth."""
        apart, size = (_largest(t) for t in (self.found.to(self.exact.dtype) - self.exact, self.exact))
        same = (self.found == self.exact).reshape(len(apart), -1).all(1)  # infinities too
        true = torch.where(same, 0.0, apart)
        broken = true.isnan() | self.reported.isnan()
        nothing = DENORMAL if self.eps <= EPS else DENORMAL_SINGLE
        least = self.reported.double() * (1 + 8 * EPS) + 2 * self.eps * size + nothing
        over = (true > least) & self.converged & ~broken
        beyond = over & ~(true <= self.allowed)
        visible = torch.maximum(true, (self.eps * size).clamp_min(nothing))
        ratio = (self.reported.double() / visible)[self.converged & ~broken]
        silent = broken & (self.converged if self.ended is None else self.ended) & (not self.warned)
        spent = self.nodes > self.budget if self.nodes is not None and self.budget else torch.zeros_like(over)
        return Verdict(true, beyond, over & ~beyond, silent, spent, ratio)


@dataclass(frozen=True)
class Verdict:
    """The true errors, masks of what is wrong, and how many times the true error was reported."""

    true: Tensor
    false: Tensor
    understated: Tensor
    silent: Tensor
    overspent: Tensor
    ratio: Tensor


def value_claims(
    sample: Sample, result: qg.Result, rtol: float, atol: float = 0.0, *, what: str = "value", log: bool = False,
    exact: Tensor | None = None, budget: int | None = 30_000,
) -> Claims:  # fmt: skip
    """Return what a call claims about the values of a sample."""
    exact = sample.exact(log) if exact is None else exact
    size = _largest(exact)
    allowed = torch.full_like(size, max(rtol, atol)) if log else (rtol * size).clamp_min(atol)
    value = result.value.detach()
    dtype = torch.complex128 if value.is_complex() else torch.float64
    return Claims(
        what, value.to(dtype), exact, result.error.double(), allowed, result.converged, result.nfev,
        budget=budget, log=log, eps=torch.finfo(result.error.dtype).eps, rtol=rtol,
    )  # fmt: skip


def _largest(t: Tensor) -> Tensor:
    return t.abs().reshape(t.shape[0], -1).amax(1)
