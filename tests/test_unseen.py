"""What search must not overlook: needles, thin layers, small kinks, sums that underflow; against closed forms.

Each kind was once reported as converged and wrong, because nothing looked where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, pi

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.rules import get_rule
from quadgrad._core.search.kernel import opening

ROUNDING = 8 * torch.finfo(torch.float64).eps
TOLERANCES = (1e-4, 1e-8, 1e-10)


@pytest.fixture
def draw() -> Callable[[float, float, int], Tensor]:
    generator = torch.Generator().manual_seed(11)
    return lambda low, high, n: low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


def lies(result: qg.Result, exact: Tensor | float, slack: Tensor | float = ROUNDING) -> int:
    """Return how many integrals are farther off than reported, though converged."""
    exact = torch.as_tensor(exact, dtype=result.value.dtype).expand_as(result.value)
    off = (result.value.detach() - exact).abs()
    return int((result.converged & (off > result.error + slack * exact.abs())).sum())


def needle(x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    return torch.exp(-(((x - c) / w) ** 2))


# -- needles at breakpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("rtol", TOLERANCES)
def test_needles_at_breakpoints(draw: Callable[..., Tensor], rtol: float, others: int) -> None:
    n = 300
    c, w = draw(0.05, 0.95, n), 10 ** draw(-9, -3, n)
    points = torch.stack((c, *(draw(0, 1, n) for _ in range(others))), -1)
    result = qg.quad(needle, t64(0.0), 1.0, (c, w), points=points, rtol=rtol, on_failure="ignore")
    # Neighbouring numbers are 1e-16 apart: so much of a width cannot be told, and
    # keeps the narrowest from converging.
    blurred = torch.finfo(torch.float64).eps * c / w
    assert lies(result, w * pi**0.5, ROUNDING + blurred) == 0
    assert result.converged[blurred < 1e-3 * rtol].all()


def test_needles_at_breakpoints_on_a_background(draw: Callable[..., Tensor]) -> None:
    n = 300
    c, w = draw(0.05, 0.95, n), 10 ** draw(-7, -3, n)
    f = lambda x, c, w: needle(x, c, w) / w + torch.cos(x)
    result = qg.quad(f, t64(0.0), 1.0, (c, w), points=c[:, None], rtol=1e-6, on_failure="ignore")
    assert result.converged.all()
    assert lies(result, pi**0.5 + torch.sin(t64(1.0))) == 0


@pytest.mark.parametrize("width", [1e-3, 1e-6, 1e-8])
def test_needles_at_breakpoints_in_events_complex_and_with_gradients(width: float) -> None:
    c, w = t64(0.3), leaf(width)
    events = qg.quad(lambda x, w: torch.stack((needle(x, c, w), x * x), -1), t64(0.0), 1.0, (w,), points=[c])
    assert lies(events, torch.stack((w.detach() * pi**0.5, t64(1 / 3)))) == 0
    whole = qg.quad(lambda x, w: (1 + 2j) * needle(x, c, w), t64(0.0), 1.0, (w,), points=[c], rtol=1e-6)
    assert abs(complex(whole.value.detach()) - (1 + 2j) * width * pi**0.5) <= float(whole.error)
    value = qg.quad(needle, t64(0.0), 1.0, (c, w), points=[c], rtol=1e-6).value
    (gradient,) = torch.autograd.grad(value, w)
    assert abs(float(gradient) - pi**0.5) < 1e-5


@pytest.mark.parametrize("width", [1e-2, 1e-3])
def test_needles_at_breakpoints_in_single_precision(width: float) -> None:
    w, c = torch.tensor(width), torch.tensor(0.3)
    result = qg.quad(needle, torch.tensor(0.0), 1.0, (c, w), points=[c], rtol=1e-3)
    assert result.converged and lies(result, width * pi**0.5, 1e-6) == 0


@pytest.mark.parametrize("width", [1e-3, 1e-5, 1e-7])
def test_a_kept_plan_follows_a_needle_at_a_breakpoint(width: float) -> None:
    solver = qg.Integrator(rtol=1e-6)
    c = t64(0.3)
    for w in map(leaf, (0.5, width, 2 * width)):
        result = solver(lambda x, w: needle(x, c, w), t64(0.0), 1.0, (w,), points=[c])
        exact = w.detach() * pi**0.5 / 2 * (torch.erf(0.7 / w.detach()) + torch.erf(0.3 / w.detach()))
        assert result.converged and lies(result, exact) == 0


# -- boxes: what one component shows says nothing of the others --------------------------------------------


def box(x: Tensor, left: Tensor, right: Tensor, height: Tensor) -> Tensor:
    return torch.where((x > left) & (x < right), height, 0.0)


def boxes_at_once(x: Tensor, *args: Tensor) -> Tensor:
    return torch.stack([box(x, *args[k : k + 3]) for k in range(0, len(args), 3)], dim=-1)


@pytest.mark.parametrize("engine", ["kernel", "tensors"])
@pytest.mark.parametrize("kind", ["two events", "three events", "complex", "sum"])
def test_boxes_at_once(
    draw: Callable[..., Tensor], kind: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as wide as places of the coarser grid are apart or wider; of the sum no first node sees any."""
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    n, k = 100 if engine == "kernel" else 25, 3 if kind == "three events" else 2
    width, height = 10 ** draw(-2.38, -2 if kind == "sum" else -0.5, n * k), 10 ** draw(-2, 2, n * k)
    left = draw(0, 1, n * k) * (1 - width)
    left, width, height = (t.reshape(n, k) for t in (left, width, height))
    exact, f = width * height, boxes_at_once
    if kind == "complex":
        f = lambda x, *args: torch.view_as_complex(boxes_at_once(x, *args))
    elif kind == "sum":
        f = lambda x, *args: boxes_at_once(x, *args).sum(-1)
        rule = get_rule("gk21")
        seen = [(left < tau) & (tau < left + width) for tau in (*rule.nodes.tolist(), *rule.looks.tolist())]
        apart = (left[:, 0] - left[:, 1]).abs() > 0.05
        kept = ~torch.stack(seen).any(0).any(1) & apart
        left, width, height = left[kept], width[kept], height[kept]
        exact = (width * height).sum(1)
    args = torch.stack((left, left + width, height), -1).flatten(1).unbind(1)
    result = qg.quad(f, torch.zeros_like(args[0]), 1.0, args, rtol=1e-8, on_failure="ignore")
    value = torch.view_as_real(result.value) if kind == "complex" else result.value
    off, size = (t.abs().reshape(len(left), -1).amax(1) for t in (value - exact, exact))
    assert not (result.converged & (off > result.error + ROUNDING * size)).any()
    assert len(left) >= 8 and result.converged.sum() >= 0.95 * len(left)


def test_what_waits_for_new_breakpoints_is_kept_while_others_of_the_batch_are_followed() -> None:
    """A box that one node saw between two searches, beside an integral in which carried spikes are followed."""
    a, b = t64([0.0495576335093961, -0.09311328325377384]), t64([0.059745521555553585, -0.06831734741505242])
    narrow = t64([0.052900240983400286, -0.08951890652879552]), t64([0.05292267564520352, -0.08906435276929768])
    wider = t64([0.05157967214307842, -0.08291901350918744]), t64([0.051884295717986764, -0.08226459180140737])
    heights = t64([0.0038777501291403413, 0.07665269966424113]), t64([0.0010405438041287132, 122.699015223315])
    exact = torch.stack([(b[1] - b[0]) * h for b, h in zip((narrow, wider), heights, strict=True)], dim=-1)
    result = qg.quad(boxes_at_once, a, b, (*narrow, heights[0], *wider, heights[1]), rtol=1.0239546199126868e-05)
    off = (result.value - exact).abs().amax(1)
    assert (off <= torch.maximum(result.error, 1.03e-5 * exact.amax(1))).all()


# -- next to nothing, not nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("rtol", TOLERANCES)
def test_bells_in_wide_intervals(draw: Callable[..., Tensor], rtol: float) -> None:
    n = 300
    width = 10 ** draw(2, 5, n)
    c = draw(-0.45, 0.45, n) * width
    f = lambda x, c: torch.exp(-((x - c) ** 2) / 2)
    result = qg.quad(f, -width / 2, width / 2, (c,), rtol=rtol, on_failure="ignore")
    exact = (2 * pi) ** 0.5
    assert ((result.value - exact).abs() <= 1e-2 * exact).all()
    assert result.converged.double().mean() > 0.99


@pytest.mark.parametrize("marked", [False, True])
def test_bells_in_a_million_widths(marked: bool) -> None:
    width = 10 ** torch.linspace(2, 6, 100, dtype=torch.float64)
    c = 0.123 * width if marked else torch.zeros_like(width)
    f = lambda x, c: torch.exp(-((x - c) ** 2) / 2)
    result = qg.quad(f, -width / 2, width / 2, (c,), points=c[:, None] if marked else None)
    assert result.converged.all() and lies(result, (2 * pi) ** 0.5) == 0


def test_what_is_hardly_a_number_counts_as_nothing(draw: Callable[..., Tensor]) -> None:
    height, w = 10 ** draw(-307, -250, 300), 10 ** draw(-3, -0.5, 300)
    f = lambda x, h, w: h * w**2 / (w**2 + (x - 0.3) ** 2)
    result = qg.quad(f, t64(0.0), 1.0, (height, w), on_failure="ignore")
    exact = height * w * (torch.atan(0.7 / w) + torch.atan(0.3 / w))
    assert lies(result, exact) == 0


# -- layers beside a limit -------------------------------------------------------------------------------


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("b", [1.0, inf])
def test_layers_beside_a_limit(draw: Callable[..., Tensor], b: float, rtol: float) -> None:
    k = 10 ** draw(-2, 14, 500)
    result = qg.quad(lambda x, k: torch.exp(-k * x), t64(0.0), b, (k,), rtol=rtol)
    assert result.converged.all()
    assert lies(result, 1 / k if b == inf else -torch.expm1(-k) / k) == 0


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("where", ["below", "above"])
def test_jumps_beside_a_limit(draw: Callable[..., Tensor], where: str, rtol: float) -> None:
    apart, height, k = 10 ** draw(-8, -1, 500), 10 ** draw(-3, 1, 500), draw(-3, 3, 500)
    c = apart if where == "below" else 1 - apart
    f = lambda x, c, h, k: h * (x > c) + torch.exp(k * x)
    result = qg.quad(f, t64(0.0), 1.0, (c, height, k), rtol=rtol, on_failure="ignore")
    assert lies(result, height * (1 - c) + torch.expm1(k) / k) == 0


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("broken", ["jump", "kink"])
def test_breaks_beside_the_edges_of_cells(draw: Callable[..., Tensor], broken: str, rtol: float) -> None:
    n = 500
    level, apart = draw(0, 7, n).floor(), 10 ** draw(-7, -1.5, n)
    edge = (draw(0, 1, n) * 2**level).floor() / 2**level
    c = torch.where(edge + apart < 1, edge + apart, edge - apart).clamp(1e-9, 1 - 1e-9)
    height, k = 10 ** draw(-3, 1, n), draw(-3, 3, n)
    if broken == "jump":
        f = lambda x, c, h, k: h * (x > c) + torch.exp(k * x)
        exact = height * (1 - c)
    else:
        f = lambda x, c, h, k: h * (x - c).abs() + torch.exp(k * x)
        exact = height * ((1 - c) ** 2 + c**2) / 2
    result = qg.quad(f, t64(0.0), 1.0, (c, height, k), rtol=rtol, on_failure="ignore")
    assert lies(result, exact + torch.expm1(k) / k) == 0


# -- no wide cell believed alone -------------------------------------------------------------------------


@pytest.mark.parametrize("rtol", [1e-8, 1e-10])
def test_cusps_close_to_an_end(draw: Callable[..., Tensor], rtol: float) -> None:
    c, p = 10 ** draw(-4, -0.5, 10_000), draw(1.0, 3.5, 10_000)
    result = qg.quad(lambda x, c, p: (x - c).abs() ** p, t64(0.0), 1.0, (c, p), rtol=rtol, on_failure="ignore")
    assert lies(result, (c ** (p + 1) + (1 - c) ** (p + 1)) / (p + 1)) == 0


@pytest.mark.parametrize("rtol", [1e-8, 1e-10])
def test_power_tails(draw: Callable[..., Tensor], rtol: float) -> None:
    a, p = 10 ** draw(-2, 2, 10_000), draw(1.1, 6, 10_000)
    result = qg.quad(lambda x, p: x**-p, a, inf, (p,), rtol=rtol, on_failure="ignore")
    assert lies(result, a ** (1 - p) / (p - 1)) == 0
    assert result.converged.double().mean() > 0.99


def test_a_network_with_kinks_behind_an_exponential(draw: Callable[..., Tensor]) -> None:
    """Kinks of relu units, each of which bends the exponent a little; the pieces between them in closed form."""
    n, units = 500, 4
    places, _ = draw(0, 1, n * units).reshape(n, units).sort()
    slopes = draw(-1, 1, n * units).reshape(n, units)

    def exponent(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s * torch.relu(x[..., None] - t)).sum(-1)

    f = lambda x, t, s: torch.exp(exponent(x, t, s))
    result = qg.quad(f, t64(0.0), 1.0, (qg.element(places, 1), qg.element(slopes, 1)))
    edges = torch.cat((t64([0.0]).expand(n, 1), places, t64([1.0]).expand(n, 1)), 1)
    at_edges = torch.stack([exponent(edges[:, i], places, slopes) for i in range(units + 2)], 1)
    rise, width = at_edges.diff(dim=1), edges.diff(dim=1)
    pieces = at_edges[:, :-1].exp() * width * torch.where(rise.abs() < 1e-9, 1 + rise / 2, torch.expm1(rise) / rise)
    assert result.converged.all() and lies(result, pieces.sum(1)) == 0


# -- underflow, zero, rounding ---------------------------------------------------------------------------


def test_a_complex_peak_whose_square_underflows(draw: Callable[..., Tensor]) -> None:
    height, w = 10 ** draw(-250, -140, 200), 10 ** draw(-3, -1, 200)
    f = lambda x, h, w: (1 + 1j) * h / ((x - 0.3) ** 2 + w**2)
    result = qg.quad(f, t64(0.0), 1.0, (height, w))
    exact = (1 + 1j) * (height / w * (torch.atan(0.7 / w) + torch.atan(0.3 / w)))
    assert result.converged.all() and lies(result, exact) == 0


@pytest.mark.parametrize("b", [1.0, inf])
def test_what_an_integral_costs_that_is_zero_everywhere(b: float) -> None:
    result = qg.quad(lambda x: 0 * x, t64(0.0), b)
    assert result.converged and float(result.value) == float(result.error) == 0.0
    assert int(result.nfev) < 2_200  # where halving cost 5,827
    assert len(result.plan) == 1
    several = qg.quad(lambda x: 0 * x, t64(0.0), 1.0, points=[0.2, 0.5, 0.8])
    assert int(several.nfev) < 4_500


@pytest.mark.parametrize(("width", "share"), [(1e-2, 1.0), (1e-3, 1.0), (1e-4, 1.0), (1e-5, 1.0), (1e-6, 0.05)])
def test_the_share_of_needles_that_are_found(draw: Callable[..., Tensor], width: float, share: float) -> None:
    c = draw(0.05, 0.95, 300)
    result = qg.quad(lambda x, c: needle(x, c, t64(width)), t64(0.0), 1.0, (c,), rtol=1e-4, on_failure="ignore")
    found = (result.value - width * pi**0.5).abs() < 1e-2 * width
    assert found.double().mean() >= share


def test_extrapolated_ends_with_gradients_agree_with_themselves(draw: Callable[..., Tensor]) -> None:
    p = torch.cat((t64([0.8991997332444148]), draw(0.5, 0.97, 3_000))).requires_grad_()
    result = qg.quad(lambda x, p: x**-p, t64(0.0), 1.0, (p,))
    assert lies(result, 1 / (1 - p.detach())) == 0
    q = (1 + 10 ** draw(-4, -1, 500)).requires_grad_()
    result = qg.quad(lambda x, q: x**-q, t64(1.0), inf, (q,), on_failure="ignore")
    assert lies(result, 1 / (q.detach() - 1)) == 0


def test_single_precision_that_cannot_be_resolved_does_not_stop_its_batch() -> None:
    w = torch.tensor([6e-7, 1.0], requires_grad=True)
    f = lambda x, w: torch.exp(-(((x - 60.0) / w) ** 2)) / w
    result = qg.quad(f, torch.tensor(0.0), 100.0, (w,), points=[60.0], on_failure="ignore")
    assert abs(float(result.value.detach()[1]) - pi**0.5) < 1e-3


@pytest.mark.parametrize("a", [1e10, 1e11, 1e12])
def test_rounding_of_x_is_not_called_divergence(a: float) -> None:
    result = qg.quad(torch.sin, t64(a), a + 1, on_failure="ignore")
    assert int(result.status) == qg.Status.ROUNDOFF
    assert abs(float(result.value - (torch.cos(t64(a)) - torch.cos(t64(a + 1))))) <= float(result.error)


@pytest.mark.parametrize("compiled", [True, False])
def test_intervals_of_few_numbers_are_not_called_divergent(compiled: bool, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr(opening, "load", lambda: None)
    a, ulps = 1e6 * torch.arange(1.0, 101.0, dtype=torch.float64), torch.logspace(1, 5, 100, dtype=torch.float64)
    a = a + 0.3
    d = a * 2.0**-52 * ulps
    result = qg.quad(lambda x, a, d: torch.exp((a - x) / d) / d, a, a + d, (a, d), rtol=1e-9, on_failure="ignore")
    widths = (a + d - a) / d  # the limits are rounded, too
    assert {int(s) for s in result.status} <= {qg.Status.ROUNDOFF, qg.Status.CONVERGED}
    assert bool(((result.value + torch.expm1(-widths)).abs() <= result.error).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inside_the_integrand_is_no_unmarked_jump(dtype: torch.dtype) -> None:
    """Warnings are errors here; where f jumps by more than its precision there still is one."""
    p = torch.tensor(1.0, requires_grad=True)
    f = lambda x, p: torch.tanh((p * x).to(dtype)).float()
    value = qg.quad(f, torch.tensor(0.0), 1.0, (p,), rtol=1e-2, atol=1e-2, on_failure="ignore").value
    value.backward()
    value = qg.quad(f, torch.tensor(0.0), 1.0, (p,), on_failure="ignore").value
    assert abs(float(value.detach()) - 0.43378) < 5e-3
    with pytest.warns(qg.UnmarkedJumpWarning):
        qg.quad(
            lambda x, p: f(x, p) + 0.25 * (x > 0.3), torch.tensor(0.0), 1.0, (p,), rtol=1e-2, on_failure="ignore"
        )


# -- the ends of very wide pieces ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["kernel", "tensors"])
def test_scales_of_one_at_an_end_of_very_wide_pieces(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On [0, b] and [-b, 0], and beside a piece that was seen; each alone is the same as in the batch."""
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    b = 10.0 ** torch.arange(10, 300, 29, dtype=torch.float64)
    a, b = torch.cat((0 * b, -b)), torch.cat((b, 0 * b))
    for f, exact in (
        (lambda x: torch.exp(-x.abs()), 1.0),
        (lambda x: needle(x, t64(0.0), t64(1.0)), 0.5 * pi**0.5),
    ):
        result = qg.quad(f, a, b, on_failure="ignore")
        assert lies(result, exact) == 0
        assert result.converged[(b - a) < 1e150].all()
        alone = [qg.quad(f, low, high, on_failure="ignore") for low, high in zip(a, b, strict=True)]
        assert result.nfev.tolist() == [int(one.nfev) for one in alone]
        replayed = qg.replay(f, result.plan, a, b)
        torch.testing.assert_close(replayed, result.value, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("engine", ["kernel", "tensors"])
@pytest.mark.parametrize("most", [100, 400, 1500])
@pytest.mark.parametrize("marks", [0, 1, 3])
def test_looks_stay_within_the_budget(
    draw: Callable[..., Tensor], marks: int, most: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needles, nothing at all, boxes and needles on a wave; what was cut for want of nodes did not converge."""
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    n, most = 10, max(most, 31 * (marks + 1))  # the least that a first round takes
    c, w, k = draw(0.05, 0.95, n), 10 ** draw(-9, -2, n), draw(1, 10, n)
    points = torch.stack((c, *(draw(0, 1, n) for _ in range(marks - 1))), -1) if marks else None
    box = lambda x, c, w: ((x - c).abs() < w).double()
    families = {
        "needles": (needle, w * pi**0.5),
        "boxes": (box, 2.0 * w),
        "nothing": (lambda x, c, w: 0.0 * x, 0.0 * w),
        "on waves": (lambda x, c, w: needle(x, c, w) + torch.cos(k[0] * x), w * pi**0.5 + torch.sin(k[0]) / k[0]),
    }
    for name, (f, exact) in families.items():
        result = qg.quad(f, t64(0.0), 1.0, (c, w), points=points, rtol=1e-6, max_nfev=most, on_failure="ignore")
        assert (result.nfev <= most).all(), name
        if name == "nothing":  # with fewer nodes than the look takes it cannot be told
            full = qg.quad(f, t64(0.0), 1.0, (c, w), points=points, rtol=1e-6)
            assert result.converged.tolist() == (full.nfev <= most).tolist()
        if name == "needles" and marks:
            assert lies(result, exact, ROUNDING + torch.finfo(torch.float64).eps * c / w) == 0
