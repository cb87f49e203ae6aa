"""What cells say about themselves, number by number: floors, what lies beyond the nodes, columns at an end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import Recorder, t64
from quadgrad._core.estimates.null_rules import null_rule_error, weigh
from quadgrad._core.rules import get_rule
from quadgrad._core.search.kernel import opening
from quadgrad._core.search.kernel.library import load

EPS = torch.finfo(torch.float64).eps


@pytest.fixture(params=["kernel", "tensors"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the kernel and without."""
    if request.param == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    elif load() is None:
        pytest.skip("the package was installed without its compiled kernel")


@pytest.mark.parametrize(("height", "width"), [(1.0, 1.0), (-3.0, 2.0), (1e-200, 0.5)])
def test_what_is_exact_has_the_rounding_of_f_as_its_error(height: float, width: float) -> None:
    result = qg.quad(lambda x: torch.full_like(x, height), t64(0.0), width)
    assert float(result.error) == pytest.approx(10 * EPS * abs(height) * width, rel=1e-12, abs=0.0)


def wave(x: Tensor) -> Tensor:
    return torch.sin(15.0 * x) + 2.0


@pytest.mark.parametrize("jump", (0.5, -0.5))
def test_a_jump_between_a_limit_and_the_nodes_counts_above_what_the_polynomial_may_miss(jump: float) -> None:
    """The error has the stretch's width times the jump, less six times the highest pair of coefficients."""
    rule = get_rule("gk21").tensors(torch.float64, torch.device("cpu"))
    tau = t64(get_rule("gk21").nodes)
    y = wave(tau)[:, None]
    sums = weigh(rule, y, y.abs())
    own, _, highest = null_rule_error(rule, sums.nulls, sums.size, EPS)
    misses = float(sums.edges[0]) - 2.0
    hidden = max(0.0, abs(misses - jump) - 6.0 * float(highest))
    f = lambda x: wave(x) + jump * (x < 1e-3)
    one_cell = qg.quad(f, t64(0.0), 1.0, rtol=1e-14, max_nfev=26, on_failure="ignore")
    assert hidden > 0.0
    assert float(one_cell.error) == pytest.approx(float(own) + float(tau[0]) * hidden, rel=1e-6)


def test_a_lower_column_is_taken_only_when_its_error_is_a_tenth_of_the_tolerance() -> None:
    """The first column would do for x^0.81, by half of the tolerance; the second one is exact."""
    result = qg.quad(lambda x: x**0.8097, t64(0.0), 1.0, rtol=1e-5)
    assert (int(result.nfev), bool(result.converged)) == (95, True)
    assert abs(float(result.value) - 1 / 1.8097) <= float(result.error) <= 1e-9


@pytest.mark.parametrize(
    ("start", "away"),
    [(0.0, 2.0**-44), (2.0, 2.0**-44), (20.0, 21 * 2.0**-48), (64.0, 65 * 2.0**-48), (2e11, None)],
)
def test_how_close_to_a_limit_the_first_cell_is_looked_at(start: float, away: float | None) -> None:
    """Where 2^-44 of the piece is a few spacings, sixteen of these; in the middle where nodes are no farther."""
    f = Recorder(torch.cos)
    qg.quad(f, t64(start), start + 1.0, rtol=1e-10, max_nfev=26, on_failure="ignore")
    closest, nearest = float((f.nodes - start).min()), float(get_rule("gk21").nodes[0] + start - start)
    assert closest == pytest.approx(nearest if away is None else away, rel=0.05)


def test_in_single_precision_that_is_sixteen_eps() -> None:
    f = Recorder(torch.cos)
    qg.quad(f, torch.tensor(0.0), 1.0)
    assert float(f.nodes.min()) == 2.0**-19


def test_how_close_to_an_end_the_series_is_checked() -> None:
    f = Recorder(lambda x: x**-0.5)
    qg.quad(f, t64(0.0), 1.0, rtol=1e-10)
    assert float(f.nodes.min().log2()) == pytest.approx(-400.0, rel=1e-12)


def test_replicates_that_count_the_same_points_do_not_know_a_step() -> None:
    """All sixteen replicates of 256 points count alike, and the truth is beyond the tolerance: once in twenty."""
    exact = 0.6179114221889527
    for seed in (1001, 1019, 1042):
        normal = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 1.0)
        result = qg.expectation(lambda x: (x > 0).double(), normal, method="qmc", rtol=1e-3, seed=seed)
        assert abs(result.value.item() - exact) <= min(1e-3 * exact, result.error.item())
