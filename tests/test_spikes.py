"""What one node alone saw, in cells of any generation, is followed; and far modes of a logarithm. Closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf, pi

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import t64
from quadgrad._core.rules import get_rule
from quadgrad._core.search.kernel import opening

EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def draw() -> Callable[[float, float, int], Tensor]:
    generator = torch.Generator().manual_seed(45)
    return lambda low, high, n: low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


@pytest.fixture(params=["kernel", "tensors"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    return request.param


def bell(x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    return torch.exp(-(((x - c) / w) ** 2))


def seen_and_missed(
    f: Callable[..., Tensor], plain: Callable[..., Tensor], args: tuple[Tensor, ...], exact: Tensor, rtol: float
) -> tuple[int, int]:
    """Return how many integrals over the line are off by more than they say, and of these how many were seen.

    Seen: f differs at a node by 4 eps of its scale from ``plain``, which lacks the narrow feature.
    """
    result = qg.quad(f, t64(-inf), inf, args, rtol=rtol, on_failure="ignore")
    off = (result.value - exact).abs()
    wrong = (result.converged & (off > result.error + 8 * EPS * exact) & (off > rtol * exact)).nonzero().flatten()
    seen = 0
    for i in wrong.tolist():
        heard: list[Tensor] = []

        def spy(x: Tensor, *args: Tensor, heard: list[Tensor] = heard) -> Tensor:
            if x.numel() > 1:
                heard.append(x.flatten())
            return f(x, *args)

        own = tuple(arg[i : i + 1] for arg in args)
        qg.quad(spy, t64([-inf]), inf, own, rtol=rtol, on_failure="ignore")
        x = torch.cat(heard)
        seen += bool((f(x, *own) - plain(x, *own)).abs().max() > 4 * EPS * plain(x, *own).abs().max())
    return len(wrong), seen


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_two_modes_on_the_line(draw: Callable[..., Tensor], engine: str, rtol: float) -> None:
    n = 300
    far = 10 ** draw(0.7, 2.3, n) * (draw(0, 1, n) < 0.5).double().mul(2).sub(1)
    args = (draw(-5, 5, n), 10 ** draw(-0.3, 0.3, n), far, 10 ** draw(-0.3, 0.3, n))
    f = lambda x, c, w, d, v: bell(x, c, w) + bell(x, d, v)
    plain = lambda x, c, w, d, v: bell(x, c, w)
    wrong, seen = seen_and_missed(f, plain, args, pi**0.5 * (args[1] + args[3]), rtol)
    assert seen <= 2  # of 300; before it were 57 to 64
    assert wrong < 0.2 * n  # those that no node saw


@pytest.mark.parametrize("height", [1e-3, 1.0, 1e3])
def test_the_foot_of_a_needle_on_a_wave_that_is_resolved(
    draw: Callable[..., Tensor], engine: str, height: float
) -> None:
    """One node sees the foot alone, from 3 to 4.5 widths away."""
    nodes = qg.quad(torch.exp, t64(0.0), 1.0).plan.nodes(t64(0.0), t64(1.0)).flatten()
    n = 100
    w, away = 10 ** draw(-4, -2.5, n), draw(3, 4.5, n)
    c = nodes[7] + away * w
    f = lambda x, c, w: height * bell(x, c, w) + torch.cos(x)
    result = qg.quad(f, t64(0.0), 1.0, (c, w), rtol=1e-9)
    exact = height * w * pi**0.5 + math.sin(1)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error + 8 * EPS * exact).all()


def foot_cases(draw: Callable[..., Tensor], n: int, faintest: float) -> tuple[Tensor, ...]:
    """Return centre, width and wave number: one node of [0, 1] alone sees a foot, of ``faintest`` to 1e-3."""
    nodes = torch.as_tensor(get_rule("gk21").nodes)[3:18]
    c = nodes[draw(0, len(nodes), n).long()]
    away = torch.log(1 / 10 ** draw(math.log10(faintest), -3, n)).sqrt()
    w = 10 ** draw(-3.3, -2.7, n)
    return c + away * w, w, draw(0.5, 10, n)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("kind", ["real", "events", "complex", "shifted"])
def test_feet_fainter_than_the_tolerance(draw: Callable[..., Tensor], engine: str, kind: str, rtol: float) -> None:
    """What a first cell resolves but for one value is followed, though the tolerance would allow for that value."""
    c, w, k = foot_cases(draw, 200, 1e-10)
    start = 40.0 * (kind == "shifted")
    # Where f is called no argument says where the needle is.
    f = lambda x, c, w, k: bell(x + 7.0, c, w) + torch.cos(k * (x - start))
    many = {
        "events": lambda *args: torch.stack((torch.ones_like(args[0]), f(*args)), -1),
        "complex": lambda *args: torch.complex(torch.ones_like(args[0]), f(*args)),
    }.get(kind, f)
    result = qg.quad(many, t64(start), start + 1.0, (c + start + 7.0, w, k), rtol=rtol)
    value = {"events": lambda v: v[..., 1], "complex": lambda v: v.imag}.get(kind, lambda v: v)(result.value)
    off = (value - (w * pi**0.5 + torch.sin(k) / k)).abs()
    assert ((off <= result.error + 8 * EPS * value.abs()) | (off <= rtol * value.abs())).all()


def test_rounding_is_not_followed_as_feet(draw: Callable[..., Tensor], engine: str) -> None:
    """No nodes are spent where all is smooth: near 0, and where x is rounded more."""
    n = 200
    k = draw(0.5, 10, n)
    waves = qg.quad(lambda x, k: torch.cos(k * x), t64(0.0), 1.0, (k,), rtol=1e-6)
    assert (waves.nfev <= 27).all()
    far = qg.quad(lambda x, k: torch.cos(k * (x - 500.0)), t64(500.0), 501.0, (k,), rtol=1e-6)
    assert (far.nfev <= 26).all()


@pytest.mark.parametrize("kind", ["events", "complex"])
def test_each_component_has_feet_of_its_own(engine: str, kind: str) -> None:
    nodes = qg.quad(torch.exp, t64(0.0), 1.0).plan.nodes(t64(0.0), t64(1.0)).flatten()
    c, w = nodes[7] + 4e-3, t64(1e-3)
    # The second component is too small to matter beside the first at that node.
    parts = lambda x: (1e6 * torch.cos(x), bell(x, c, w))
    join = (lambda x: torch.stack(parts(x), -1)) if kind == "events" else (lambda x: torch.complex(*parts(x)))
    result = qg.quad(join, t64(0.0), 1.0, rtol=1e-13, atol=1e-9)
    small = result.value[1] if kind == "events" else result.value.imag
    assert abs(float(small) - 1e-3 * pi**0.5) <= float(result.error)


def test_what_is_resolved_is_not_followed(engine: str) -> None:
    """As many nodes as without, of what neither rises at single nodes nor has one coefficient too many."""
    functions = (torch.exp, lambda x: torch.cos(20 * x), lambda x: 1 / (x + 1e-2), torch.sqrt)
    assert [int(qg.quad(f, t64(0.0), 1.0, rtol=1e-8).nfev) for f in functions] == [26, 68, 203, 95]


def log_pairs() -> list[tuple[float, float, float]]:
    return [
        (side * away, c, w)
        for away in (10, 20, 50, 100, 200, 500)
        for side in (1, -1)
        for c in (-3, 0, 2)
        for w in (1, 0.5)
    ]


@pytest.mark.parametrize("half", [False, True])
def test_far_modes_of_a_logarithm(half: bool) -> None:
    """72 pairs of Gaussians; of those on the half line none is cut off by more than rounding."""
    pairs = t64(log_pairs())
    d, c, w = pairs[(pairs[:, 0] > 0) | (not half)].T
    f = lambda x, c, d, w: torch.logaddexp(-((x - c) ** 2) / 2, -(((x - d) / w) ** 2) / 2)
    result = qg.quad(f, t64(-50.0 if half else -inf), inf, (c, d, w), log=True)
    exact = torch.log((1 + w) * (2 * pi) ** 0.5)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()
    assert (result.error < 1e-2).all()
