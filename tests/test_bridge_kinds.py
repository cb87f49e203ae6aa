"""Error bars that hold where functions are narrow, printed or kinked; buffers, checkpoints, memory, shapes,
pools."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
import subprocess
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from benchmarks.bridge_functions import KINDS, LINES, functions
from helpers import leaf, t64
from quadgrad import bridge
from quadgrad.bridge import BridgeError, BridgeWarning

METHODS = ("central", "forward", "richardson")
X = t64([0.5, 1.0, 2.0])


# ------------------------------------------------------------------------------------------ narrow features


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [1e-1, 1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("line", range(len(LINES)))
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_a_line_narrower_than_the_step_is_seen(method: str, width: float, line: int, background: float) -> None:
    f, slope = LINES[line]
    w, centre = 650.0 * width, 649.7
    for u in (-1.3, 0.0, 0.6):
        x = leaf(centre + u * w)
        exact = float(slope((x.item() - centre) / w)) / w
        wrapped = bridge.wrap(lambda x: background + f((x - centre) / w), method)
        wrapped(x).backward()
        error = float(wrapped.info.gradient_error[0])
        # Twice: once in a thousand times an error is larger than reported, but not by much.
        assert abs(x.grad.item() - exact) <= 2.0 * error
        assert error < 1e-3 / w, "the bar is no excuse"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [0.3, 50.0])
def test_an_output_that_stays_zero_asks_for_no_endless_steps(method: str, x: float) -> None:
    seen: list[float] = []

    def fn(v: np.ndarray) -> np.ndarray:
        seen.extend(v)
        return np.array([0.0, np.sin(v[0]), 0.0])

    at = leaf([x])
    wrapped = bridge.wrap(fn, method, noise=(1e-5, 1e-8))
    wrapped(at)[1].backward()
    assert max(abs(v - x) for v in seen) <= 2.0 * max(x, 1.0), "not where nobody knows what the function does"
    assert abs(at.grad.item() - math.cos(x)) <= float(wrapped.info.gradient_error[0][0])


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_mixed_units_in_one_vector(method: str) -> None:
    fn = lambda x: np.sin(x[0] / 100.0) + np.sin(3.0 * x[1] / 1e-12)
    x = leaf([300.0, 1e-12])
    wrapped = bridge.wrap(fn, method)
    wrapped(x).backward()
    exact = t64([math.cos(3.0) / 100.0, 3e12 * math.cos(3.0)])
    assert bool(((x.grad - exact).abs() <= torch.from_numpy(wrapped.info.gradient_error[0])).all())
    torch.testing.assert_close(x.grad, exact, rtol=1e-5, atol=0.0)


def test_forward_mode_sees_narrow_lines_too() -> None:
    fn = lambda x: np.exp(-(((x - 650.0) / 0.005) ** 2) / 2.0)
    x = t64(650.003)
    _, slope = torch.func.jvp(bridge.wrap(fn), (x,), (t64(1.0),))
    torch.testing.assert_close(slope, t64(-0.6 / 0.005 * math.exp(-0.18)), rtol=1e-6, atol=0.0)


def test_the_right_derivative_of_a_narrow_line_passes_and_a_wrong_one_does_not() -> None:
    fn = lambda x: np.exp(-(((x - 650.0) / 0.05) ** 2) / 2.0)
    right = lambda x: -(x - 650.0) / 0.05**2 * fn(x)
    assert bridge.check(fn, t64(650.03), derivative=right).verdict == "right"
    assert bridge.check(fn, t64(650.03), derivative=lambda x: 1.05 * right(x)).verdict == "wrong"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0.0, 1.0, -250.0])
@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_a_kink_at_x_has_the_mean_slope_and_covers_both_sides(method: str, place: float, size: float) -> None:
    x = leaf(place)
    wrapped = bridge.wrap(lambda x: 2.0 * x + size * abs(x - place) + np.sin(x), method)
    wrapped(x).backward()
    error, smooth = float(wrapped.info.gradient_error[0]), 2.0 + math.cos(place)
    for side in (smooth - size, smooth + size):
        assert abs(x.grad.item() - side) <= error
    assert error < 4.0 * size
    if method != "forward":
        assert abs(x.grad.item() - smooth) < 1e-2 * size


@pytest.mark.parametrize("method", METHODS)
def test_curvature_is_not_taken_for_noise(method: str) -> None:
    wrapped = bridge.wrap(lambda x: 1.0 + np.exp(-(((x - 650.0) / 1e-3) ** 2) / 2.0), method)
    wrapped(leaf(650.0007)).backward()
    assert wrapped.info.noise < 1e-14


@pytest.mark.parametrize("method", METHODS)
def test_the_error_at_a_jump_is_as_large_as_what_was_found(method: str) -> None:
    wrapped = bridge.wrap(lambda x: np.where(x >= 1.0, 2.0, 1.0) + 0.0 * x, method)
    x = leaf(1.0)
    wrapped(x).backward()
    assert float(wrapped.info.gradient_error[0]) >= abs(x.grad.item())


@cache
def coverage(method: str) -> tuple[dict[str, int], dict[str, int]]:
    missed, count = defaultdict[str, int](int), defaultdict[str, int](int)
    for f in functions(400, 11):
        wrapped = bridge.wrap(f.fn, method, **f.options)
        jacobian = wrapped.linearization([t64(f.x)]).jacobian
        found, error = (g(np.eye(len(f.low))) for g in (jacobian.pull, jacobian.pull_error))
        true = np.maximum(np.abs(found - f.low), np.abs(found - f.high))
        missed[f.kind] += int(np.sum(~(true <= error)))
        count[f.kind] += true.size
    return missed, count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_reported_errors_of_random_functions(method: str, kind: str) -> None:
    missed, count = coverage(method)
    name = {"single": "float32"}.get(kind, kind)
    assert count[name] > 60
    assert missed[name] <= 0.01 * count[name]
    assert sum(missed.values()) <= 0.001 * sum(count.values())


# --------------------------------------------------------------------------------- printed, rounded, single


STAIRS: dict[str, Callable[[float], float]] = {
    "printed": lambda t: float(f"{math.exp(t):.6g}"),
    "rounded": lambda t: round(math.exp(t), 5),
    "single": lambda t: float(np.float32(math.exp(t))),
    "fixed point": lambda t: math.floor(math.exp(t) * 2**20) / 2**20,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STAIRS)
def test_a_staircase_is_noise_as_high_as_its_steps(method: str, name: str) -> None:
    for t in np.linspace(0.1, 1.7, 9):
        x = leaf(float(t))
        wrapped = bridge.wrap(STAIRS[name], method, scalars=True)
        wrapped(x).backward()
        error = float(wrapped.info.gradient_error[0])
        assert abs(x.grad.item() - math.exp(t)) <= error
        assert error < 0.5 * math.exp(t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_rounding_of_the_gradient_is_in_its_error(dtype: torch.dtype) -> None:
    x = torch.tensor([0.3, 1.1, 2.7], dtype=dtype, requires_grad=True)
    wrapped = bridge.wrap(lambda x: np.exp(x.astype(np.float64)), sparsity="elementwise")
    wrapped(x).sum().backward()
    true = (x.grad.double() - torch.exp(x.detach().double())).abs()
    assert bool((true <= torch.from_numpy(wrapped.info.gradient_error[0])).all())


def test_a_declared_noise_may_have_an_absolute_part() -> None:
    wrapped = bridge.wrap(lambda x: 1e-9 * x, noise=(1e-6, 1e-3), bounds=(0.0, 2.0))
    x = leaf([1.0])
    wrapped(x).sum().backward()
    assert wrapped.info.gradient_error[0][0] > 1e-3
    for wrong in ((1e-6, -1.0), (2.0, 0.0), (1e-6, math.inf)):
        with pytest.raises(ValueError, match="noise="):
            bridge.wrap(np.sin, noise=wrong)


# ------------------------------------------------------------------------------------------------- buffers


def reusing() -> Callable[[np.ndarray], np.ndarray]:
    buffer = np.zeros(3)

    def fn(x: np.ndarray) -> np.ndarray:
        buffer[:] = x**2
        return buffer

    return fn


@pytest.mark.parametrize("method", [*METHODS, "complex", "spsa"])
def test_a_function_that_returns_the_same_buffer_every_time(method: str) -> None:
    fn = reusing() if method != "complex" else lambda x: np.square(x, out=np.empty_like(x))
    x = leaf(X)
    wrapped = bridge.wrap(fn, method)
    wrapped(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * X, rtol=1e-5, atol=1e-6)
    rows = torch.stack([X, 2 * X, 3 * X])
    torch.testing.assert_close(vmap(wrapped)(rows), rows**2)


HELD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a view": lambda b: b[:3],
    "a reshaped view": lambda b: b.reshape(1, 3)[0],
    "an array made of its memory": lambda b: np.frombuffer(b.data),
    "itself": lambda b: b,
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("held", HELD)
def test_a_buffer_is_told_from_an_array_that_nobody_holds(held: str, given: bool) -> None:
    buffer, slope = np.zeros(3), np.zeros(3)

    def fn(x: np.ndarray) -> np.ndarray:
        np.sin(x, out=buffer)
        return HELD[held](buffer)

    def vjp(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        np.multiply(g, np.cos(x), out=slope)
        return HELD[held](slope)

    wrapped = bridge.wrap(fn, vjp=vjp) if given else bridge.wrap(fn)
    x, other = leaf(X), leaf(X + 1.0)
    first, second = wrapped(x), wrapped(other)
    (first.sum() + 0.0 * second.sum()).backward()
    buffer[:] = slope[:] = 7.0
    torch.testing.assert_close(first, torch.sin(X), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(x.grad, torch.cos(X), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(other.grad, torch.zeros(3, dtype=torch.float64), rtol=0.0, atol=0.0)


def test_a_buffer_in_a_tuple_and_in_a_pool() -> None:
    fn = reusing()
    x = leaf(X)
    a, b = bridge.wrap(lambda x: (fn(x), fn(x + 1.0)))(x)
    torch.testing.assert_close(a.detach(), (X + 1.0) ** 2)  # one buffer for both is the function's own doing
    with ThreadPoolExecutor(1) as pool:
        torch.testing.assert_close(jacrev(bridge.wrap(fn, executor=pool))(X), torch.diag(2 * X))


def test_a_buffer_of_a_given_derivative() -> None:
    buffer = np.zeros(3)

    def slope(x: np.ndarray) -> np.ndarray:
        buffer[:] = 2 * x
        return buffer

    f = bridge.wrap(lambda x: x**2, derivative=slope)
    x = leaf(X)
    first, second = f(x), f(2 * x)
    (first + second).sum().backward()
    torch.testing.assert_close(x.grad, 2 * X + 8 * X)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_a_c_function_with_a_static_buffer(tmp_path: Path) -> None:
    source = tmp_path / "f.c"
    source.write_text(
        "static double out[3];\n"
        "double *f(const double *x) { for (int i = 0; i < 3; i++) out[i] = x[i] * x[i]; return out; }\n"
    )
    library = tmp_path / "f.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    c = ctypes.CDLL(str(library)).f
    c.restype = ctypes.POINTER(ctypes.c_double)
    fn = lambda x: np.ctypeslib.as_array(c(x.ctypes.data_as(ctypes.POINTER(ctypes.c_double))), (3,))
    torch.testing.assert_close(jacrev(bridge.wrap(fn))(X), torch.diag(2 * X))
    rows = torch.stack([X, 2 * X])
    torch.testing.assert_close(vmap(bridge.wrap(fn))(rows), rows**2)


# ------------------------------------------------------------------------------------------------------ life


OPTIONS: list[dict[str, Any]] = [
    {}, {"derivative": "richardson"}, {"derivative": "spsa"}, {"derivative": np.cos},
    {"vjp": lambda x, g: g * np.cos(x)}, {"jvp": lambda x, v: v * np.cos(x)},
    {"jacobian": lambda x: np.diag(np.cos(x))},
]  # fmt: skip


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "central") + str(o.get("derivative", "")))
def test_under_checkpointing(reentrant: bool, options: dict[str, Any]) -> None:
    f = bridge.wrap(lambda x: np.sin(x), **options)
    x = leaf(X)
    checkpoint(lambda x: (f(2 * x) * x).sum(), x, use_reentrant=reentrant).backward()
    torch.testing.assert_close(x.grad, torch.sin(2 * X) + 2 * X * torch.cos(2 * X), rtol=1e-5, atol=1e-5)


def growth(steps: Callable[[int], object], few: int, many: int) -> float:
    """Return by how many megabytes memory grows between two steps."""
    tracemalloc.start()
    try:
        sizes: list[int] = []
        for i in range(many + 1):
            steps(i)
            if i in (few, many):
                sizes.append(tracemalloc.get_traced_memory()[0])
        return (sizes[1] - sizes[0]) / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"derivative": np.cos}, {"memory": 0.0}])
def test_what_is_remembered_is_bounded_in_bytes(options: dict[str, Any]) -> None:
    f = bridge.wrap(lambda x: np.sin(x), **{"sparsity": "elementwise"} | options)
    x = torch.linspace(0.1, 1.0, 10**5, dtype=torch.float64)

    def step(i: int) -> None:
        y = (x + i).requires_grad_()
        f(y).sum().backward()

    assert growth(step, 2, 20) < 20.0


def test_small_points_are_remembered_and_large_ones_compared_in_full() -> None:
    calls = [0]

    def fn(x: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return np.sin(x)

    f = bridge.wrap(fn, noise=0.0, sparsity="elementwise")
    x = torch.linspace(0.1, 1.0, 10**5, dtype=torch.float64)
    for value in (1.0, 2.0):
        x[1] = value  # none of the numbers by which points are looked up
        y = x.clone().requires_grad_()
        f(y).sum().backward()
        torch.testing.assert_close(y.grad, torch.cos(x))
    assert calls[0] == 2 * (1 + 3)


def test_a_static_that_changes_every_step() -> None:
    f = bridge.wrap(lambda x, k: np.sin(k * x), static=(1,))

    def step(k: int) -> None:
        x = torch.linspace(0.1, 1.0, 500, dtype=torch.float64, requires_grad=True)
        f(x[:3], 0.001 * k).sum().backward()

    gc.collect()
    gc.disable()  # nothing is kept alive by a circle of references
    try:
        assert growth(step, 40, 300) < 0.5
    finally:
        gc.enable()
    x = leaf(X)
    values = [f(x, float(k)) for k in range(1, 40)]
    sum(v.sum() for v in values).backward()
    torch.testing.assert_close(x.grad, sum(k * torch.cos(k * X) for k in range(1, 40)), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (1, True), (0.0, -0.0), ((1,), (1.0,)), (np.float64(1), 1.0)])
def test_statics_are_told_apart_by_type_and_sign(a: Any, b: Any) -> None:
    f = bridge.wrap(lambda x, how: x * len(f"{type(how)}{how}"), static=("how",))
    for how in (a, b):
        torch.testing.assert_close(f(X.clone().requires_grad_(), how), X * len(f"{type(how)}{how}"))


@pytest.mark.parametrize("static", [(2,), (-1,), 7])
def test_a_static_out_of_range(static: Any) -> None:
    with pytest.raises(ValueError, match="no position of an argument of .*counted from 0"):
        bridge.wrap(lambda x, k: x * k, static=static)
    f = bridge.wrap(lambda *args: args[0], static=(3,))
    with pytest.raises(TypeError, match="static=3, but it was called with 1"):
        f(X)


# ---------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("method", [*METHODS, "complex", "spsa"])
def test_numbers_are_the_same_kind_of_object_everywhere(method: str) -> None:
    kinds: set[type] = set()

    def fn(*inputs: np.ndarray) -> np.ndarray:
        kinds.update(map(type, inputs))
        return np.stack([a * inputs[0] for a in inputs])

    inputs = [leaf(float(v)) for v in (1, 2, 3, 4, 5)]
    bridge.wrap(fn, method)(*inputs).sum().backward()
    rows = torch.arange(3.0, dtype=torch.float64)
    vmap(bridge.wrap(fn, method))(*[rows] * 5)
    vmap(grad(lambda *a: bridge.wrap(fn)(*a).sum()))(*[rows] * 5)
    assert {k for k in kinds if k.__name__ != "_Traced"} == {np.ndarray}


TRANSFORMS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "backward": lambda f, x: torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0],
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "vmap": lambda f, x: vmap(f)(x),
    "vmap of grad": lambda f, x: vmap(grad(lambda x: f(x).sum()))(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_inputs_and_batches(transform: str, shape: tuple[int, ...]) -> None:
    run = TRANSFORMS[transform]
    x = t64(np.zeros(shape))
    try:
        exact = run(torch.sin, x.clone())
    except (RuntimeError, ValueError):
        pytest.skip("torch does not do that either")
    for fn in (np.sin, lambda x: np.sin(x)):
        assert run(bridge.wrap(fn), x.clone()).shape == exact.shape


@pytest.mark.parametrize("bounds", [None, (0.0, math.inf)])
def test_one_element_outside_the_domain_does_not_take_the_batch_with_it(bounds: Any) -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.sqrt(x)

    f = bridge.wrap(fn, sparsity="elementwise", bounds=bounds)
    x = leaf([1.0, -1.0, 4.0])
    with pytest.warns(BridgeWarning, match=r"(index \[1\]|element 1 of)"):
        f(x).sum().backward()
    torch.testing.assert_close(x.grad, t64([0.5, math.nan, 0.25]), equal_nan=True)


def test_one_element_with_no_domain_around_it() -> None:
    f = bridge.wrap(lambda x: np.where((x != 1.0) & (abs(x - 1.0) < 1e-2), np.nan, x**2), sparsity="elementwise")
    x = leaf([3.0, 1.0, 4.0])
    with pytest.warns(BridgeWarning, match=r"the first at index \[1\]"):
        f(x).sum().backward()
    torch.testing.assert_close(x.grad, t64([6.0, math.nan, 8.0]), equal_nan=True)


def test_one_lane_without_a_derivative() -> None:
    f = bridge.wrap(lambda x: np.sum(np.sqrt(np.abs(x))), bounds=(0.0, math.inf))
    rows = t64([[1.0, 4.0], [1.0, -4.0], [4.0, 1.0]])
    with pytest.warns(BridgeWarning, match=r"lane \[1\], and 1 of 3"):
        found = vmap(grad(f))(rows)
    exact = t64([[0.5, 0.25], [math.nan, math.nan], [0.25, 0.5]])
    torch.testing.assert_close(found, exact, equal_nan=True)


class Quantity(np.ndarray[Any, Any]):
    unit = "m"


def test_masked_arrays_and_quantities_are_refused() -> None:
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    metres = np.array([1.0, 2.0]).view(Quantity)
    for value, word in ((masked, "mask would be lost"), (metres, "unit would be lost")):
        with pytest.raises(BridgeError, match=word):
            bridge.wrap(np.sin)(value)
        with pytest.raises(BridgeError, match=word):
            bridge.wrap(lambda x, value=value: value)(X)


def test_a_pool_of_threads_nested_in_itself() -> None:
    with ThreadPoolExecutor(1) as pool:
        inner = bridge.wrap(lambda x: np.sin(x), executor=pool)
        outer = bridge.wrap(lambda x: jacrev(inner)(torch.from_numpy(x)).numpy(), executor=pool)
        with pytest.raises(BridgeError, match="a pool that waits for itself hangs"):
            jacrev(outer)(X)
        with pytest.raises(BridgeError, match="a pool that waits for itself hangs"):
            pool.submit(lambda: jacrev(inner)(2 * X)).result()


nested: dict[str, Any] = {}


def through_the_pool(x: np.ndarray) -> np.ndarray:
    return jacrev(nested["inner"])(torch.from_numpy(x)).numpy()


def test_a_pool_of_processes_nested_in_itself() -> None:
    with ProcessPoolExecutor(1) as pool:
        nested["inner"] = bridge.wrap(np.cos, executor=pool)
        with pytest.raises(BridgeError, match="a pool that waits for itself hangs"):
            jacrev(bridge.wrap(through_the_pool, executor=pool))(X)
