"""Gradients of wrapped functions against exact ones, and reported errors against true ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from bridge_problems import CASES, Case
from quadgrad import bridge


@dataclass(frozen=True)
class Entries:
    """Entries of a Jacobian as one vector each: found, exact, reported error."""

    found: Tensor
    exact: Tensor
    reported: Tensor

    @property
    def true(self) -> Tensor:
        return (self.found - self.exact).abs()

    @property
    def covered(self) -> Tensor:
        """Whether the reported error covers the true one, of entries that are not zero by structure alone."""
        estimated = (self.reported > 0) | (self.true > 0)
        return (self.true <= self.reported)[estimated].double()

    @property
    def relative(self) -> Tensor:
        """True errors of the entries that are not zero."""
        known = self.exact != 0
        return self.true[known] / self.exact[known].abs()


@cache
def jacobian_entries(case: Case, method: str) -> Entries:
    """Read the Jacobian row by row, each with its reported error, as a user sees them."""
    wrapped = bridge.wrap(case.fn, method, **case.options)
    ours = [x.clone().requires_grad_() for x in case.inputs]
    theirs = [x.clone().requires_grad_() for x in case.inputs]
    columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    mine, twin = wrapped(*ours), case.twin(*theirs)
    for y, z in zip(*((v if isinstance(v, tuple) else (v,)) for v in (mine, twin)), strict=True):
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-7)
        for unit in (1.0, 1j) if y.is_complex() else (1.0,):
            for i in range(y.numel()):
                cotangent = torch.zeros(y.numel(), dtype=y.dtype)
                cotangent[i] = unit
                rows = [
                    torch.autograd.grad(v, x, cotangent.reshape(v.shape), retain_graph=True, allow_unused=True)
                    for v, x in ((y, ours), (z, theirs))
                ]
                for g, exact, error in zip(*rows, wrapped.info.gradient_error, strict=True):
                    columns[0].append(g.flatten())
                    columns[1].append(torch.zeros_like(g).flatten() if exact is None else exact.flatten())
                    columns[2].append(torch.from_numpy(error).flatten())
    return Entries(*map(torch.cat, columns))


def pairs() -> list[tuple[Case, str]]:
    methods = {"central", "forward", "richardson", "complex", "spsa"}
    return [(case, method) for case in CASES for method in sorted(methods) if case.analytic or method != "complex"]


@pytest.mark.parametrize(("case", "method"), pairs(), ids=lambda v: v if isinstance(v, str) else v.name)
def test_the_reported_error_covers_the_true_one(case: Case, method: str) -> None:
    entries = jacobian_entries(case, method)
    assert entries.reported.isfinite().all()
    assert entries.covered.mean() >= 0.95


def test_the_reported_error_covers_the_true_one_over_all_functions() -> None:
    every = [jacobian_entries(case, method) for case, method in pairs()]
    covered = torch.cat([e.covered for e in every])
    assert len(covered) > 1000
    assert covered.mean() >= 0.95


BOUNDS = {"central": 1e-7, "richardson": 1e-9, "complex": 1e-9}


@pytest.mark.parametrize("method", BOUNDS)
def test_the_median_error_over_all_smooth_functions(method: str) -> None:
    smooth = [c for c in CASES if c.smooth and (c.analytic or method != "complex")]
    every = torch.cat([jacobian_entries(c, method).relative for c in smooth])
    assert every.median() < BOUNDS[method]
    for case in smooth:
        assert jacobian_entries(case, method).relative.median() < BOUNDS[method], case.name


def test_the_median_error_on_the_float32_box() -> None:
    box = next(case for case in CASES if case.name == "float32 box")
    assert jacobian_entries(box, "central").relative.median() < 1e-4


HARD = {
    "oscillating": (lambda x: np.cos(300 * x), lambda x: torch.cos(300 * x), (-3.0, 3.0)),
    "steep": (lambda x: np.tanh(50 * x), lambda x: torch.tanh(50 * x), (-0.2, 0.2)),
    "narrow": (lambda x: 1 / (1 + 1e4 * x * x), lambda x: 1 / (1 + 1e4 * x * x), (-1.0, 1.0)),
    "flat": (lambda x: (x - 1) ** 7, lambda x: (x - 1) ** 7, (0.5, 1.5)),
    "cancelling": (
        lambda x: (1 - np.cos(x)) / x**2,
        lambda x: 2 * (torch.sin(x / 2) / x) ** 2,
        (1e-3, 1.0),
    ),
    "singular": (np.log, torch.log, (1e-4, 2.0)),
    "large and small": (scipy.special.gammaln, torch.lgamma, (0.01, 300.0)),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("method", ["central", "forward", "richardson"])
def test_the_reported_error_covers_the_true_one_at_many_inputs(name: str, method: str) -> None:
    """Functions whose scale is not that of their input, and one that has lost up to ten digits."""
    fn, twin, (low, high) = HARD[name]
    x = torch.from_numpy(np.random.default_rng(1).uniform(low, high, 400)).requires_grad_()
    wrapped = bridge.wrap(fn, method, sparsity="elementwise")
    wrapped(x).sum().backward()
    true = (x.grad - torch.func.grad(lambda x: twin(x).sum())(x.detach())).abs()
    assert (true <= torch.from_numpy(wrapped.info.gradient_error[0])).double().mean() >= 0.95
