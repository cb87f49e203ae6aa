"""How a jump's place is read and differentiated, at the border of what rounding allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import Recorder, leaf, relative_error, t64
from test_jumps import told

FAR = 1e6
ULP = 2.0**-33
"""The spacing of double precision numbers there."""


@pytest.mark.parametrize("spacings", (-20, -5, -1, 1, 5, 20))
def test_a_breakpoint_may_be_some_spacings_off_its_jump(spacings: int) -> None:
    """A computed root is: here 2^-40 of the piece is less than a spacing, and 64 spacings are read away."""
    s = leaf(FAR + 0.5)
    f = lambda x, s: torch.where(x > s + spacings * ULP, 2.0, 5.0) * torch.exp(x - FAR)
    value = qg.quad(f, FAR, FAR + 1.0, (s,), points=s[None], rtol=1e-8).value
    (slope,) = torch.autograd.grad(value, s)
    assert relative_error(slope, 3.0 * torch.exp(t64(0.5))) <= 1e-6


def test_where_f_is_read_beside_a_breakpoint() -> None:
    """Sixty-four spacings where these are wide, else 2^-40 of the narrower piece; a quarter of it at most."""
    for a, s, b, distance in (
        (FAR, FAR + 0.5, FAR + 1.0, 64 * ULP),
        (0.0, 0.25, 1.0, 2.0**-42),
        (FAR, FAR + 0.5, FAR + 0.5 + 16 * ULP, 4 * ULP),
    ):
        f, point = Recorder(lambda x, s: x - s), leaf(s)
        qg.quad(f, a, b, (point,), points=point[None], rtol=1e-4, on_failure="ignore").value.backward()
        seen = (f.nodes - s).abs()
        read = torch.tensor([distance], dtype=torch.float64)
        assert torch.isclose(seen, read, rtol=1e-6, atol=0.0).sum() >= 2, (a, s, b)


def test_four_derivatives_of_a_zero() -> None:
    """The integral of 1 where x^2 > s is 1 - sqrt(s)."""
    s = leaf(0.25)
    out = qg.quad(lambda x, s: (x**2 > s).double(), t64(0.0), 1.0, (s,), jumps=lambda x, s: x**2 - s).value
    exact = 1 - s.sqrt()
    for _ in range(4):
        (out,) = torch.autograd.grad(out, s, create_graph=True)
        (exact,) = torch.autograd.grad(exact, s, create_graph=True)
        assert relative_error(out, exact) <= 1e-8


@pytest.mark.parametrize(("height", "said"), [(1e-6, False), (0.02, True)])
def test_a_change_of_sign_over_a_jump_is_no_zero(height: float, said: bool) -> None:
    """g jumps from -height to height: a thousandth of what it is nearby is taken for rounding, more is not."""
    g = lambda x, s: torch.where(x > s, height, -height) + (x - s)
    s = leaf(0.4)
    lines = told(lambda: qg.quad(lambda x, s: (x > s).double(), t64(0.0), 1.0, (s,), jumps=g))
    assert any("changes sign without passing through 0" in line for line in lines) == said


@pytest.mark.parametrize(("slope", "said"), [(2e-15, False), (1e-17, True)])
def test_a_zero_that_is_uncertain_by_a_thousandth_of_its_stretch_is_flat(slope: float, said: bool) -> None:
    """Four eps times what g is at the stretch's ends, over its slope at the zero, is how uncertain that is."""
    s = leaf(0.41)
    f, g = lambda x, s: (x > s).double(), lambda x, s: (x - s) ** 3 + slope * (x - s)
    lines = told(lambda: qg.quad(f, t64(0.0), 1.0, (s,), jumps=g))
    assert any("without passing through 0 at a finite slope" in line for line in lines) == said


def test_a_derivative_that_is_a_value_of_f_is_off_by_ten_eps_of_it() -> None:
    b = leaf(2.0)
    result = qg.quad(lambda x: torch.full_like(x, 3.0), 0.0, b)
    (error,) = qg.gradient_error(result, (b,))
    assert float(error) == 30 * 2.0**-52


def narrow(x: Tensor, s: Tensor, width: float) -> Tensor:
    return (x - s) * (x - s - width)


def test_two_zeros_between_two_nodes_of_the_scan() -> None:
    """Twelve nodes stand in each stretch of the first scan; it finds the zeros by a dip, and search runs once."""
    s = leaf(0.311)
    f = lambda x, s: 1.0 + (narrow(x, s, 0.004) < 0).double()  # where f is 0, needles would be looked for
    g = Recorder(lambda x, s: narrow(x, s, 0.004))
    result = qg.quad(f, t64(0.0), 1.0, (s,), jumps=g)
    assert relative_error(result.value, t64(1.004)) <= 4e-12
    assert int(result.nfev) == 78
    scans = [x.shape for x in g.seen if x.ndim == 2 and x.shape[0] == 12]
    assert scans == [(12, 14)]
