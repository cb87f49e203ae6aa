"""`Resolve`: the derivative meets a tolerance of its own, says how far to trust it, and asks for what it needs."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from benchmarks.derivatives import ROWS, Row
from helpers import PeakMemory, Recorder, cells_of, declaring, leaf, relative_error, t64

LOOSE = 1e-4
TIGHT = qg.Resolve(rtol=1e-9)
NOISY = {"peak of width 1e-3 by its centre", "peak of width 1e-4 by its centre"}
"""Rows whose derivative is a small difference of large areas: rounding keeps its estimated error above 1e-9."""


def both_columns(row: Row) -> tuple[float, float, qg.Result]:
    """Return the relative errors of both modes at a loose tolerance for the value, and the second result."""
    errors: list[float] = []
    for mode in (qg.Reuse(), TIGHT):
        p = leaf(row.parameter)
        result = qg.quad(row.f, row.a, row.b, (p,), rtol=LOOSE, gradient=mode, on_failure="ignore")
        (gradient,) = torch.autograd.grad(result.value, p)
        errors.append(abs(float(gradient) - row.exact) / abs(row.exact))
    return errors[0], errors[1], result


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_exact_derivatives_where_the_values_plan_does_not_resolve_them(row: Row) -> None:
    reused, resolved, result = both_columns(row)
    assert resolved <= 1e-8
    assert (reused > 1e-4) == row.hard
    assert resolved * abs(row.exact) <= float(result.derivative.error)
    assert bool(result.derivative.converged) == (row.name not in NOISY)
    assert bool(result.converged)


def test_at_least_twelve_rows_are_hard() -> None:
    assert sum(row.hard for row in ROWS) >= 12


def hypotenuse(x: Tensor, p: Tensor) -> Tensor:
    return torch.sqrt(x**2 + p**2)


def slope(p: Tensor) -> Tensor:
    return p * torch.asinh(1 / p)


SMALL = t64([1e-4, 1e-2, 0.5])


def test_each_integral_of_a_batch_by_its_own_norm() -> None:
    scale = t64([1.0, 1e-6, 1e6])
    p = leaf(SMALL)
    result = qg.quad(lambda x, p, s: s * hypotenuse(x, p), 0.0, 1.0, (p, scale), rtol=LOOSE, gradient=TIGHT)
    result.value.sum().backward()
    assert relative_error(p.grad, scale * slope(SMALL)) <= 1e-9
    assert result.derivative.names == ("args[0]",)
    assert result.derivative.error.shape == (3, 1)
    assert (result.derivative.error[:, 0] <= 1e-9 * scale * slope(SMALL)).all()
    assert result.derivative.nfev[0] > result.derivative.nfev[1] > result.derivative.nfev[2]


def test_integrals_that_are_resolved_already_keep_their_cells_and_cost_nothing() -> None:
    # With 0.01 and 0.5 swapped, the cells to be searched are as many as the integrals.
    for widths in (SMALL, SMALL[[0, 2, 1]]):
        result = qg.quad(hypotenuse, 0.0, 1.0, (leaf(widths),), rtol=LOOSE, gradient=TIGHT)
        resolved = int((widths == 0.5).nonzero())
        assert ((result.derivative.nfev == 0) == (widths == 0.5)).all()
        assert torch.equal(cells_of(result.plan, resolved), cells_of(result.derivative.plan, resolved))
        for element, width in enumerate(widths):
            alone = qg.quad(hypotenuse, 0.0, 1.0, (leaf(width),), rtol=LOOSE, gradient=TIGHT)
            assert int(result.derivative.nfev[element]) == int(alone.derivative.nfev)


def test_each_variable_by_its_own_norm() -> None:
    # The derivative by the width is 1e6 times that by the centre; both are resolved.
    c, e = leaf(0.3), leaf(1e-2)
    value = qg.quad(lambda x, c, e: 1 / ((x - c) ** 2 + e**2), 0.0, 1.0, (c, e), rtol=LOOSE, gradient=TIGHT).value
    gradient = torch.autograd.grad(value, (c, e))
    closed = (torch.atan((1 - c) / e) + torch.atan(c / e)) / e
    exact = torch.autograd.grad(closed, (c, e))
    assert relative_error(gradient[0], exact[0]) <= 1e-9
    assert relative_error(gradient[1], exact[1]) <= 1e-9


def test_only_what_requires_grad_enters_the_norm() -> None:
    f = lambda x, s, p: (1 + p * x) * x**s
    easy = qg.quad(f, 0.0, 1.0, (t64(1.0), leaf(0.5)), gradient=TIGHT).derivative
    hard = qg.quad(f, 0.0, 1.0, (leaf(1.0), leaf(0.5)), gradient=TIGHT).derivative
    assert easy.names == ("args[1]",)
    assert hard.names == ("args[0]", "args[1]")
    assert 5 * int(easy.nfev) < int(hard.nfev)


def test_the_value_is_that_of_the_first_search() -> None:
    plain = qg.quad(hypotenuse, 0.0, 1.0, (SMALL,), rtol=LOOSE)
    resolved = qg.quad(hypotenuse, 0.0, 1.0, (leaf(SMALL),), rtol=LOOSE, gradient=TIGHT)
    assert torch.equal(plain.value, resolved.value)
    assert len(resolved.derivative.plan) > len(resolved.plan)


def test_nothing_is_searched_for_limits_alone() -> None:
    b = leaf(1.0)
    result = qg.quad(torch.exp, 0.0, b, gradient=TIGHT)
    result.value.backward()
    assert relative_error(b.grad, torch.e) <= 1e-14
    assert result.derivative.names == ()
    assert int(result.derivative.nfev) == 0


def test_no_gradient_no_second_search() -> None:
    f = Recorder(hypotenuse)
    result = qg.quad(f, 0.0, 1.0, (SMALL,), gradient=TIGHT)
    assert result.derivative is None
    assert f.nodes.numel() == int(result.nfev.sum()) + 1 + 3  # the probe, and the look whether f mixes


@pytest.mark.parametrize("chunk_size", (50, 420))
def test_chunks_change_nothing_and_bound_every_call(chunk_size: int) -> None:
    p, f = leaf(SMALL), Recorder(hypotenuse)
    value = qg.quad(f, 0.0, 1.0, (p,), rtol=LOOSE, gradient=TIGHT, chunk_size=chunk_size).value
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert relative_error(gradient, slope(SMALL)) <= 1e-9
    assert f.largest_call <= max(chunk_size, 21)


def test_function_of_one_number() -> None:
    p = leaf(1e-4)
    result = qg.quad(
        lambda x, p: (x**2 + p**2) ** 0.5, 0.0, 1.0, (p,), rtol=LOOSE, gradient=TIGHT, vectorized=False
    )
    assert relative_error(torch.autograd.grad(result.value, p)[0], slope(t64(1e-4))) <= 1e-9


def test_complex_argument() -> None:
    w = t64([0.5, 2.0]).to(torch.complex128).requires_grad_()
    value = qg.quad(lambda x, w: torch.exp(-w * x), 0.0, 1.0, (w,), gradient=TIGHT).value
    (gradient,) = torch.autograd.grad(value.real.sum(), w)
    (exact,) = torch.autograd.grad(((1 - torch.exp(-w)) / w).real.sum(), w)
    assert relative_error(gradient, exact) <= 1e-9


def test_bad_tolerances_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="both 0"):
        qg.Resolve(rtol=0.0)
    with pytest.raises(ValueError, match="rtol=-1"):
        qg.Resolve(rtol=-1.0)


def test_a_derivative_that_does_not_exist_is_reported() -> None:
    # At s = 1 the value at fixed s exists for no s below; x^-s log x diverges with it.
    s = leaf(0.5)
    f = lambda x, s: torch.sqrt(x) + 1e-9 * (s - 0.5) * x**-1.5
    with pytest.warns(qg.IntegrationWarning, match="1 of 1 derivatives did not converge"):
        result = qg.quad(f, 0.0, 1.0, (s,), rtol=LOOSE, gradient=TIGHT)
    assert bool(result.converged)
    assert not bool(result.derivative.converged)
    with pytest.raises(qg.IntegrationError, match="derivatives did not converge"):
        qg.quad(f, 0.0, 1.0, (s,), rtol=LOOSE, gradient=TIGHT, on_failure="raise")


# -- what f closes over ------------------------------------------------------------------------------


def network(width: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    layers = (torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh())
    made = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            scale = parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return made


def narrow(net: torch.nn.Module):
    """Weigh a network with a peak that a loose tolerance just resolves."""
    return lambda x, c: net(20 * x[..., None])[..., 0] / ((x - c) ** 2 + 1e-4)


def test_module_by_its_parameters() -> None:
    net, c = network(6), leaf([0.3, 0.7])
    result = qg.quad(narrow(net), 0.0, 1.0, (c,), rtol=LOOSE, gradient=declaring(TIGHT, net))
    inputs = (c, *net.parameters())
    ours = torch.autograd.grad(result.value.sum(), inputs)
    reference = torch.autograd.grad(qg.quad(narrow(net), 0.0, 1.0, (c,), rtol=1e-13).value.sum(), inputs)
    assert result.derivative.names == ("args[0]", *(f"params.{name}" for name, _ in net.named_parameters()))
    for one, other in zip(ours, reference, strict=True):
        assert (one - other).abs().max() <= 1e-8 * other.abs().max()


def test_thirty_thousand_parameters_in_bounded_memory() -> None:
    net = network(172)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count >= 30_000
    with PeakMemory() as memory:
        result = qg.quad(
            lambda x: net(x[..., None])[..., 0],
            t64(0.0),
            1.0,
            rtol=LOOSE,
            gradient=qg.Resolve(rtol=1e-6, params=net),
        )
    assert bool(result.derivative.converged)
    # One cell's derivatives take 21 * 8 * count bytes; a few such arrays are alive at a time.
    assert memory.peak <= 30 * 21 * 8 * count
    assert result.derivative.plan.owner.numel() < 100


def test_a_derivative_that_is_nothing_but_rounding_is_zero() -> None:
    # The direction of a vector does not depend on its length.
    w = leaf([1.7])
    f = lambda x: torch.exp(-x) * (w * 0.3 / torch.linalg.vector_norm(w * 0.3))[0]
    result = qg.quad(f, t64(0.0), 1.0, gradient=declaring(TIGHT, w))
    assert float(torch.autograd.grad(result.value, w)[0].abs()) <= 1e-15
    assert bool(result.derivative.converged)
    assert int(result.derivative.nfev) <= 210


def test_frozen_parameters_are_left_out() -> None:
    net = network(4)
    net[0].weight.requires_grad_(False)
    result = qg.quad(lambda x: net(x[..., None])[..., 0], t64(0.0), 1.0, gradient=declaring(TIGHT, net))
    assert "params.0.weight" not in result.derivative.names
    assert "params.0.bias" in result.derivative.names


@pytest.mark.parametrize("way", ("tensor", "sequence", "mapping"))
def test_tensors_by_name(way: str) -> None:
    p = leaf(1e-4)
    params = {"tensor": p, "sequence": [p], "mapping": {"p": p}}[way]
    result = qg.quad(lambda x: hypotenuse(x, p), t64(0.0), 1.0, rtol=LOOSE, gradient=declaring(TIGHT, params))
    assert relative_error(torch.autograd.grad(result.value, p)[0], slope(t64(1e-4))) <= 1e-9
    assert result.derivative.names == (
        {"tensor": "params", "sequence": "params[0]", "mapping": "params['p']"}[way],
    )


def test_undeclared_tensors_are_named_never_skipped() -> None:
    net, p = network(4), leaf([1.0, 2.0])
    with pytest.raises(qg.IntegrandError, match=r"shape \(4, 1\) \(net\.0\.weight\)") as caught:
        qg.quad(lambda x: net(x[..., None])[..., 0], t64(0.0), 1.0, gradient=TIGHT)
    assert r"(net.4.bias)" in str(caught.value)
    with pytest.raises(qg.IntegrandError, match=r"shape \(2,\) \(p\)"):
        qg.quad(lambda x: net(x[..., None])[..., 0] * p[0], t64(0.0), 1.0, gradient=declaring(TIGHT, net))
    with pytest.raises(qg.IntegrandError, match=r"shape \(1,\) \(PReLU\.weight\)"):
        qg.quad(torch.nn.PReLU().double(), t64(-1.0), 1.0, gradient=TIGHT)


def test_tensors_computed_outside_from_a_declared_one() -> None:
    p = leaf(0.5)
    q = 2 * p
    with pytest.raises(qg.IntegrandError, match="computed outside f|\\(q\\)"):
        qg.quad(lambda x: torch.exp(-q * x), t64(0.0), 1.0, gradient=declaring(TIGHT, p))
    value = qg.quad(lambda x: torch.exp(-q * x), t64(0.0), 1.0, gradient=declaring(TIGHT, q)).value
    exact = 2 * grad(lambda q: (1 - torch.exp(-q)) / q)(q.detach())
    assert relative_error(torch.autograd.grad(value, p)[0], exact) <= 1e-9


UNDECLARED = {
    "grad": lambda f: grad(f)(t64(1.0)),
    "jvp": lambda f: jvp(f, (t64(1.0),), (t64(1.0),)),
    "vmap of grad": lambda f: vmap(grad(f))(t64([1.0, 2.0])),
    "grad of vmap": lambda f: grad(lambda p: vmap(f)(p).sum())(t64([1.0, 2.0])),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f))(t64(1.0)),
}


@pytest.mark.parametrize("way", UNDECLARED)
def test_undeclared_tensors_inside_transforms(way: str) -> None:
    with pytest.raises(qg.IntegrandError, match=r"neither in args nor in params"):
        UNDECLARED[way](lambda p: qg.quad(lambda x: torch.exp(-p * x), t64(0.0), 1.0, gradient=TIGHT).value)


def test_params_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"params\[1\] is float"):
        qg.Resolve(params=[t64(1.0), 2.0])


# -- transforms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ("vmap of grad", "grad of vmap", "jacrev", "jacfwd"))
def test_power_of_a_singularity_inside_transforms(way: str) -> None:
    f = lambda s: qg.quad(lambda x, s: x ** (s - 0.3) * (1 + x), 0.0, 1.0, (s,), rtol=LOOSE, gradient=TIGHT).value
    exact = -1 / (0.7 + SMALL) ** 2 - 1 / (1.7 + SMALL) ** 2
    assert relative_error(WAYS[way](f), exact) <= 1e-9


def test_power_of_a_singularity_by_dual_numbers_and_twice() -> None:
    f = lambda s: qg.quad(lambda x, s: x**-s * (1 + x), 0.0, 1.0, (s,), rtol=LOOSE, gradient=TIGHT).value
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(t64(0.3), t64(1.0)))).tangent
    assert relative_error(tangent, 1 / 0.7**2 + 1 / 1.7**2) <= 1e-9
    s = leaf(0.3)
    (first,) = torch.autograd.grad(f(s), s, create_graph=True)
    assert relative_error(torch.autograd.grad(first, s)[0], 2 / 0.7**3 + 2 / 1.7**3) <= 1e-8


WAYS = {
    "vmap of grad": lambda f: vmap(grad(f))(SMALL),
    "grad of vmap": lambda f: grad(lambda p: vmap(f)(p).sum())(SMALL),
    "jacrev": lambda f: torch.stack([jacrev(f)(p) for p in SMALL]),
    "jacfwd": lambda f: torch.stack([jacfwd(f)(p) for p in SMALL]),
    "jvp of vmap": lambda f: jvp(vmap(f), (SMALL,), (torch.ones(3, dtype=torch.float64),))[1],
}


@pytest.mark.parametrize("kind", ("args", "closure"))
@pytest.mark.parametrize("way", WAYS)
def test_hard_derivatives_are_resolved_inside_transforms(way: str, kind: str) -> None:
    def by_argument(p: Tensor) -> Tensor:
        return qg.quad(hypotenuse, 0.0, 1.0, (p,), rtol=LOOSE, gradient=TIGHT).value

    def by_closure(p: Tensor) -> Tensor:
        return qg.quad(lambda x: hypotenuse(x, p), t64(0.0), 1.0, rtol=LOOSE, gradient=declaring(TIGHT, p)).value

    assert relative_error(WAYS[way]({"args": by_argument, "closure": by_closure}[kind]), slope(SMALL)) <= 1e-9


def test_derivative_leaves_a_transform_with_lanes_of_its_own() -> None:
    p = leaf(SMALL)
    result = vmap(lambda p: qg.quad(hypotenuse, 0.0, 1.0, (p,), rtol=LOOSE, gradient=TIGHT))(p)
    assert result.derivative.error.shape == (3, 1)
    assert result.derivative.status.tolist() == [0, 0, 0]
    assert (result.derivative.error[:, 0] <= 1e-9 * slope(SMALL)).all()


# -- singularities that move -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve(rtol=1e-6)), ids=("Reuse", "Resolve"))
@pytest.mark.parametrize("kind", ("args", "closure"))
def test_singularity_that_moves_with_the_limit(kind: str, mode: qg.GradientMode) -> None:
    b = leaf(0.7)
    if kind == "args":
        value = qg.quad(lambda x, c: (c - x) ** -0.5, 0.0, b, (b,), rtol=1e-6, gradient=mode).value
    else:
        value = qg.quad(lambda x: (b - x) ** -0.5, 0.0, b, rtol=1e-6, gradient=declaring(mode, b)).value
    assert relative_error(value, 2 * b.detach() ** 0.5) <= 1e-6
    assert relative_error(torch.autograd.grad(value, b)[0], b.detach() ** -0.5) <= 1e-6


@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve(rtol=1e-9)), ids=("Reuse", "Resolve"))
@pytest.mark.parametrize("points", ("itself", "view", "computed"))
def test_singularity_that_moves_with_a_marked_interior_parameter(points: str, mode: qg.GradientMode) -> None:
    p = leaf([0.3, 0.6])
    marked = {"itself": lambda: p[:, None].detach() * 0 + p[:, None], "view": lambda: p[:, None]}.get(
        points, lambda: torch.stack((p, 0 * p + 0.9), dim=-1)
    )()
    f = lambda x, p: (x - p).abs() ** -0.25
    result = qg.quad(f, 0.0, 1.0, (p,), points=marked, rtol=1e-8, gradient=mode)
    exact = p.detach() ** -0.25 - (1 - p.detach()) ** -0.25
    assert relative_error(torch.autograd.grad(result.value.sum(), p)[0], exact) <= 1e-8
    assert result.derivative is None or bool((result.derivative.error == inf).all())


# ------------------------------------------------------------------------------------- where a search of it ends


def peak_by_centre(centre: float, width: float, loose: float, tight: float) -> tuple[qg.Result, float]:
    """Return the result and the derivative of a peak's area by its centre."""
    c, peak = leaf(centre), lambda x, c: width / ((x - c) ** 2 + width**2)
    mode = qg.Resolve(rtol=tight)
    result = qg.quad(peak, 0.0, 1.0, (c,), rtol=loose, gradient=mode, on_failure="ignore")
    return result, float(torch.autograd.grad(result.value, c)[0])


@pytest.mark.parametrize(
    ("off", "nfev", "status"), [(0.0, 280, "CONVERGED"), (1e-14, 280, "CONVERGED"), (1e-12, 259, "ROUNDOFF")]
)
def test_a_derivative_of_fifty_eps_is_zero_to_rounding(off: float, nfev: int, status: str) -> None:
    """By symmetry it is about -2.96 times how far the peak is off the middle, the integral of its modulus 19."""
    result, slope = peak_by_centre(0.5 + off, 0.1, 1e-4, 1e-6)
    assert abs(slope + 2.9586 * off) <= 1e-14
    assert int(result.derivative.nfev) == nfev
    assert result.derivative.status == qg.Status[status]


def test_the_size_that_a_derivatives_tolerance_is_relative_to_is_found_by_searching_again() -> None:
    """The value's plan sees nothing of how its two flanks cancel: one search ends at 60 times the error."""
    result, slope = peak_by_centre(0.499, 1e-3, 1e-1, 1e-3)
    c = t64(0.499).requires_grad_()
    exact = torch.autograd.grad(torch.atan((1 - c) / 1e-3) + torch.atan(c / 1e-3), c)[0]
    assert result.derivative.converged
    assert abs(slope - float(exact)) <= 1e-3 * abs(float(exact))
    assert int(result.derivative.nfev) == 926
