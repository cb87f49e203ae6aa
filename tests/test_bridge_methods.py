"""How derivatives are computed: steps, noise, bounds, counts, the Jacobian's cache and colours, executors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev, jvp

from bridge_problems import white
from helpers import leaf, t64
from quadgrad import bridge
from quadgrad.bridge import BridgeError
from quadgrad.bridge.structure import Structure


@dataclass
class Counted:
    """A function that keeps what it was called with."""

    fn: Callable[..., Any]
    seen: list[np.ndarray] = field(default_factory=list)

    def __call__(self, x: np.ndarray) -> Any:
        self.seen.append(np.array(x))
        return self.fn(x)

    @property
    def calls(self) -> int:
        return len(self.seen)

    def reset(self) -> None:
        self.seen.clear()


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((found - exact).abs() / exact.abs()).max())


# ---------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        ("central", 3 * 5),
        ("forward", 2 * 5),
        ("richardson", 16 * 5),
        ("complex", 5 + 1 + 3),
        ("spsa", 2 * 8 + 2 * 4 + 2 * 2 * 2),
    ],
)
def test_evaluations_of_a_backward_pass(method: str, evaluations: int) -> None:
    """For ``complex`` the probe: one complex evaluation, a traced one, three of central differences."""
    f = Counted(lambda x: np.sum(np.exp(x)))
    wrapped = bridge.wrap(f, method, noise=0.0)
    y = wrapped(leaf([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert f.calls == 1
    y.backward()
    if method == "complex":
        assert wrapped.info.nfev == evaluations
        assert f.calls == 1 + 5 + 2 + 3
    else:
        assert wrapped.info.nfev == evaluations
        assert f.calls == 1 + evaluations


def test_the_noise_table_takes_six_evaluations() -> None:
    wrapped = bridge.wrap(lambda x: np.sum(np.exp(x)))
    wrapped(leaf([0.1, 0.2])).backward()
    assert wrapped.info.nfev == 3 * 2 + 6


def test_a_directional_derivative_takes_three_evaluations() -> None:
    f = Counted(lambda x: np.tanh(x) * x[0])
    wrapped = bridge.wrap(f, noise=0.0)
    x, v = torch.linspace(0.1, 1.0, 50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    _, slope = jvp(wrapped, (x,), (v,))
    assert f.calls == 1 + 3
    torch.testing.assert_close(slope, jvp(lambda x: torch.tanh(x) * x[0], (x,), (v,))[1])


def test_an_elementwise_function_takes_as_many_as_one_number() -> None:
    f = Counted(np.exp)
    bridge.wrap(f, noise=0.0, sparsity="elementwise")(leaf(np.linspace(0, 1, 1000))).sum().backward()
    assert f.calls == 1 + 3


def test_a_vectorized_stencil_is_two_calls() -> None:
    f = Counted(lambda x: np.sum(x**3, axis=-1))
    bridge.wrap(f, noise=0.0, vectorized=True)(leaf(np.linspace(0, 1, 30))).backward()
    assert [x.shape for x in f.seen] == [(30,), (60, 30), (8, 30)]


def test_without_gradient_the_function_is_called_once_and_nothing_is_kept() -> None:
    f = Counted(np.sin)
    wrapped = bridge.wrap(f)
    with torch.no_grad():
        wrapped(leaf([1.0]))
    wrapped(t64([1.0]))
    assert f.calls == 2
    assert wrapped.info is None


# ----------------------------------------------------------------------------------------------- the cache


def test_the_jacobian_is_computed_once_for_an_input() -> None:
    f = Counted(lambda x: np.sin(x) * x[0])
    x = leaf([0.3, 0.4, 0.5])
    y = bridge.wrap(f, noise=0.0)(x)
    y.sum().backward(retain_graph=True)
    f.reset()
    for i in range(3):
        torch.autograd.grad(y[i], x, retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(3, dtype=torch.float64), is_grads_batched=True, retain_graph=True)
    assert f.calls == 0


def test_a_function_that_has_changed_is_not_answered_from_memory() -> None:
    """Its new value gives it away."""
    scale = [1.0]
    wrapped = bridge.wrap(lambda x: scale[0] * x**2)
    x = leaf([1.0, 2.0])
    for value in (1.0, 3.0):
        scale[0] = value
        (found,) = torch.autograd.grad(wrapped(x).sum(), x)
        torch.testing.assert_close(found, value * 2 * x.detach())


def test_what_the_value_does_not_show_can_be_forgotten() -> None:
    slope = [1.0]
    wrapped = bridge.wrap(lambda x: slope[0] * (x - 1.0))
    x = leaf([1.0])
    for value in (1.0, 3.0):
        slope[0] = value
        wrapped.forget()
        (found,) = torch.autograd.grad(wrapped(x).sum(), x)
        torch.testing.assert_close(found, t64([value]))


# ---------------------------------------------------------------------------------------- steps and noise


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("method", ["central", "richardson"])
def test_steps_find_the_scale_of_the_function(scale: float, method: str) -> None:
    x = leaf(scale * np.array([0.3, 1.0, 2.0]))
    wrapped = bridge.wrap(lambda x: np.exp(np.sin(x / scale)), method, sparsity="elementwise")
    wrapped(x).sum().backward()
    z = x.detach() / scale
    exact = torch.exp(torch.sin(z)) * torch.cos(z) / scale
    assert relative(x.grad, exact) < (1e-7 if method == "central" else 1e-10)
    assert bool(((x.grad - exact).abs() <= torch.from_numpy(wrapped.info.gradient_error[0])).all())


def test_a_tiny_positive_input_keeps_the_stencil_inside_the_domain() -> None:
    x = leaf([1e-7, 1e-3])
    bridge.wrap(np.log)(x).sum().backward()
    assert relative(x.grad, 1 / x.detach()) < 1e-7


def test_steps_follow_the_precision_of_the_output() -> None:
    x = t64([0.4, 1.3]).float().requires_grad_()
    wrapped = bridge.wrap(np.exp)
    wrapped(x).sum().backward()
    assert relative(x.grad, torch.exp(x.detach())) < 1e-4
    assert 1e-8 < wrapped.info.noise < 1e-5


@pytest.mark.parametrize("noise", [1e-10, 1e-6, 1e-3])
def test_the_noise_level_is_estimated(noise: float) -> None:
    wrapped = bridge.wrap(lambda x: np.exp(-x) * (1 + noise * 3**0.5 * white(x)), sparsity="elementwise")
    x = leaf(np.linspace(0.1, 2.0, 200))
    wrapped(x).sum().backward()
    assert noise / 3 < wrapped.info.noise < 3 * noise
    true = (x.grad + torch.exp(-x.detach())).abs()
    reported = torch.from_numpy(wrapped.info.gradient_error[0])
    assert (true <= reported).double().mean() >= 0.95
    assert reported.median() < 50 * noise ** (2 / 3), "the bar is no excuse"


def test_a_declared_noise_level_is_used() -> None:
    seen: list[float] = []

    def fn(x: np.ndarray) -> np.ndarray:
        seen.append(float(x[0]))
        return x**2

    bridge.wrap(fn, noise=1e-6)(leaf([1.0])).sum().backward()
    assert 5e-3 < max(abs(x - 1.0) for x in seen[1:3]) < 2e-2


def test_given_derivatives_report_no_error() -> None:
    wrapped = bridge.wrap(np.sin, derivative=np.cos)
    wrapped(leaf([1.0])).sum().backward()
    assert wrapped.info.method == "given"
    assert wrapped.info.error is None
    assert wrapped.info.gradient_error is None


def test_info_has_the_shapes_of_inputs_and_outputs() -> None:
    wrapped = bridge.wrap(lambda x, p: (np.outer(x, x) * p, x.sum()))
    x, p = leaf([1.0, 2.0, 3.0]), leaf(2.0)
    y, z = wrapped(x, p)
    (y.sum() + z).backward()
    info = wrapped.info
    assert [e.shape for e in info.error] == [(3, 3), ()]
    assert [e.shape for e in info.gradient_error] == [(3,), ()]
    assert info.method == "central"
    assert info.nfev == 6 + (3 + 3) * 4  # none moves all outputs: three looks farther away


# ---------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("method", ["central", "forward", "richardson", "spsa"])
@given(fraction=st.floats(0.0, 1.0))
def test_no_point_lies_outside_the_bounds(method: str, fraction: float) -> None:
    f = Counted(lambda x: np.exp(x))
    x = leaf([2.0 + fraction * 3.0])
    y = bridge.wrap(f, method, bounds=(2.0, 5.0))(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    slope.backward()
    assert min(x.min() for x in f.seen) >= 2.0
    assert max(x.max() for x in f.seen) <= 5.0
    exact = torch.exp(x.detach())
    assert relative(slope.detach(), exact) < (1e-4 if method in ("spsa", "forward") else 1e-8)
    if method != "spsa":  # next to a bound it looks at the slope two steps inside
        assert relative(x.grad, exact) < 1e-3


def test_bounds_of_one_of_several_inputs() -> None:
    def fn(x: np.ndarray, rate: np.ndarray) -> np.ndarray:
        if rate < 0:
            raise ValueError("negative rate")
        return x * np.sqrt(rate + 1)

    for key in ("rate", 1):
        x, rate = leaf([1.0, -1.0]), leaf(0.0)
        bridge.wrap(fn, bounds={key: (0.0, math.inf)})(x, rate).sum().backward()
        torch.testing.assert_close(x.grad, t64([1.0, 1.0]))
        torch.testing.assert_close(rate.grad, t64(0.0))


def test_an_input_outside_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"differentiated at 3.* outside the bounds \[0, 1\]"):
        bridge.wrap(lambda x: np.sin(x), bounds=(0.0, 1.0))(leaf([0.5, 3.0])).sum().backward()
    with pytest.raises(ValueError, match=r"differentiated at 3.* outside the bounds \[0, 1\]"):
        bridge.wrap(np.sin, bounds=(0.0, 1.0))(leaf([3.0])).sum().backward()


def test_a_point_with_no_domain_around_it() -> None:
    f = bridge.wrap(lambda x: np.where(x == 1.0, x, np.nan), sparsity="elementwise")
    with pytest.raises(BridgeError, match="finite at the point itself, but not around it.*bounds"):
        f(leaf([1.0])).sum().backward()


# ---------------------------------------------------------------------------------------------- sparsity


def banded(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, 1)
    return padded[:-2] ** 2 + np.sin(padded[1:-1]) + padded[2:] * padded[1:-1]


BAND = np.eye(40) + np.eye(40, k=1) + np.eye(40, k=-1)


@pytest.mark.parametrize("matrix", [BAND, scipy.sparse.csr_array(BAND), scipy.sparse.coo_matrix(BAND)])
def test_a_band_of_three_is_found_with_three_colours(matrix: Any) -> None:
    f = Counted(banded)
    x = torch.linspace(0.1, 1.0, 40, dtype=torch.float64)
    sparse = jacrev(bridge.wrap(f, noise=0.0, sparsity=matrix))(x)
    assert f.calls == 1 + 3 * 3
    torch.testing.assert_close(sparse, jacrev(bridge.wrap(banded))(x), atol=1e-9, rtol=1e-9)


def test_a_sparsity_of_the_wrong_shape() -> None:
    with pytest.raises(
        BridgeError, match=r"sparsity has shape \(40, 40\); expected \(outputs, inputs\) = \(3, 3\)"
    ):
        bridge.wrap(banded, sparsity=BAND)(leaf([1.0, 2.0, 3.0])).sum().backward()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 0.9))
def test_colours_never_share_an_output(seed: int, outputs: int, inputs: int, density: float) -> None:
    pattern = np.random.default_rng(seed).random((outputs, inputs)) < density
    structure = Structure.declared(pattern, inputs, outputs)
    for group in range(structure.groups):
        members = structure.colour == group
        assert (pattern[:, members].sum(axis=1) <= 1).all()
    for j in range(inputs):
        for i in np.flatnonzero(pattern[:, j]):
            assert structure.source[structure.colour[j], i] == j


# ----------------------------------------------------------------------------------------- the complex step


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (np.abs, "numpy.absolute"),
        (lambda x: np.linalg.norm(x), "numpy.linalg.norm"),
        (lambda x: np.where(x > 0, x, 2 * x), "numpy.greater"),
        (lambda x: x if x[0] > 1 else 2 * x, "numpy.greater"),
        (lambda x: np.maximum(x, 0), "numpy.maximum"),
        (lambda x: np.clip(x, 0, 1), "clip"),
        (lambda x: x.real * x, ".real"),
        (lambda x: x * x.conj(), "conj"),
        (lambda x: np.sort(x), "sort"),
        (lambda x: np.exp(x.astype(float)), ".astype(float64)"),
        (lambda x: np.exp(1j * x), "its output is complex"),
        (lambda x: np.array([math.sin(v) for v in x]), "float()"),
        (
            lambda x: np.sqrt(np.asarray(x).view(np.ndarray) * np.asarray(x).view(np.ndarray).conj()),
            "differs from central",
        ),
        (lambda x: np.abs(np.asarray(x).view(np.ndarray)), "drops the imaginary part"),
        (lambda x: np.asarray(x).view(np.float64), "for complex inputs"),
    ],
)
def test_the_complex_step_is_refused_with_the_reason(fn: Any, reason: str) -> None:
    x = leaf([0.5, 1.5])
    with pytest.raises(BridgeError, match="the complex step is wrong for") as caught:
        bridge.wrap(fn, "complex")(x).abs().sum().backward()
    assert reason in str(caught.value)
    auto = bridge.wrap(fn, "auto")
    auto(x).abs().sum().backward()
    assert auto.info.method == "central"
    assert reason in auto.info.note


@pytest.mark.parametrize(
    "fn",
    [
        np.exp,
        lambda x: np.linalg.solve(np.eye(2) + np.outer(x, x), x),
        lambda x: np.array([x[0] * x[1], np.sum(x**2)]),
        lambda x: np.einsum("i,j->ij", x, np.sin(x)),
        lambda x: np.stack([v * v for v in x]),
    ],
)
def test_the_complex_step_is_used_where_it_is_right(fn: Any) -> None:
    auto, reference = bridge.wrap(fn, "auto"), bridge.wrap(fn, "richardson")
    x = leaf([0.5, 1.5])
    auto(x).sum().backward()
    assert auto.info.method == "complex"
    torch.testing.assert_close(jacrev(auto)(x.detach()), jacrev(reference)(x.detach()), rtol=1e-10, atol=1e-12)


def test_functions_of_numbers_that_cannot_take_complex_ones() -> None:
    auto = bridge.wrap(math.exp, "auto", scalars=True)
    auto(leaf([0.5])).sum().backward()
    assert auto.info.method == "central"
    assert "does not take complex numbers (TypeError" in auto.info.note


# ------------------------------------------------------------------------------------------------- SPSA


def test_spsa_of_many_inputs_costs_what_it_says_and_knows_how_wrong_it_is() -> None:
    f = Counted(lambda x: np.sum(np.sin(x) * np.arange(1, 501)))
    x = leaf(np.linspace(0.0, 1.0, 500))
    wrapped = bridge.wrap(f, "spsa", noise=0.0, seed=3)
    wrapped(x).backward()
    assert f.calls == 1 + 48
    exact = torch.cos(x.detach()) * torch.arange(1, 501)
    assert ((x.grad - exact).abs() <= torch.from_numpy(wrapped.info.gradient_error[0])).double().mean() >= 0.95


def test_spsa_is_unbiased_and_its_seed_counts() -> None:
    x = leaf(np.linspace(0.0, 1.0, 40))
    weights = torch.linspace(-1, 1, 40, dtype=torch.float64)
    found = []
    for seed in range(300):
        wrapped = bridge.wrap(lambda x: np.sum(x**2 * weights.numpy()), "spsa", seed=seed)
        found.append(torch.autograd.grad(wrapped(x), x)[0])
    mean, spread = torch.stack(found).mean(0), torch.stack(found).std(0) / 300**0.5
    exact = 2 * x.detach() * weights
    assert ((mean - exact).abs() < 4 * spread + 1e-9).double().mean() > 0.99
    again = bridge.wrap(lambda x: np.sum(x**2 * weights.numpy()), "spsa", seed=7)
    assert torch.equal(torch.autograd.grad(again(x), x)[0], found[7])


# ---------------------------------------------------------------------------------------------- executors


@bridge.wrap
def decorated(x: np.ndarray) -> np.ndarray:
    return np.sin(x) * x[0]


def slow(x: np.ndarray) -> np.ndarray:
    time.sleep(0.002 * (x[0] % 0.1))
    return np.array([np.sum(np.sin(x)), np.prod(x)])


def slow_number(x: float, p: float) -> float:
    return math.exp(-p * x)


@pytest.mark.parametrize("options", [{}, {"vectorized": True}])
def test_an_executor_changes_nothing_but_the_time(options: dict[str, Any]) -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        time.sleep(1e-4 * float(np.sum(x) % 3))
        return np.stack([np.sum(np.sin(x), -1), np.prod(x, -1)], -1)

    x = t64([0.3, 0.4, 0.5])
    alone = jacrev(bridge.wrap(fn, **options))(x)
    with ThreadPoolExecutor(4) as pool:
        together = jacrev(bridge.wrap(fn, executor=pool, **options))(x)
    assert torch.equal(alone, together)


def test_a_pool_of_processes_takes_functions_and_decorated_functions() -> None:
    x = leaf([0.3, 0.4, 0.5])
    with ProcessPoolExecutor(2) as pool:
        for fn in (slow, decorated.fn):
            wrapped = bridge.wrap(fn, executor=pool)
            assert torch.equal(jacrev(wrapped)(x.detach()), jacrev(bridge.wrap(fn))(x.detach()))
        numbers = bridge.wrap(slow_number, scalars=True, executor=pool)
        torch.testing.assert_close(numbers(x.detach(), 2.0), torch.exp(-2.0 * x.detach()))


def test_an_exception_in_a_pool_carries_the_input() -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        if x[0] != 1.0:
            raise RuntimeError("moved")
        return x

    with ThreadPoolExecutor(2) as pool, pytest.raises(RuntimeError, match="moved") as caught:
        bridge.wrap(fn, executor=pool)(leaf([1.0])).sum().backward()
    assert "raised by fn for the input [" in caught.value.__notes__[0]


def test_only_submit_is_asked_of_an_executor() -> None:
    """So that Dask's and MPI's will do."""

    class Minimal:
        def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    x = leaf([0.3, 0.4])
    bridge.wrap(np.sin, executor=Minimal())(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.cos(x.detach()))


def test_second_derivatives_forget_what_was_known_of_a_function_that_has_changed():
    scale = np.array(2.0)
    f = bridge.wrap(lambda x: scale * x**2)
    x = torch.tensor([0.7, 1.5], dtype=torch.float64, requires_grad=True)
    for value in (2.0, 3.0):
        scale[...] = value
        (dy,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        (ddy,) = torch.autograd.grad(dy.sum(), x)
        assert torch.allclose(ddy, torch.full_like(x, 2 * value), rtol=1e-5)
