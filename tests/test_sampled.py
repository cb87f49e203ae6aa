"""Rules on samples: SciPy's results, exact derivatives, transforms, compilation, errors, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jvp, vmap

import quadgrad as qg
from helpers import leaf, relative_error, t64

SCIPY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "trapezoid": (qg.trapezoid, lambda y, x, dx, dim: scipy.integrate.trapezoid(y, x, dx, dim)),
    "simpson": (qg.simpson, lambda y, x, dx, dim: scipy.integrate.simpson(y, x=x, dx=dx, axis=dim)),
    "cumulative_trapezoid": (
        qg.cumulative_trapezoid,
        lambda y, x, dx, dim, **more: scipy.integrate.cumulative_trapezoid(y, x, dx, dim, **more),
    ),
    "cumulative_simpson": (
        qg.cumulative_simpson,
        lambda y, x, dx, dim, **more: scipy.integrate.cumulative_simpson(y, x=x, dx=dx, axis=dim, **more),
    ),
}
LEAST = {"trapezoid": 0, "simpson": 1, "cumulative_trapezoid": 1, "cumulative_simpson": 1, "romb": 2}
LAYOUTS = (lambda n: ((n,), 0), lambda n: ((3, n), -1), lambda n: ((n, 4), 0), lambda n: ((2, n, 3), 1))
RULES = [rule for rule, _ in SCIPY.values()]
named = pytest.mark.parametrize("name", SCIPY)


def same(value: Tensor, expected: Any) -> None:
    """Compare with what SciPy returned: shape, dtype, and values to 1e-13."""
    expected = torch.from_numpy(np.array(expected))
    assert value.shape == expected.shape and value.dtype == expected.dtype
    assert torch.allclose(value, expected, rtol=1e-13, atol=1e-13)


# ----------------------------------------------------------------------------------------- SciPy's results


@named
@pytest.mark.parametrize("complex_y", (False, True))
def test_results_are_scipys(name: str, complex_y: bool) -> None:
    """Counts from the least SciPy takes, even and odd, all axes; x shared, per row, decreasing, or dx."""
    ours, theirs = SCIPY[name]
    rng = np.random.default_rng(1)
    for n in range(LEAST[name], 12):
        for shape, dim in (layout(n) for layout in LAYOUTS):
            y = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if complex_y else 0.0)
            shared, each = (np.cumsum(0.1 + rng.random(s), axis=d) for s, d in ((n, 0), (shape, dim)))
            for x in (None, shared, each, shared[::-1], np.flip(each, dim)):
                if name == "cumulative_simpson" and x is not None and n >= 3 and x.flat[0] > x.flat[-1]:
                    continue  # SciPy refuses
                same(ours(torch.from_numpy(y), x, dx=0.3, dim=dim), theirs(y, x, 0.3, dim))


@pytest.mark.parametrize("n", (2, 3, 5, 9, 17, 65))
def test_romberg_is_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    for shape, dim in (layout(n) for layout in LAYOUTS):
        y = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        for part in (y, y.real):
            same(qg.romb(torch.from_numpy(part.copy()), dx=0.3, dim=dim), scipy.integrate.romb(part, 0.3, dim))


def test_what_comes_before_the_first_sample() -> None:
    rng = np.random.default_rng(2)
    y, x = rng.standard_normal((2, 6, 3)), np.cumsum(rng.random(6))
    same(qg.cumulative_trapezoid(y, x, dim=1, initial=0), SCIPY["cumulative_trapezoid"][1](y, x, 1.0, 1, initial=0))
    for initial in (0.7, rng.random((2, 1, 3))):
        expected = SCIPY["cumulative_simpson"][1](y, x, 1.0, 1, initial=initial)
        same(qg.cumulative_simpson(y, x, dim=1, initial=initial), expected)
    # SciPy's trapezoids take 0 alone; ours any, as its Simpson does.
    first = leaf(rng.random((2, 1, 3)))
    value = qg.cumulative_trapezoid(torch.from_numpy(y), x, dim=1, initial=first)
    same(value.detach(), SCIPY["cumulative_trapezoid"][1](y, x, 1.0, 1, initial=0) + first.detach().numpy())
    (slope,) = torch.autograd.grad(value.sum(), first)
    assert torch.equal(slope, torch.full_like(slope, 6.0))


@named
def test_a_spacing_for_each_row(name: str) -> None:
    rule = SCIPY[name][0]
    y, dx = torch.randn(3, 5, 2, dtype=torch.float64), t64([[[0.5, 1.0]], [[2.0, 3.0]], [[0.1, 0.2]]])
    each = torch.stack([torch.stack([rule(y[i, :, j], dx=float(dx[i, 0, j])) for j in range(2)]) for i in range(3)])
    assert torch.allclose(rule(y, dx=dx, dim=1), each if each.ndim == 2 else each.movedim(-1, 1), rtol=1e-14)


def test_gaps_of_zero_are_scipys() -> None:
    """Simpson passes over a pair with a gap of 0, and its derivatives stay finite; trapezoids see a jump."""
    x = t64([0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 3.0])
    y = t64([1.0, 2.0, 5.0, 4.0, 3.0, 7.0, 1.0, 2.0])
    for n in (5, 6, 7, 8):
        for s in (slice(0, n), slice(8 - n, 8)):
            same(qg.simpson(y[s], x[s]), scipy.integrate.simpson(y[s].numpy(), x=x[s].numpy()))
            places = leaf(x[s])
            (slope,) = torch.autograd.grad(qg.simpson(y[s], places), places)
            assert slope.isfinite().all()
    same(qg.trapezoid(y, x), scipy.integrate.trapezoid(y.numpy(), x.numpy()))


def test_precision() -> None:
    """Half is summed in single precision; integers count as float64; the wider of y and x decides."""
    ones = torch.ones(5)
    x = torch.arange(5)
    for rule in RULES:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert rule(ones.to(dtype), dx=0.5).dtype == torch.float32
        assert rule(ones.int()).dtype == rule(ones.bool()).dtype == torch.float64
        assert rule(ones, x).dtype == rule(ones, dx=t64(0.5)).dtype == torch.float32
        assert rule(ones, x.double()).dtype == rule(ones.double(), x.float()).dtype == torch.float64
        assert rule(ones.to(torch.complex64), x.double()).dtype == torch.complex128
    assert qg.trapezoid(torch.full((70001,), 1.0, dtype=torch.float16)) == 70000.0
    assert qg.trapezoid(torch.tensor([2**53, 2**53])) == 2.0**53 and qg.simpson(torch.arange(5)) == 8.0
    assert qg.romb(ones.half()).dtype == torch.float32


SCALES = [(2.0**e, 2.0**-f) for e in (-60, -50, -20, 20, 50, 60) for f in (0, e // 2)]


@pytest.mark.parametrize(("across", "up"), SCALES)
@named
def test_units_do_not_matter(name: str, across: float, up: float) -> None:
    """Cubes of gaps of femtoseconds or terahertz are no numbers in single precision; results and errors are."""
    rule = SCIPY[name][0]
    generator = torch.Generator().manual_seed(4)
    for n in range(2, 9):
        y = torch.rand(2, n, generator=generator)
        gaps = torch.rand(n, generator=generator)
        for x in (gaps.cumsum(0), (gaps + 0.1).cumsum(0)):
            near, far = y.clone().requires_grad_(), (up * y).requires_grad_()
            places, moved = x.clone().requires_grad_(), (across * x).requires_grad_()
            value, error = rule(near, places, return_error=True)
            scaled, scaled_error = rule(far, moved, return_error=True)
            assert torch.equal(value, scaled / up / across) and torch.equal(error, scaled_error / up / across)
            by_y, by_x = torch.autograd.grad(value.sum(), (near, places))
            by_far, by_moved = torch.autograd.grad(scaled.sum(), (far, moved))
            assert torch.equal(by_y, by_far / across) and torch.equal(by_x, by_moved / up)


@named
def test_numbers_follow_samples_to_their_device(name: str) -> None:
    """Lists, arrays and numbers have no device of their own: seen on one without data, as there is always one."""
    rule = SCIPY[name][0]
    y = torch.empty(2, 5, device="meta")
    assert rule(y[:, :2], [0.0, 1.0], dim=np.int64(1)).device == y.device
    assert rule(y, dx=np.ones((2, 1))).device == y.device
    if "cumulative" in name:
        assert rule(y, initial=1.0).device == y.device


@named
def test_empty_batches(name: str) -> None:
    rule = SCIPY[name][0]
    for x in (None, torch.arange(4.0)):
        value, error = rule(torch.ones(0, 4), x, return_error=True)
        assert value.shape == error.shape == torch.Size((0, 3) if "cumulative" in name else (0,))


# ------------------------------------------------------------------------------------------------ gradients


@named
@pytest.mark.parametrize("n", (2, 5, 6))
def test_derivatives(name: str, n: int) -> None:
    """First and second, forward and backward, of y, x (shared, per row) and dx."""
    rule = SCIPY[name][0]
    generator = torch.Generator().manual_seed(n)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    y, dx = leaf(random(2, n)), leaf(random(2, 1) + 0.5)
    for x in (leaf((random(n) + 0.2).cumsum(-1)), leaf((random(2, n) + 0.2).cumsum(-1))):
        assert gradcheck(rule, (y, x), check_forward_ad=True) and gradgradcheck(rule, (y, x))
    spaced = lambda y, dx: rule(y, dx=dx)
    assert gradcheck(spaced, (y, dx), check_forward_ad=True) and gradgradcheck(spaced, (y, dx))
    assert gradcheck(rule, (torch.complex(y, y.flip(0)).detach().requires_grad_(), x.detach()))


def test_derivatives_of_romberg() -> None:
    y, dx = leaf(torch.rand(2, 9)), leaf(0.4)
    rule = lambda y, dx: qg.romb(y, dx=dx)
    assert gradcheck(rule, (y, dx), check_forward_ad=True) and gradgradcheck(rule, (y, dx))


def test_a_derivative_with_respect_to_places_is_exact() -> None:
    """Of trapezoids: half of what the neighbours differ by; samples of a line know nothing of places inside."""
    x, y = leaf([0.0, 1.0, 3.0, 4.0]), t64([1.0, 5.0, 2.0, 7.0])
    (slope,) = torch.autograd.grad(qg.trapezoid(y, x), x)
    assert torch.allclose(slope, t64([-3.0, -0.5, -1.0, 4.5]), rtol=1e-15)
    (slope,) = torch.autograd.grad(qg.simpson(x, x), x)
    assert torch.allclose(slope, t64([0.0, 0.0, 0.0, 4.0]), atol=1e-14)


@named
def test_transforms(name: str) -> None:
    rule = SCIPY[name][0]
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    x = (torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.1).cumsum(1)
    assert torch.allclose(vmap(rule)(y, x), rule(y, x), rtol=1e-14)
    assert torch.allclose(vmap(rule, in_dims=(1, None))(y.T, x[0]), rule(y, x[0]), rtol=1e-14)
    energy = lambda y, x: (rule(y, x) ** 2).sum()
    assert vmap(hessian(energy, argnums=(0, 1)))(y, x)[0][1].shape == (3, 6, 6)
    _, tangent = jvp(rule, (y[0], x[0]), (x[0], y[0]))
    full = jacfwd(rule, argnums=(0, 1))(y[0], x[0])
    assert torch.allclose(tangent, full[0] @ x[0] + full[1] @ y[0], rtol=1e-12)
    error = vmap(lambda y, x: rule(y, x, return_error=True)[1])(y, x)
    assert torch.allclose(error, rule(y, x, return_error=True)[1], rtol=1e-10)


@named
def test_compiled(name: str) -> None:
    """With fullgraph, value, errors and gradients; what could not be looked at is NaN instead of wrong."""
    rule = SCIPY[name][0]
    more = {"initial": 0.5} if "cumulative" in name else {}

    def both(y: Tensor, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        value, error = rule(y, x, return_error=True, **more)
        return value.sum() + rule(y, dx=dx).sum(), error

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    inputs = leaf(torch.rand(2, 6)), leaf(torch.arange(6.0) ** 2), leaf(0.5)
    outputs = [f(*inputs) for f in (both, compiled)]
    assert torch.allclose(outputs[0][0], outputs[1][0]) and torch.allclose(outputs[0][1], outputs[1][1])
    one, other = (torch.autograd.grad(value, inputs) for value, _ in outputs)
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(one, other, strict=True))
    if name == "cumulative_simpson":
        assert compiled(inputs[0], inputs[1].flip(0), inputs[2])[0].isnan()


def test_compiled_by_the_default_backend() -> None:
    y = torch.rand(3, 9, dtype=torch.float64)
    f = lambda y: (qg.romb(y, dx=0.5, return_error=True), qg.simpson(y, dx=0.5))
    (value, error), other = torch.compile(f, fullgraph=True)(y)
    (expected, its_error), another = f(y)
    assert torch.allclose(value, expected, rtol=1e-14) and torch.allclose(other, another, rtol=1e-14)
    assert torch.allclose(error, its_error, rtol=1e-10)


# --------------------------------------------------------------------------------------------------- errors

SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "exp": (lambda x: torch.exp(2 * x), lambda x: torch.exp(2 * x) / 2),
    "cubic": (lambda x: 4 * x**3 - x, lambda x: x**4 - x**2 / 2),
    "line": (lambda x: 2 * x + 1, lambda x: x**2 + x),
    "wave": (lambda x: torch.sin(5 * x + 1), lambda x: -torch.cos(5 * x + 1) / 5),
    "rational": (lambda x: 1 / (1 + x), torch.log1p),
    "root": (torch.sqrt, lambda x: x**1.5 / 1.5),
    "step": (lambda x: (x > 0.4).double(), lambda x: (x - 0.4).clamp_min(0.0)),
    "kink": (lambda x: (x - 0.4).abs(), lambda x: (x - 0.4) * (x - 0.4).abs() / 2),
}


@named
@pytest.mark.parametrize("f", SMOOTH)
@pytest.mark.parametrize("grid", ("dx", "even", "quadratic"))
def test_errors_hold(name: str, f: str, grid: str) -> None:
    """Of what the samples resolve, of both parities; next to a jump or a singular end too."""
    rule = SCIPY[name][0]
    function, antiderivative = SMOOTH[f]
    held = []
    for n in range(24, 56):
        x = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
        x = x**2 if grid == "quadratic" else x
        value, error = rule(function(x), None if grid == "dx" else x, dx=1 / (n - 1), return_error=True)
        exact = antiderivative(x[1:]) - antiderivative(x[0])
        held.append(((value - (exact if "cumulative" in name else exact[-1])).abs() <= error).double().mean())
        assert not error.requires_grad and error.isfinite().all()
    # At a jump one rule agrees with the other by chance in a few places.
    assert torch.stack(held).mean() >= (0.8 if f in ("step", "kink", "root") else 1.0)


def test_errors_are_of_their_orders() -> None:
    """They fall with the square of the spacing, Simpson's with the fourth power, and stay near the true ones."""
    exact = torch.exp(t64(1.0)) - 1
    for rule, order, at_most in ((qg.trapezoid, 2, 4), (qg.simpson, 4, 100)):
        for n in (64, 65):
            errors = []
            for count in (n, 2 * n - 1 if n % 2 else 2 * n):
                x = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
                value, error = rule(x.exp(), x, return_error=True)
                assert (value - exact).abs() <= error <= at_most * (value - exact).abs()
                errors.append(error)
            assert relative_error(errors[0] / errors[1], 2**order) <= 0.1
    x = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)
    value, error = qg.romb(x.exp(), dx=1 / 16, return_error=True)
    assert (value - exact).abs() <= error <= 1e-9
    assert qg.cumulative_simpson(x.exp(), x, return_error=True)[1][-1] <= 1e-3


def test_where_no_error_is_known() -> None:
    for rule in RULES:
        assert (rule(t64([1.0, 2.0]), return_error=True)[1] == torch.inf).all()
        assert (rule(t64([1.0]), return_error=True)[1] == 0.0).all()
    assert qg.romb(t64([1.0, 2.0]), return_error=True)[1] == torch.inf
    errors = qg.cumulative_trapezoid(torch.ones(4), initial=1.0, return_error=True)[1]
    assert errors.shape == (4,) and errors[0] == 0.0
    assert (qg.trapezoid(t64([1.0, torch.nan, 2.0]), return_error=True)[1] == torch.inf).all()


# ------------------------------------------------------------------------------------------------ bad input

Y = torch.ones(2, 5)
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "length": (lambda: qg.simpson(Y, torch.ones(4)), ValueError, r"x of shape \(4,\) does not fit y of shape"),
    "rows": (lambda: qg.trapezoid(Y, torch.ones(3, 5)), ValueError, r"x of shape \(3, 5\) does not fit"),
    "ndim": (lambda: qg.trapezoid(Y[0], torch.ones(3, 5)), ValueError, r"give x of shape \(5,\) for all rows"),
    "scalar x": (lambda: qg.trapezoid(Y, 2.0), ValueError, r"x is one number, not a place for each sample"),
    "dim": (lambda: qg.trapezoid(Y, dim=2), IndexError, r"dim=2 is out of range: y of shape \(2, 5\) has -2 to 1"),
    "dim type": (lambda: qg.trapezoid(Y, dim=1.0), TypeError, "dim=1.0 must be an integer"),
    "scalar": (lambda: qg.simpson(torch.tensor(1.0)), ValueError, "y is a single number: simpson needs samples"),
    "none": (lambda: qg.simpson(Y[:, :0]), ValueError, "simpson needs at least 1 sample: y .* has 0 along dim=-1"),
    "cumulative": (lambda: qg.cumulative_simpson(Y[:, :0]), ValueError, "at least 1 sample"),
    "romb": (lambda: qg.romb(Y[:, :4]), ValueError, r"2\^k \+ 1 samples .* but y has 4"),
    "romb least": (lambda: qg.romb(Y[:, :1]), ValueError, "romb needs at least 2 samples"),
    "complex x": (lambda: qg.trapezoid(Y, torch.ones(5) * 1j), TypeError, "x is complex .* multiply the samples"),
    "complex dx": (lambda: qg.trapezoid(Y, dx=1j), TypeError, "dx is complex"),
    "dx": (lambda: qg.simpson(Y, dx=torch.ones(2)), ValueError, r"dx of shape \(2,\) .* \(dx.unsqueeze\(-1\)\)"),
    "unsorted": (
        lambda: qg.cumulative_simpson(Y, t64([0.0, 1.0, 3.0, 2.0, 4.0])), ValueError,
        "cumulative_simpson needs x that increases strictly, but 3.0 is followed by 2.0 at index 2. Sort",
    ),
    "repeated": (
        lambda: qg.cumulative_simpson(Y, torch.tensor([[0.0, 1, 2, 3, 4], [0, 1, 1, 3, 4]])), ValueError,
        r"1.0 is followed by 1.0 at index 1 of row \(1,\). Merge",
    ),
    "NaN": (lambda: qg.cumulative_simpson(Y, t64([0.0, 1, torch.nan, 3, 4])), ValueError, "must be finite numbers"),
    "initial": (lambda: qg.cumulative_simpson(Y, initial=torch.ones(2)), ValueError, r"initial of shape \(2,\)"),
    "words": (lambda: qg.trapezoid("abc"), TypeError, "y must be a tensor of numbers, not str"),
    "list": (lambda: qg.trapezoid([torch.ones(())] * 3), TypeError, "y is a list of tensors: join them"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
