"""The search spends exactly the nodes it has been spending, with the kernel and without: any change shows here.

A count that changes on purpose is entered anew in `counts`, with the reason in the message of the commit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.derivatives import ROWS
from benchmarks.problems import PROBLEMS
from counts import COUNTS, DERIVATIVES, ELSEWHERE, EVALUATIONS, RTOLS
from helpers import leaf, t64
from quadgrad._core.search.kernel import opening
from quadgrad._core.search.kernel.library import load


@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("engine", ["kernel", "tensors"])
def test_every_problem_of_the_table(engine: str, rtol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    elif load() is None:
        pytest.skip("the package was installed without its compiled kernel")
    spent, place = {}, 2 * RTOLS.index(rtol)
    for p in PROBLEMS:
        result = qg.quad(p.f, t64(p.a), t64(p.b), points=p.points or None, rtol=rtol, on_failure="ignore")
        spent[p.name] = (int(result.nfev), int(result.status))
    known = {name: counts[place : place + 2] for name, counts in COUNTS.items()}
    for name, (nfev, _) in spent.items():
        if nfev == ELSEWHERE.get((name, rtol)):
            known[name] = (nfev, known[name][1])
    assert spent == known


@pytest.mark.parametrize("engine", ["kernel", "tensors"])
def test_many_peaks(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    c, decades = torch.rand((2, 500), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    e = 10 ** (4 * decades - 5)
    peak = lambda x, c, e: e / ((x - c) ** 2 + e**2)
    solve = lambda rtol: qg.quad(peak, 0.0, 1.0, (c, e), rtol=rtol, on_failure="ignore")
    assert {rtol: int(solve(rtol).nfev.sum()) for rtol in (1e-4, 1e-8, 1e-10)} == {
        1e-4: 147_159,
        1e-8: 177_015,
        1e-10: 199_859,
    }


def test_derivatives_searched_on_their_own() -> None:
    spent = {}
    for row in ROWS:
        mode = qg.Resolve(rtol=1e-9)
        result = qg.quad(row.f, row.a, row.b, (leaf(row.parameter),), rtol=1e-4, gradient=mode, on_failure="ignore")
        derivative = result.derivative
        spent[row.name] = (int(result.nfev), int(derivative.nfev), int(derivative.status))
    assert spent == DERIVATIVES


def test_what_gradients_call_f_for() -> None:
    """Values of f, not nodes of searches: halves, layers beside ends and replay count too."""
    spent = dict.fromkeys(EVALUATIONS, 0)
    for row in ROWS:
        called = [0]

        def f(x: Tensor, p: Tensor, called: list[int] = called, row: Any = row) -> Tensor:
            called[0] += x.numel()
            return row.f(x, p)

        p = leaf(row.parameter)
        result = qg.quad(f, row.a, row.b, (p,), rtol=1e-4, on_failure="ignore")
        spent["Reuse"], called[0] = spent["Reuse"] + called[0], 0
        qg.gradient_error(result, p)
        spent["gradient_error"], called[0] = spent["gradient_error"] + called[0], 0
        qg.quad(f, row.a, row.b, (p,), rtol=1e-4, gradient=qg.Resolve(rtol=1e-9), on_failure="ignore")
        spent["Resolve"] += called[0]
    assert spent == EVALUATIONS
