"""Splines through samples: SciPy's results, or exact ones, derivatives, transforms, memory, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.interpolate
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacrev, jvp, vmap

import quadgrad as qg
from helpers import PeakMemory, leaf, t64
from quadgrad._core.sampled.piecewise import Pieces
from quadgrad._core.sampled.spline import Spline, _ends  # pyright: ignore
from quadgrad._core.sampled.tridiagonal import solve_tridiagonal

NAMES = ("not-a-knot", "natural", "clamped", "periodic", "akima", "makima", "pchip")
PAIRS = (((1, 0.5), "natural"), ("not-a-knot", (2, 0.7)), ((2, 0.7), "not-a-knot"), ((2, 0.3), (1, 0.2)))
kinds = pytest.mark.parametrize("kind", NAMES)


def scipys(kind: Any, x: Any, y: Any, axis: int) -> Any:
    if kind == "pchip":
        return scipy.interpolate.PchipInterpolator(x, y, axis=axis)
    if kind in ("akima", "makima"):
        return scipy.interpolate.Akima1DInterpolator(x, y, axis=axis, method=kind)
    if not isinstance(kind, str):
        batch = np.delete(y.shape, axis)
        kind = tuple(end if isinstance(end, str) else (end[0], np.full(batch, end[1])) for end in kind)
    return scipy.interpolate.CubicSpline(x, y, axis=axis, bc_type=kind)


def closed(y: Tensor, kind: Any, dim: int = -1) -> Tensor:
    """Return samples whose last is the first, for a periodic spline."""
    if kind != "periodic":
        return y
    n = y.shape[dim]
    return torch.cat((y.narrow(dim, 0, n - 1), y.narrow(dim, 0, 1)), dim)


def same(value: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    """Compare with what SciPy returned, relative to its largest number."""
    expected = torch.from_numpy(np.array(expected))
    assert value.shape == expected.shape and value.dtype == expected.dtype
    scale = max(1.0, float(expected.abs().nan_to_num(0.0).max())) if expected.numel() else 1.0
    assert torch.allclose(value, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)


# ----------------------------------------------------------------------------------------- SciPy's results


@pytest.mark.parametrize("kind", NAMES + PAIRS, ids=str)
def test_results_are_scipys(kind: Any) -> None:
    """Values, derivatives, integrals, also beyond the knots, from two knots on, along all axes."""
    rng = np.random.default_rng(3)
    for n in (2, 3, 4, 5, 6, 9, 130):
        for shape, dim in (((n,), 0), ((3, n), -1), ((n, 4), 0), ((2, n, 3), 1)):
            x = np.cumsum(0.1 + rng.random(n))
            y = closed(torch.from_numpy(rng.standard_normal(shape)), kind, dim)
            theirs, ours = scipys(kind, x, y.numpy(), dim), qg.spline(y, x, dim=dim, kind=kind)
            width = x[-1] - x[0]
            t = rng.uniform(x[0] - 0.3 * width, x[-1] + 0.3 * width, 20)
            for nu in range(5):
                same(ours(t, nu), theirs(t, nu))
            same(ours(float(x[0])), theirs(x[0]))
            same(ours.integral(), theirs.integrate(x[0], x[-1]))
            assert torch.allclose(ours.cumulative().select(dim, -1), ours.integral(), rtol=1e-12, atol=1e-12)
            inside = x[0] + width * rng.random(2)
            for a, b in (inside, inside[::-1], t[:2], (x[0], x[-1])):
                same(ours.integral(a, b), theirs.integrate(a, b))
            if kind not in ("akima", "makima", "periodic"):
                same(ours.cumulative(t), theirs.antiderivative()(t))


def test_complex_samples_are_scipys() -> None:
    rng = np.random.default_rng(4)
    x, y = np.cumsum(rng.random(8)), rng.standard_normal((2, 8)) + 1j * rng.standard_normal((2, 8))
    for kind in ("not-a-knot", "natural", "clamped"):
        same(qg.spline(y, x, kind=kind).integral(x[1], x[4]), scipys(kind, x, y, 1).integrate(x[1], x[4]))


@pytest.mark.parametrize("kind", ("natural", "not-a-knot"))
def test_slopes_on_uneven_knots_are_exact(kind: str) -> None:
    """Gaps of six orders of magnitude: beside 40 digits, where SciPy's elimination is 1e-13 and 1e-11 off."""
    rng = np.random.default_rng(5)
    for n in (4, 7, 20, 40):
        x, y = np.cumsum(10 ** rng.uniform(-3, 3, n)), rng.standard_normal(n)
        with mpmath.workdps(40):
            exact = [float(s) for s in exact_slopes(kind, x, y)]
        slopes = qg.spline(y, x, kind=kind).slopes
        same(slopes, exact, 1e-15 if kind == "natural" else 1e-11)


def exact_slopes(kind: str, x: Any, y: Any) -> Any:
    """Solve the dense system, with the ends' conditions as they are defined."""
    x, y, n = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in y], len(x)
    h = [b - a for a, b in zip(x, x[1:], strict=False)]
    m = [(b - a) / g for a, b, g in zip(y, y[1:], h, strict=False)]
    matrix, right = mpmath.zeros(n), mpmath.zeros(n, 1)
    for i in range(1, n - 1):
        matrix[i, i - 1], matrix[i, i], matrix[i, i + 1] = h[i], 2 * (h[i] + h[i - 1]), h[i - 1]
        right[i] = 3 * (h[i] * m[i - 1] + h[i - 1] * m[i])
    for row, i in ((0, 0), (n - 1, n - 3)):
        if kind == "natural":
            first, second, gap = (0, 1, 0) if row == 0 else (n - 1, n - 2, n - 2)
            matrix[row, first], matrix[row, second], right[row] = 2, 1, 3 * m[gap]
        else:  # the third derivatives of two neighbouring pieces are equal
            one, other = 1 / h[i] ** 2, 1 / h[i + 1] ** 2
            matrix[row, i], matrix[row, i + 1], matrix[row, i + 2] = one, one - other, -other
            right[row] = 2 * m[i] * one - 2 * m[i + 1] * other
    return mpmath.lu_solve(matrix, right)


@pytest.mark.parametrize("n", (1, 2, 3, 4, 7, 8, 127, 128, 129, 1000))
def test_tridiagonal_systems(n: int) -> None:
    """Dominated as little as a spline's can be, the first row less: beside a dense solution."""
    generator = torch.Generator().manual_seed(n)
    share = torch.rand(2, n, generator=generator, dtype=torch.float64)
    lower, upper = share / 2, (1 - share) / 2
    upper[..., 0] = 0.999
    right = torch.randn(2, n, generator=generator, dtype=torch.float64)
    matrix = torch.eye(n, dtype=torch.float64) + torch.diag_embed(lower[..., 1:], -1)
    matrix = matrix + torch.diag_embed(upper[..., :-1], 1)
    exact = torch.linalg.solve(matrix, right)
    assert torch.allclose(solve_tridiagonal(lower, upper, right), exact, rtol=1e-13, atol=1e-14)


def test_a_periodic_spline_repeats() -> None:
    x = torch.linspace(0.0, 2 * torch.pi, 60, dtype=torch.float64)
    s = qg.spline(closed(torch.sin(x) ** 2, "periodic"), x, kind="periodic")
    t = t64([-7.0, -1.0, 0.3, 6.5, 40.0])
    assert torch.allclose(s(t), torch.sin(t) ** 2, atol=1e-5)
    assert torch.allclose(s.cumulative(t), t / 2 - torch.sin(2 * t) / 4, atol=1e-5)
    assert torch.allclose(s.integral(-7.0, 40.0), s.cumulative(40.0) - s.cumulative(-7.0), rtol=1e-13)


def test_a_short_stretch_keeps_its_digits() -> None:
    """Far from the first knot a difference of running integrals would leave six."""
    x = torch.linspace(0.0, 100.0, 1001, dtype=torch.float64)
    s = qg.spline(x**3, x)
    value = s.integral(99.0101, 99.0101 + 1e-8)
    exact = s(99.0101 + 5e-9) * (t64(99.0101 + 1e-8) - 99.0101)
    assert torch.allclose(value, exact, rtol=1e-13)


# ----------------------------------------------------------------------------------------- shapes and dtypes


def test_shapes() -> None:
    """Knots of each row, places of each row, limits that broadcast: each as a single spline would have it."""
    generator = torch.Generator().manual_seed(6)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    y, x = random(2, 6, 3), (random(2, 6, 3) + 0.1).cumsum(1)
    t, a = random(2, 4, 3), random(5, 2, 3)
    s = qg.spline(y, x, dim=1)
    values, running, integrals = s(t), s.cumulative(t), s.integral(a, 2.0)
    assert values.shape == running.shape == (2, 4, 3) and integrals.shape == (5, 2, 3)
    assert s(t[0, :, 0]).shape == (2, 4, 3) and s(0.5).shape == (2, 3) and s.cumulative().shape == (2, 6, 3)
    for i in range(2):
        for j in range(3):
            one = qg.spline(y[i, :, j], x[i, :, j])
            assert torch.allclose(values[i, :, j], one(t[i, :, j]), rtol=1e-13)
            assert torch.allclose(running[i, :, j], one.cumulative(t[i, :, j]), rtol=1e-12)
            assert torch.allclose(integrals[:, i, j], one.integral(a[:, i, j], 2.0), rtol=1e-12)
            assert one(random(2, 2)).shape == (2, 2)
    assert qg.spline(y[:1], x, dim=1).integral().shape == (2, 3)
    for shape in ((0, 5), (3, 0, 5)):
        s = qg.spline(torch.ones(shape))
        assert s.integral().shape == s(0.5).shape == s.integral(0.0, torch.ones(shape[:-1])).shape == shape[:-1]
    assert qg.spline(torch.ones(3, 4))(torch.ones(0)).shape == (3, 0)


def test_spacing_and_precision() -> None:
    y = torch.rand(2, 5, dtype=torch.float64)
    x = torch.arange(5) * t64([[0.5], [2.0]])
    assert torch.allclose(qg.spline(y, dx=t64([[0.5], [2.0]])).integral(), qg.spline(y, x).integral(), rtol=1e-14)
    assert (
        qg.spline(y.half()).integral().dtype == qg.spline(y.float(), torch.arange(5)).slopes.dtype == torch.float32
    )
    assert torch.allclose(qg.spline(torch.arange(5) ** 2).integral(), t64(64 / 3), rtol=1e-15)
    assert "2 splines through 5 knots" in repr(qg.spline(y)) and "not-a-knot" in repr(qg.spline(y))


UNITS = [(2.0**e, 2.0**-f) for e in (-60, -50, -20, 20, 50, 60) for f in (0, e // 2)]


@pytest.mark.parametrize(("across", "up"), UNITS)
def test_units_do_not_matter(across: float, up: float) -> None:
    """Cubes of gaps of femtoseconds or terahertz are no numbers in single precision; values and integrals are."""
    generator = torch.Generator().manual_seed(4)
    x, t = (torch.rand(n, generator=generator) for n in (9, 20))
    x = (x + 0.1).cumsum(0)
    t = x[0] + t * (x[-1] - x[0])
    samples = torch.rand(2, 9, generator=generator)
    for kind in NAMES:
        y = closed(samples, kind)
        near, far = y.clone().requires_grad_(), (up * y).requires_grad_()
        s, scaled = qg.spline(near, x, kind=kind), qg.spline(far, across * x, kind=kind)
        units = (1.0, across, across**-1, across)
        for f, unit in zip((lambda s, c: s(c * t), lambda s, c: s.cumulative(c * t), lambda s, c: s(c * t, 1),
                            lambda s, c: s.integral(c * t[:1], c * t[1:2])), units, strict=True):  # fmt: skip
            value, expected = f(scaled, across), f(s, 1.0)
            assert torch.equal(value / up / unit, expected), (kind, unit)
            (slopes,) = torch.autograd.grad(value.sum(), far, retain_graph=True)
            (expected,) = torch.autograd.grad(expected.sum(), near, retain_graph=True)
            torch.testing.assert_close(slopes / unit, expected, rtol=1e-5, atol=1e-6)


def test_numbers_follow_samples_to_their_device() -> None:
    """Seen on a device without data, where a spline's checks, which look at numbers, cannot be made."""
    s = qg.spline(torch.rand(2, 5))
    moved = [part.to("meta") for part in (s.x, s.y, s.slopes)]
    there = Spline(Pieces(*moved), -1, "natural", True)
    assert there(0.5).device == there([0.5, 1.0]).device == there.cumulative(0.5).device == moved[0].device
    start, stop = _ends(((1, 0.5), (2, [0.0, 1.0])), moved[1])
    assert start is not None and stop is not None
    for _, value in (start, stop):
        assert isinstance(value, Tensor) and value.device == moved[0].device


# ------------------------------------------------------------------------------------------------ gradients


def everything(kind: Any) -> Callable[..., tuple[Tensor, ...]]:
    """Return all that a spline gives as a function of samples, knots and limits."""

    def f(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        s = qg.spline(closed(y, kind), x, kind=kind, extrapolate="periodic" if kind == "periodic" else True)
        t = torch.stack((a, b), -1)
        return s.integral(), s.integral(a, b), s.cumulative(), s(t), s.cumulative(t), s(t, 1)

    return f


@kinds
@pytest.mark.parametrize("shared", (False, True))
def test_derivatives(kind: str, shared: bool) -> None:
    """First and second, with respect to samples, knots (shared, per row) and limits, inside and beyond."""
    generator = torch.Generator().manual_seed(7)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    inputs = leaf(random(2, 6)), leaf((random(*(6,) if shared else (2, 6)) + 0.2).cumsum(-1))
    inputs = *inputs, leaf([1.1, 0.1]), leaf([2.2, 9.0])
    assert gradcheck(everything(kind), inputs, check_forward_ad=True)
    assert gradgradcheck(everything(kind), inputs, fast_mode=True)


def test_derivatives_of_spacing_and_ends() -> None:
    generator = torch.Generator().manual_seed(8)
    y = leaf(torch.rand(2, 5, generator=generator, dtype=torch.float64))
    f = lambda y, dx, v, w: qg.spline(y, dx=dx, kind=((1, v), (2, w))).integral(0.3, 1.0)
    inputs = y, leaf([[0.4], [0.7]]), leaf([0.2, 0.4]), leaf(0.3)
    assert gradcheck(f, inputs, check_forward_ad=True) and gradgradcheck(f, inputs)


def test_derivatives_with_respect_to_limits_are_values() -> None:
    s = qg.spline(torch.rand(7, dtype=torch.float64), torch.arange(7.0) ** 1.5)
    a, b = leaf(0.7), leaf([0.9, 9.3])
    slopes = torch.autograd.grad(s.integral(a, b).sum(), (a, b))
    assert torch.allclose(slopes[0], -2 * s(a), rtol=1e-12) and torch.allclose(slopes[1], s(b), rtol=1e-12)


DATA: dict[str, list[float]] = {
    "flat": [2.0] * 6,
    "zero": [0.0] * 6,
    "collinear": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    "plateaus": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
    "corner": [0.0, 0.0, 0.0, 1.0, 2.0, 3.0],
    "steps": [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
    "tiny": [0.0, 1e-200, 1.0, 1.0, 1.0 + 1e-15, 2.0],
    "two": [1.0, 1.0],
    "three": [1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("kind", ("akima", "makima", "pchip"))
@pytest.mark.parametrize("data", DATA)
def test_flat_and_collinear_data(kind: str, data: str) -> None:
    """Values are SciPy's, first and second derivatives finite."""
    y, x = leaf(DATA[data]), leaf(list(range(len(DATA[data]))))
    s = qg.spline(y, x, kind=kind)
    theirs = scipys(kind, x.detach().numpy(), y.detach().numpy(), 0)
    same(s(x).detach(), y.detach().numpy())
    same(s.slopes.detach()[:-1], theirs(x.detach().numpy()[:-1], 1))
    slopes = torch.autograd.grad(s.integral(0.2, x[-1] - 0.3) + s(0.4), (y, x), create_graph=True)
    seconds = torch.autograd.grad(sum(g.sum() for g in slopes), (y, x), allow_unused=True)
    assert all(g.isfinite().all() for g in (*slopes, *seconds) if g is not None)


@kinds
def test_transforms(kind: str) -> None:
    """vmap over samples, knots and limits, shared or not; jvp, hessian, jacobians."""
    generator = torch.Generator().manual_seed(9)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    y, x, a, b = random(3, 6), (random(3, 6) + 0.1).cumsum(1), random(3), random(3) + 1.0
    f, each = everything(kind), lambda *inputs: [o[0] if o.ndim else o for o in everything(kind)(*inputs)]
    for out, alone in zip(vmap(each)(y, x, a, b), zip(*map(each, y, x, a, b), strict=True), strict=True):
        assert torch.allclose(out, torch.stack(alone), rtol=1e-12)
    for out, all_rows in zip(vmap(f, in_dims=(1, None, 0, 0))(y.T, x[0], a, b), f(y, x[0], a, b), strict=True):
        assert torch.allclose(out, all_rows, rtol=1e-12)
    energy = lambda y, x: f(y, x, a[0], b[0])[1] ** 2
    assert vmap(hessian(energy, argnums=(0, 1)))(y, x)[1][0].shape == (3, 6, 6)
    slopes = jacrev(energy, argnums=(0, 1))(y[0], x[0])
    _, tangent = jvp(energy, (y[0], x[0]), (x[0], y[0]))
    assert torch.allclose(tangent, slopes[0] @ x[0] + slopes[1] @ y[0], rtol=1e-10)


@kinds
def test_compiled(kind: str) -> None:
    """With fullgraph; what could not be looked at is NaN instead of wrong."""
    f = lambda *inputs: torch.cat([o.flatten() for o in everything(kind)(*inputs)])
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    inputs = leaf(torch.rand(2, 9)), leaf(torch.arange(9.0) ** 1.2), leaf([0.3, 0.5]), leaf([4.0, 2.0])
    one, other = f(*inputs), compiled(*inputs)
    assert torch.allclose(one, other, rtol=1e-12)
    slopes = (torch.autograd.grad(out.square().sum(), inputs) for out in (one, other))
    assert all(torch.allclose(p, q, rtol=1e-10, atol=1e-12) for p, q in zip(*slopes, strict=True))
    assert compiled(inputs[0], inputs[1].flip(0), *inputs[2:]).isnan().any()
    inputs[0].data[0, 3] = torch.nan
    assert compiled(*inputs).isnan().any()


def test_compiled_with_its_gradient() -> None:
    """Traced by autograd too, which is what takes time; and a periodic spline whose ends differ is NaN."""
    f = lambda y, x, kind: qg.spline(y, x, kind=kind).integral(0.3, 2.0)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    inputs = leaf(torch.rand(5)), leaf(torch.arange(5.0) ** 1.2)
    one, other = (torch.autograd.grad(g(*inputs, "natural"), inputs) for g in (f, compiled))
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(one, other, strict=True))
    with torch.no_grad():
        assert compiled(*inputs, "periodic").isnan()


def test_memory_is_linear() -> None:
    """Of a spline through 10^5 knots with its gradient: at most 100 numbers a knot, a dense system has 10^5."""
    peaks = []
    for n in (50_000, 100_000):
        y, x = leaf(torch.rand(n)), leaf(torch.arange(float(n)))
        with PeakMemory() as memory:
            torch.autograd.grad(qg.spline(y, x).integral(), (y, x))
        peaks.append(memory.peak)
    assert peaks[1] <= 2.1 * peaks[0] and peaks[1] <= 100 * 8 * 100_000


# ------------------------------------------------------------------------------------------------ bad input

Y = torch.ones(2, 5)
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "repeated": (
        lambda: qg.spline(Y, t64([0.0, 1.0, 1.0, 2.0, 3.0])), ValueError,
        "spline needs x that increases strictly, but 1.0 is followed by 1.0 at index 1. Merge samples",
    ),
    "unsorted": (
        lambda: qg.spline(Y, t64([0.0, 2.0, 1.0, 3.0, 4.0])), ValueError,
        r"2.0 is followed by 1.0 at index 1. Sort the samples by x \(torch.argsort\)",
    ),
    "decreasing": (lambda: qg.spline(Y, dx=-1.0), ValueError, "flip both x and y where x decreases"),
    "infinite x": (lambda: qg.spline(Y, t64([0, 1, 2, 3, torch.inf])), ValueError, "must be finite numbers"),
    "NaN": (
        lambda: qg.spline(torch.tensor([[1.0, 2.0], [3.0, torch.nan]])), ValueError,
        r"y is nan at index \(1, 1\), samples last \(1 of 4 are not finite\): leave those samples out",
    ),
    "length": (lambda: qg.spline(Y, torch.ones(4)), ValueError, r"x of shape \(4,\) does not fit y of shape"),
    "few": (lambda: qg.spline(Y[:, :1]), ValueError, "spline needs at least 2 samples: y .* has 1 along dim=-1"),
    "dim": (lambda: qg.spline(Y, dim=-3), IndexError, "dim=-3 is out of range"),
    "complex x": (lambda: qg.spline(Y, torch.arange(5) * 1j), TypeError, "x is complex"),
    "complex y": (lambda: qg.spline(Y * 1j, kind="pchip"), TypeError, "y must be real: take y.real and y.imag"),
    "kind": (lambda: qg.spline(Y, kind="linear"), ValueError, "kind='linear' is none of not-a-knot, natural"),
    "kind type": (lambda: qg.spline(Y, kind=3), ValueError, "kind=3 must be one of .* or a pair"),
    "end": (lambda: qg.spline(Y, kind=("natural", "periodic")), ValueError, "for one end: an end is one of"),
    "order": (lambda: qg.spline(Y, kind=((3, 0.0), "natural")), ValueError, r"given as \(1, value\)"),
    "end shape": (lambda: qg.spline(Y, kind=((1, torch.ones(3)), "natural")), ValueError, "must broadcast"),
    "ends differ": (
        lambda: qg.spline(torch.arange(4.0), kind="periodic"), ValueError,
        "must equal its first, but 0.0 and 3.0 differ: repeat the first sample",
    ),
    "extrapolate": (lambda: qg.spline(Y, extrapolate="no"), ValueError, "extrapolate='no' must be True, False"),
    "places": (lambda: qg.spline(Y)(torch.ones(3, 4)), ValueError, r"t of shape \(3, 4\) fits no spline"),
    "complex places": (lambda: qg.spline(Y)(1j), TypeError, "t is complex"),
    "order of derivative": (lambda: qg.spline(Y)(0.5, -1), ValueError, "nu=-1 must be an integer"),
    "limits": (lambda: qg.spline(Y).integral(torch.ones(3)), ValueError, r"batch of splines \(2,\): a \(3,\)"),
    "NaN limit": (lambda: qg.spline(Y).integral(0.0, torch.nan), ValueError, "limit b is NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
