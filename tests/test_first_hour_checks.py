"""What gives wrong numbers, or none, silently: told by every verb, and healthy integrands are left alone."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

import quadgrad as qg
from helpers import leaf, t64

NORMAL = torch.distributions.Normal(t64(0.0), 1.0)
P = t64([2.0, 1.0, 5.0])


def told(call: Callable[[], Any], kind: type[Exception] = Exception) -> str:
    """Return what the error of a call says, notes included."""
    with pytest.raises(kind) as caught:
        call()
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


# -- an integrand that mixes -----------------------------------------------------------------------------

MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda x, p: p.sum() * x,
    "mean": lambda x, p: p.mean() * x,
    "max": lambda x, p: p.max() * x,
    "norm": lambda x, p: torch.linalg.vector_norm(p) * x,
    "first": lambda x, p: p[..., 0] * x,
    "first of all": lambda x, p: p.flatten()[0] * x,
    "product": lambda x, p: (p.flatten() @ p.flatten()) * x,
    "softmax": lambda x, p: torch.softmax(p, -1) * x,
    "cumsum": lambda x, p: p.cumsum(-1) * x,
    "flip": lambda x, p: p.flip(-1) * x,
    "events": lambda x, p: torch.stack((x, p.sum() * x), dim=-1),
    "complex": lambda x, p: p.sum() * torch.exp(1j * x),
}


@pytest.mark.parametrize("f", MIXED.values(), ids=MIXED)
def test_args_that_are_taken_as_a_whole_are_told_by_every_verb(f: Callable[[Any, Any], Any]) -> None:
    flat = lambda x, p: f(x[..., 0], p)
    for call in (
        lambda: qg.quad(f, 0.0, 1.0, (P,)),
        lambda: qg.quad(f, 0.0, 1.0, (leaf(P),), points=0.5),
        lambda: qg.quad(f, 0.0, 1.0, (P.float(),)),
        lambda: qg.antiderivative(f, 0.0, 1.0, (P,)),
        lambda: qg.expectation(f, NORMAL, (P,), method="quad"),
        lambda: qg.cubature(flat, [0.0, 0.0], 1.0, (P,)),
        lambda: qg.qmc(flat, [0.0, 0.0], 1.0, (P,)),
        lambda: qg.vegas(flat, [0.0, 0.0], 1.0, (P,)),
        lambda: qg.Integrator(qg.quad)(f, 0.0, 1.0, (P,)),
    ):
        assert "quadgrad.element(t, ndim=k)" in told(call, qg.IntegrandError)


WHOLE: list[Callable[[Any], Any]] = [
    lambda x: x / x.max(),
    lambda x: x / x.sum(),
    lambda x: (x - x.mean()) / x.std(),
    lambda x: torch.softmax(x, 0),
    lambda x: x.flip(0),
    lambda x: torch.cumsum(x, 0),
    lambda x: nn.functional.batch_norm(x[..., None], None, None, training=True)[..., 0],
]


@pytest.mark.parametrize("f", WHOLE)
def test_x_taken_as_a_whole_is_told_where_there_is_one_integral(f: Callable[[Any], Any]) -> None:
    assert "net.eval()" in told(lambda: qg.quad(f, 0.0, t64(1.0)), qg.IntegrandError)


@pytest.mark.parametrize("f", [*WHOLE[:2], lambda x: x - x.mean()])
@pytest.mark.parametrize("end", [1.0, math.inf, t64([1.0, 1.0, 1.0])], ids=["finite", "infinite", "equal"])
def test_x_taken_as_a_whole_is_told_where_integrals_share_their_limits(f: Callable[[Any], Any], end: Any) -> None:
    """They were called at the same x side by side, of which each is the largest."""
    assert "net.eval()" in told(lambda: qg.quad(lambda x, p: p * f(x), 0.0, end, (P,)), qg.IntegrandError)


@pytest.mark.parametrize("verb", [qg.cubature, qg.qmc, qg.vegas])
def test_points_taken_as_a_whole_are_told_where_integrals_share_their_box(verb: Callable[..., Any]) -> None:
    f = lambda x, p: p * x[..., 0] / x.max()
    assert "net.eval()" in told(lambda: verb(f, [0.0, 0.0], 1.0, (P,)), qg.IntegrandError)


def test_limits_that_differ_show_what_is_made_of_all_x() -> None:
    assert "p.sum()" in told(lambda: qg.quad(lambda x: x / x.max(), 0.0, P), qg.IntegrandError)


def test_integrands_that_look_mixed_and_are_not() -> None:
    """Warnings are errors here. Rounding that f amplifies is none, and what is random is told elsewhere."""
    w = qg.element(t64([[1.0, 2.0], [3.0, 4.0], [0.5, 0.25]]), ndim=1)
    result = qg.quad(lambda x, w: w.sum(-1) * x, 0.0, t64(1.0), (w,))
    torch.testing.assert_close(result.value, t64([1.5, 3.5, 0.375]))
    shared = t64([1.0, 2.0])
    assert float(qg.quad(lambda x: shared.sum() * x, 0.0, t64([1.0, 2.0])).value[0]) == pytest.approx(1.5)
    amplified = lambda x, p: torch.exp(3e6 * torch.log1p(1e-7 * torch.sin(p * x)) * 10.0)
    for dtype in (torch.float32, torch.float64):
        assert qg.quad(amplified, 0.0, 1.0, (P.to(dtype),), on_failure="ignore").value.isfinite().all()
    inner = lambda x, p: qg.quad(lambda y, x, p: torch.exp(-p * (x - y) ** 2), 0.0, 1.0, (x, p)).value
    assert qg.quad(inner, 0.0, t64(1.0), (P,)).converged.all()
    one_by_one = qg.quad(lambda x, p: p * math.sin(x), 0.0, t64(1.0), (P,), vectorized=False)
    torch.testing.assert_close(one_by_one.value, P * (1 - math.cos(1.0)))
    lanes = torch.func.vmap(lambda p: qg.quad(lambda x: p.sum() * x, 0.0, t64(1.0)).value)(P[:, None])
    torch.testing.assert_close(lanes, P / 2)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    features = lambda x, p: net(torch.stack(torch.broadcast_tensors(x, p), dim=-1))[..., 0]
    assert qg.quad(features, 0.0, 1.0, (P.float(),)).converged.all()
    generator = torch.Generator().manual_seed(0)
    noisy = lambda x: x + 0.1 * torch.rand(x.shape, generator=generator, dtype=x.dtype)
    qg.quad(noisy, 0.0, t64([1.0, 1.0]), rtol=1e-1, max_nfev=500, on_failure="ignore")


# -- tensors that f closes over and that leave torch ------------------------------------------------------


class Scaled:
    def __init__(self) -> None:
        self.weight = leaf(3.0)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight.item() * x


C, LINEAR = leaf(2.0), nn.Linear(1, 1).double()
times_c = lambda x: C.item() * x
ESCAPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "item": (lambda x: C.item() * x, "C requires grad"),
    "tolist": (lambda x: C.tolist() * x, "C requires grad"),
    "a global of another function": (lambda x: times_c(x) + 1.0, "C requires grad"),
    "a weight": (lambda x: LINEAR.weight.item() * x, "LINEAR.weight requires grad"),
    "an object": (Scaled(), "weight requires grad"),
    "partial": (functools.partial(lambda c, x: c.item() * x, leaf(1.0)), "requires grad"),
    "made inside": (lambda x: (2.0 * C).item() * x, "requires grad"),
}


@pytest.mark.parametrize(("f", "says"), ESCAPES.values(), ids=ESCAPES)
def test_what_f_closes_over_and_leaves_torch_is_told(f: Callable[[Any], Any], says: str) -> None:
    flat = lambda x: f(x[..., 0])
    for call in (
        lambda: qg.quad(f, 0.0, t64(1.0)),
        lambda: qg.quad(f, t64([0.0, 0.5]), leaf(1.0)),
        lambda: qg.antiderivative(f, 0.0, t64(1.0)),
        lambda: qg.cubature(flat, [0.0, 0.0], t64(1.0)),
        lambda: qg.qmc(flat, [0.0, 0.0], t64(1.0)),
    ):
        with pytest.warns(qg.SeveredGradientWarning, match=f"{says}.*doctor.check"):
            call()


def test_a_decision_by_what_f_closes_over_is_told_with_its_place() -> None:
    with pytest.warns(qg.UnmarkedJumpWarning, match="x = 0.4,"):
        qg.quad(lambda x: (x > 0.2 * C).to(x.dtype), 0.0, t64(1.0))


def test_what_is_meant_is_no_severed_gradient() -> None:
    """Warnings are errors here."""

    def without(x: Tensor) -> Tensor:
        with torch.no_grad():
            return C.item() * x

    for f in (
        lambda x: C.detach() * x,
        without,
        lambda x: (C, x)[1],
        lambda x: C * x,
        lambda x: C.detach().item() * x,
    ):
        qg.quad(f, 0.0, t64(1.0))
    with torch.no_grad():
        qg.quad(lambda x: C.item() * x, 0.0, t64(1.0))


def test_the_doctors_command_of_every_verb_names_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The statement that the warning gives is run, where the call stood."""
    p, f = leaf(2.0), lambda x, p: p.item() * (x if x.ndim < 3 else x.sum(-1))
    for call in (
        "qg.quad(f, 0.0, t64(1.0), (p,))",
        "qg.antiderivative(f, 0.0, t64(1.0), (p,))",
        "qg.expectation(lambda x, p: p.item() * x * x, NORMAL, (p,), method='quad')",  # of x alone it is 0
        "qg.qmc(lambda x, p: p.item() * x.sum(-1), [0.0, 0.0], t64(1.0), (p,))",
    ):
        names = globals() | {"p": p, "f": f}
        with pytest.warns(qg.SeveredGradientWarning) as caught:
            eval(call, names)
        run = re.search(r"print\((.*)\)$", str(caught[0].message))
        assert run is not None
        command = run[1].replace("lambda: ...", f"lambda: {call}")  # there is no source of what is evaluated
        report = eval(command, names)
        assert report.verdict.name == "SEVERED" and "item" in str(report)


# -- sentences that fit -----------------------------------------------------------------------------------


def test_one_component_behind_x_is_printed() -> None:
    """A network's (n, 1) would meet (n,) in a loss, and give (n, n)."""
    net = nn.Linear(1, 1)
    b = torch.tensor([1.0, 2.0])
    assert "shape: (2, 1): f returned one component" in repr(qg.quad(lambda x: net(x[..., None]), 0.0, b))
    assert "component" not in repr(qg.quad(lambda x: net(x[..., None])[..., 0], 0.0, b))
    assert "component" not in repr(qg.quad(lambda x: torch.stack((x, x), -1), 0.0, b))


def test_what_to_raise_is_called_as_the_verb_calls_it() -> None:
    peak = lambda x: torch.exp(-1e4 * ((x - 0.37) ** 2).sum(-1))
    sampled = qg.qmc(peak, [0.0] * 3, 1.0, rtol=1e-9, n=2**10, on_failure="ignore").message
    assert "raise n, or loosen" in sampled and "max_nfev" not in sampled and "points." not in sampled
    boxes = qg.cubature(peak, [0.0] * 3, 1.0, rtol=1e-9, max_nfev=3_000, on_failure="ignore").message
    assert "raise max_nfev" in boxes and "split the box" in boxes and "(n " not in boxes
    nothing = qg.qmc(lambda x: 0.0 * x[..., 0], [0.0] * 3, 1.0, on_failure="ignore")
    assert bool(nothing.converged) or "f was 0 at all" in nothing.message
    unseen = lambda x: ((x - 0.3777).abs().amax(-1) < 1e-4).to(x.dtype)
    assert (
        "f was 0 at all 4,096 points"
        in qg.qmc(unseen, [0.0] * 4, 1.0, rtol=1e-6, n=2**12, on_failure="ignore").message
    )


@pytest.mark.parametrize("part", ("real", "imaginary"))
def test_the_part_that_diverges_is_named(part: str) -> None:
    factor, other = (1.0, "imag") if part == "real" else (1j, "real")
    result = qg.quad(lambda x: factor / x + torch.exp(1j * x), 0.0, t64(1.0), on_failure="ignore")
    assert f"the {part} part" in result.message and f"return .{other} of it" in result.message
    both = qg.quad(lambda x: (1 + 1j) / x, 0.0, t64(1.0), on_failure="ignore")
    assert "part" not in both.message


def test_infinity_times_zero_far_out_is_told_with_what_to_write() -> None:
    """As in the price of an option, where exp(x) overflows before the density is 0."""
    b = t64(math.inf)
    apart = qg.quad(lambda x: torch.exp(0.2 * x) * torch.exp(-(x**2)), -math.inf, b, on_failure="ignore")
    assert "exp(u - v) for exp(u) * exp(-v)" in apart.message
    (end,) = re.findall(r"end the interval where f is 0, as at x = ([\d.]+)\.$", apart.message)
    ended = qg.quad(lambda x: torch.exp(0.2 * x) * torch.exp(-(x**2)), -math.inf, t64(float(end)))
    assert float(ended.value) == pytest.approx(math.sqrt(math.pi) * math.exp(0.01), rel=1e-8)
    together = qg.quad(lambda x: torch.exp(0.2 * x - x**2), -math.inf, b)
    assert float(together.value) == pytest.approx(math.sqrt(math.pi) * math.exp(0.01), rel=1e-10)
    assert "exp(u" not in qg.quad(lambda x: torch.log(x - 0.5), 0.0, t64(1.0), on_failure="ignore").message


def test_overflow_of_single_precision_is_named() -> None:
    hot = lambda x, t: (1e13 * x) ** 3 / torch.expm1(x / t)
    message = qg.quad(hot, 0.0, math.inf, (torch.tensor(1.0),), on_failure="ignore").message
    assert "In single precision what exceeds 3.4e38 is infinite" in message
    assert bool(qg.quad(hot, 0.0, math.inf, (t64(1.0),)).converged)


def test_the_help_of_the_integrator_begins_with_its_use() -> None:
    text = qg.Integrator.__doc__ or ""
    assert text.index("Examples") < text.index("Parameters") < text.index("Notes")
    assert len(text[: text.index("Examples")].splitlines()) < 10


# -- more of what raises ----------------------------------------------------------------------------------

NORM = scipy.stats.norm
array_wrap = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


@array_wrap
@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x, p: scipy.stats.norm.pdf(x, p), r"wrap\(scipy.stats.norm.pdf\)"),
        (lambda x, p: NORM.pdf(x, p), r"wrap\(NORM.pdf\)"),
        (lambda x, p: np.exp(-p * x) if x.ndim else 0.0, r"torch.exp for np.exp$"),
        (lambda x, p: np.sqrt(p) + x.round() + x.size(0), r"torch.sqrt for np.sqrt$"),
        (lambda x, p: np.vectorize(lambda t: t + 1.0)(p * x), r"quadgrad.bridge.wrap\(f\)"),
        (lambda x, p: np.random.normal(p * x), r"quadgrad.bridge.wrap\(f\)"),  # noqa: NPY002
        (lambda x, p: np.linalg.norm(p * x), r"wrap\(np.linalg.norm\)"),
    ],
)
def test_names_are_those_that_the_code_loads(f: Callable[[Any, Any], Any], says: str) -> None:
    text = told(lambda: qg.quad(f, 0.0, t64(1.0), (leaf(2.0),)))
    assert re.search(says, text) and "ndim" not in text.partition("torch for NumPy")[2]


OPERANDS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: x + None, "is its return missing"),  # type: ignore[operator]
    (lambda x: x + "1", "A str is no number"),
    (lambda x: x + [1.0, 2.0], r"x.new_tensor\(\[...\]\)"),
    (lambda x: x * [1.0, 2.0], r"x.new_tensor\(\[...\]\)"),
    (lambda x: x + torch.exp, r"end it with \(x\)"),
    (lambda x: x + x.sin, r"end it with \("),
    (lambda x: torch.min(x, 0.5), r"torch.clamp\(x, max=c\)"),
    (lambda x: torch.atan2(x, 1.0), r"takes tensors: make a tensor of it"),
    (lambda x: float(f"{x:.3f}"), "written by no format"),
    (lambda x: {x}, "torch.stack"),
    (lambda x: (y for y in [x]), "torch.stack"),
    (lambda x: "x", "a constant is a float"),
    (lambda x: NORMAL, "log_prob"),
    (lambda x: x.to_sparse(), "to_dense"),
]


@pytest.mark.parametrize(("f", "says"), OPERANDS)
@pytest.mark.parametrize("verb", [qg.quad, qg.antiderivative], ids=["quad", "antiderivative"])
def test_what_is_no_number(verb: Callable[..., Any], f: Callable[[Any], Any], says: str) -> None:
    assert re.search(says, told(lambda: verb(f, 0.0, t64(1.0))))


CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: qg.quad(lambda x, p: p * x, 0.0, 1.0, (None,)), r"args\[0\] is None"),
    (lambda: qg.quad(lambda x, p: p * x, 0.0, 1.0, ({1.0},)), r"args\[0\] is a set"),
    (lambda: qg.quad(lambda x, p: p * x, 0.0, 1.0, "p"), r"args\[0\] is a str"),
    (lambda: qg.quad(torch.exp, 0.0, 1.0, rtol="1e-3"), "rtol='1e-3' is no number: write rtol=1e-6"),  # type: ignore[arg-type]
    (lambda: qg.quad(torch.exp, 0.0, 1.0, plan=qg.quad(torch.exp, 0.0, 1.0)), "pass result.plan"),  # type: ignore
    (lambda: qg.replay(torch.exp, qg.quad(torch.exp, 0.0, 1.0), 0.0, 1.0), "pass result.plan"),  # type: ignore
    (lambda: qg.replay(torch.exp, 0.0, 1.0), r"replay\(f, plan, a, b\)"),  # type: ignore
    (lambda: qg.gradient_error(C, C), "takes a Result"),  # type: ignore[arg-type]
    (lambda: qg.expectation(NORMAL, torch.exp), "f comes first"),  # type: ignore[arg-type]
    (lambda: qg.expectation(torch.exp, torch.distributions.Normal), "the class Normal: pass an object"),
    (lambda: qg.expectation(torch.exp, scipy.stats.norm()), "torch.distributions, or integrate"),
    (lambda: qg.expectation(torch.exp, torch.ones(3)), r"f\(sample\).mean\(0\)"),
    (lambda: qg.Integrator(qg.antiderivative), "takes a plan"),  # type: ignore[arg-type]
    (lambda: qg.Integrator(qg.trapezoid), "takes a plan"),  # type: ignore[arg-type]
    (lambda: qg.Nested((0.0, 1.0), (0.0, 1.0)), "one list of pairs"),
    (lambda: qg.Nested(None), "pairs"),  # type: ignore[arg-type]
    (lambda: qg.trapezoid(torch.ones(5), 0.1), "dx="),
    (lambda: qg.trapezoid(torch.ones(5), torch.ones(5, device="meta")), "y is on cpu, x on meta"),
]


@pytest.mark.parametrize(("call", "says"), CALLS)
def test_arguments_that_are_something_else(call: Callable[[], Any], says: str) -> None:
    assert re.search(says, told(call, (TypeError, ValueError)))  # type: ignore[arg-type]


# -- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", (["--version"], ["--help"], ["integrate", "--help"], ["doctor", "--help"]))
def test_what_needs_no_torch_does_not_import_it(words: list[str]) -> None:
    code = (
        "import runpy, sys; sys.argv = ['quadgrad', *sys.argv[1:]]\n"
        "try: runpy.run_module('quadgrad', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quadgrad" in done.stdout


def test_public_names_are_there_in_a_command_too() -> None:
    code = (
        "import sys; sys.argv = ['quadgrad']; import quadgrad as qg\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'quad' in dir(qg) and qg.quad.__module__ == 'quadgrad' and qg._restore_plan"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_solver_that_shares_its_steps_among_nodes_is_not_mixing() -> None:
    def solved(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        steps = 20 + x.numel() % 7  # as many as the batch has it
        y, h = torch.ones_like(x * p), x * p / steps
        for _ in range(steps):
            y = y * (1.0 + h + h**2 / 2.0 + h**3 / 6.0)
        return y

    p = torch.tensor([0.5, 1.0], dtype=torch.float64)
    result = qg.quad(solved, 0.0, 1.0, (p,), rtol=1e-3)
    assert torch.allclose(result.value, p.expm1() / p, rtol=1e-3)


def test_values_that_vary_by_less_than_the_tolerance_are_not_mixing() -> None:
    def nearly(x: Tensor) -> Tensor:  # as quantised networks do, whose steps depend on the largest number
        return torch.exp(-x) * (1.0 + 3e-3 * x.amax())

    b = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    result = qg.quad(nearly, 0.0, b, rtol=2e-2)
    assert bool(((result.value + torch.expm1(-b)).abs() <= 2e-2 * result.value).all())
    with pytest.raises(qg.IntegrandError, match="for the same x"):
        qg.quad(nearly, 0.0, b)
