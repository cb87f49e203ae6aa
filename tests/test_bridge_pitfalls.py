"""What went wrong elsewhere when functions were bridged, each a test; and the helpers around wrap."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from helpers import leaf, t64
from quadgrad import bridge
from quadgrad.bridge import BridgeError
from quadgrad.bridge.equivalents import table

X = t64([0.5, 1.0, 2.0])


def test_forward_mode_gives_no_silent_zeros_and_reverse_transforms_do_not_raise() -> None:
    f = bridge.wrap(np.exp)
    torch.testing.assert_close(jvp(f, (X,), (torch.ones_like(X),))[1], torch.exp(X))
    torch.testing.assert_close(jacfwd(f)(X), torch.diag(torch.exp(X)))
    torch.testing.assert_close(jacrev(f)(X), torch.diag(torch.exp(X)))
    torch.testing.assert_close(grad(lambda x: f(x).sum())(X), torch.exp(X))
    with torch.autograd.forward_ad.dual_level():
        y = f(torch.autograd.forward_ad.make_dual(X, torch.ones_like(X)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, torch.exp(X))


def test_fullgraph_and_forward_mode_go_together() -> None:
    f = bridge.wrap(np.exp)
    torch.compiler.reset()
    x = leaf(X)
    torch.compile(lambda x: f(x).sum(), fullgraph=True, backend="aot_eager")(x).backward()
    torch.testing.assert_close(x.grad, torch.exp(X))
    torch.testing.assert_close(jvp(f, (X,), (X,))[1], X * torch.exp(X))


def test_batched_gradients() -> None:
    f = bridge.wrap(lambda x: np.outer(x, x).sum(0))
    x = leaf(X)
    (rows,) = torch.autograd.grad(f(x), x, torch.eye(3, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(rows, jacrev(lambda x: torch.outer(x, x).sum(0))(X))
    torch.testing.assert_close(torch.autograd.functional.jacobian(f, X, vectorize=True), rows)


def test_a_step_that_knows_of_a_float32_box() -> None:
    def box(x: np.ndarray) -> np.ndarray:
        return np.sin(x.astype(np.float32)).astype(np.float64)

    x = leaf(np.linspace(0.1, 1.4, 50))
    bridge.wrap(box, sparsity="elementwise")(x).sum().backward()
    relative = (x.grad / torch.cos(x.detach()) - 1).abs()
    assert relative.median() < 1e-4
    h = 1e-6  # what people write
    naive = (box(x.detach().numpy() + h) - box(x.detach().numpy() - h)) / (2 * h)
    assert np.median(np.abs(naive / np.cos(x.detach().numpy()) - 1)) > 5e-3


@pytest.mark.parametrize(
    "fn", [np.abs, np.linalg.norm, lambda x: x.real, lambda x: x * np.conj(x), np.hypot(1, 1).__class__]
)
def test_the_complex_step_is_not_taken_where_it_is_wrong(fn: Any) -> None:
    if isinstance(fn, type):
        fn = lambda x: np.hypot(x, 1.0)
    auto = bridge.wrap(fn, "auto")
    x = leaf(X)
    auto(x).sum().backward()
    assert auto.info.method == "central"
    wanted = bridge.wrap(fn, "richardson")
    torch.testing.assert_close(x.grad, grad(lambda x: wanted(x).sum())(X), rtol=1e-8, atol=1e-9)
    with pytest.raises(BridgeError, match="the complex step is wrong"):
        bridge.wrap(fn, "complex")(leaf(X)).sum().backward()


def test_a_number_taken_out_of_an_array_keeps_its_gradient_under_the_compiler() -> None:
    def fn(a: np.ndarray) -> np.ndarray:
        return float(a[0]) * a

    f = bridge.wrap(fn)
    exact = grad(lambda a: (a[0] * a).sum())(X)
    for call in (
        f,
        torch.compile(f, backend="aot_eager"),
        torch.compile(lambda a: f(a), fullgraph=True, backend="aot_eager"),
    ):
        torch.compiler.reset()
        x = leaf(X)
        call(x).sum().backward()
        torch.testing.assert_close(x.grad, exact)


def test_a_vjp_that_ignores_the_cotangent_is_found_out() -> None:
    ignoring = bridge.wrap(lambda x: np.sin(x), vjp=lambda x, g: np.cos(x))
    x = leaf(X)
    ignoring(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.cos(X))  # a check made with ones passes
    report = bridge.check(ignoring, X)
    assert not report.passed
    assert report.entries[0].gap == max(e.gap for e in report.entries)
    lines = str(report).splitlines()
    assert "the derivative is WRONG" in lines[0]
    assert bridge.check(lambda x: np.sin(x), X, vjp=lambda x, g: g * np.cos(x)).passed


def test_a_right_derivative_is_told_from_a_wrong_one_where_a_solver_is_beside_it() -> None:
    """As solvers are off: by a part of their tolerance that is smooth beside x, and no noise."""
    coarse = lambda x: np.sin(x) * (1 + 3e-9 * x)
    report = bridge.check(coarse, X, derivative=np.cos)
    assert report.verdict == "wrong" and any("noise=(10 * rtol, 10 * atol)" in note for note in report.notes)
    assert bridge.check(coarse, X, derivative=np.cos, noise=(1e-8, 0.0)).passed
    assert bridge.check(coarse, X, derivative=lambda x: 1.001 * np.cos(x)).notes == ()


def test_what_the_function_does_to_its_argument_stays_inside() -> None:
    kept: list[np.ndarray] = []

    def fn(x: np.ndarray) -> np.ndarray:
        kept.append(x)
        x += 1.0
        return x[:2]

    f = bridge.wrap(fn)
    x = leaf(X)
    y = f(x)
    y.sum().backward()
    for array in kept:
        array[:] = -1.0
    assert torch.equal(x.detach(), X)
    assert torch.equal(y.detach(), X[:2] + 1)
    torch.testing.assert_close(x.grad, t64([1.0, 1.0, 0.0]))


# ----------------------------------------------------------------------------------------------- around wrap


def test_only_inputs_that_need_a_gradient_are_moved() -> None:
    moved: set[str] = set()

    def fn(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        if not np.array_equal(images, np.ones(1000)):
            moved.add("images")
        return images[:3] * kernel

    f = bridge.wrap(fn)
    images, kernel = torch.ones(1000, dtype=torch.float64), leaf([1.0, 2.0, 3.0])
    f(images, kernel).sum().backward()
    grad(lambda k: f(images, k).sum())(kernel.detach())
    torch.func.hessian(lambda k: f(images, k).sum())(kernel.detach())
    assert moved == set()
    assert f.info.nfev <= 4 * 3 + 24


GROWTH = {
    "vjp": lambda x, p, g: (g * p * np.exp(p * x), g * np.sum(x * np.exp(p * x))),
    "jvp": lambda x, p, v: np.sum(np.exp(p * x) * (p * v[0] + x * v[1])),
    "jacobian": lambda x, p: (p * np.exp(p * x), np.sum(x * np.exp(p * x))),
}
WAYS = [*({"derivative": m} for m in ("central", "forward", "richardson", "complex", "spsa")),
        *({name: fn} for name, fn in GROWTH.items()), {n: GROWTH[n] for n in ("vjp", "jvp")}]  # fmt: skip


@pytest.mark.parametrize("options", WAYS, ids=lambda o: o.get("derivative", " and ".join(o)))
def test_mixed_derivatives_of_inputs_asked_for_one_after_the_other(options: dict[str, Any]) -> None:
    f = bridge.wrap(lambda x, p: np.sum(np.exp(p * x)), **options)
    twin = lambda x, p: torch.exp(p * x).sum()
    tolerance = {"rtol": 1e-6, "atol": 2e-7}
    x, p = leaf(X), leaf(0.3)
    (by_x,) = torch.autograd.grad(f(x, p), x, create_graph=True)
    found = torch.autograd.grad(by_x.sum(), (x, p))
    (by_x,) = torch.autograd.grad(twin(x, p), x, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(by_x.sum(), (x, p)), **tolerance)
    exact = jacfwd(jacrev(twin, 0), 1)(X, t64(0.3))
    for mixed in (
        jacfwd(jacrev(f, 0), 1),
        jacfwd(jacfwd(f, 0), 1),
        jacrev(jacfwd(f, 0), 1),
        jacrev(jacrev(f, 0), 1),
    ):
        torch.testing.assert_close(mixed(X, t64(0.3)), exact, **tolerance)


def test_complex_outputs_in_gradcheck() -> None:
    f = bridge.wrap(lambda k: np.exp(1j * k * np.arange(3)) / (1 + k**2))
    k = leaf(0.9)
    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, (k,), check_forward_ad=True, **batched)
    assert torch.autograd.gradgradcheck(f, (k,), eps=1e-4, atol=1e-5)


def test_check_prints_a_table_worst_first() -> None:
    wrong = bridge.wrap(lambda x: x**2, derivative=lambda x: np.where(x > 1.5, 2.1 * x, 2 * x))
    report = bridge.check(wrong, X)
    assert not report.passed
    assert report.entries[0].place.endswith("[2]")
    assert [e.gap for e in report.entries] == sorted((e.gap for e in report.entries), reverse=True)
    assert {e.product for e in report.entries} == {"vjp", "jvp"}
    header = str(report).splitlines()[1].split()
    assert header == ["of", "given", "differences", "error", "apart"]
    right = bridge.check(bridge.wrap(lambda x: x**2, derivative=lambda x: 2 * x), X)
    assert right.passed
    assert "the derivative is right" in str(right)


def test_check_without_a_derivative_tells_error_and_noise() -> None:
    report = bridge.check(lambda x: np.exp(x.astype(np.float32)).astype(float), X)
    assert report.noise > 1e-9
    assert "no derivative given" in str(report)
    assert report.passed


def test_check_looks_at_complex_outputs_and_given_jvps() -> None:
    fn = lambda x: np.exp(1j * x) * x[0]
    full = lambda x: np.diag(1j * np.exp(1j * x) * x[0]) + np.outer(np.exp(1j * x), np.eye(3)[0])
    assert bridge.check(fn, X, jacobian=full).passed
    assert bridge.check(fn, X, jvp=lambda x, v: full(x) @ v).passed
    assert not bridge.check(fn, X, jvp=lambda x, v: full(x).conj() @ v).passed
    assert bridge.check(fn, X, vjp=lambda x, g: (full(x).conj().T @ g).real).passed


def test_a_numpy_layer_is_a_module() -> None:
    layer = bridge.numpy_layer(
        lambda x, w, b: x @ w + b, {"w": np.eye(2), "b": torch.zeros(2)}, derivative="complex"
    )
    assert [name for name, _ in layer.named_parameters()] == ["w", "b"]
    assert "complex" in repr(layer)
    state = layer.state_dict()
    other = bridge.numpy_layer(layer.function, {"w": np.zeros((2, 2)), "b": np.zeros(2)})
    other.load_state_dict(state)
    x = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(other(x), x)
    other(x).sum().backward()
    torch.testing.assert_close(other.w.grad, torch.full((2, 2), 3.0, dtype=torch.float64))
    functional = torch.func.functional_call(other, {"w": 2 * other.w.detach(), "b": other.b.detach()}, (x,))
    assert torch.equal(functional, 2 * x)
    with pytest.raises(TypeError, match="wrapped already"):
        bridge.numpy_layer(layer.function, derivative="central")


SAMPLE = np.array([[0.3, 0.6, 0.2], [0.9, 0.4, 0.7]])
ONE_ARGUMENT = [
    name for name, same in table().items()
    if name.split(".")[-1] in {
        "abs", "absolute", "arccos", "arcsin", "arctan", "ceil", "cos", "cosh", "deg2rad", "exp", "exp2", "expm1",
        "floor", "isfinite", "isnan", "log", "log10", "log1p", "log2", "negative", "reciprocal", "round", "sign",
        "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "sum", "mean", "prod", "tril", "triu", "digamma",
        "psi", "erf", "erfc", "erfcx", "erfinv", "expit", "gammaln", "i0", "i0e", "i1", "i1e", "log_ndtr", "logit",
        "ndtr", "ndtri", "pinv", "svdvals", "fft", "rfft", "max", "amax", "min", "amin", "ravel", "isinf",
        "arctanh", "arcsinh", "zeros_like", "ones_like", "nansum", "fliplr", "flipud", "rot90",
    }
]  # fmt: skip


def by_name(name: str) -> Any:
    import scipy.special

    holder: Any = {"numpy": np, "scipy": scipy}[name.split(".")[0]]
    for part in name.split(".")[1:]:
        holder = getattr(holder, part)
    return holder


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_the_torch_function_does_the_same(name: str) -> None:
    found = table()[name].function(torch.from_numpy(SAMPLE))
    np.testing.assert_allclose(found.numpy(), by_name(name)(SAMPLE), rtol=1e-12)


@pytest.mark.parametrize(
    ("fn", "ours", "theirs"),
    [
        (np.clip, lambda f: f(SAMPLE, 0.25, 0.5), lambda f, x: f(x, min=0.25, max=0.5)),
        (np.pad, lambda f: f(SAMPLE, ((1, 0), (0, 2))), lambda f, x: f(x, (0, 2, 1, 0))),
        (
            np.lib.stride_tricks.sliding_window_view,
            lambda f: f(SAMPLE, 2, axis=1),
            lambda f, x: f(x, 1, 2, 1),
        ),
        (np.einsum, lambda f: f("ij,kj->ik", SAMPLE, SAMPLE), lambda f, x: f("ij,kj->ik", x, x)),
        (np.cumsum, lambda f: f(SAMPLE, axis=0), lambda f, x: f(x, dim=0)),
        (np.median, lambda f: f(SAMPLE, axis=1), lambda f, x: f(x, q=0.5, dim=1)),
        (np.std, lambda f: f(SAMPLE, axis=1), lambda f, x: f(x, dim=1, correction=0)),
        (np.concatenate, lambda f: f([SAMPLE, SAMPLE], axis=1), lambda f, x: f([x, x], dim=1)),
        (np.transpose, lambda f: f(SAMPLE, (1, 0)), lambda f, x: f(x, dims=(1, 0))),
        (np.repeat, lambda f: f(SAMPLE, 2, axis=0), lambda f, x: f(x, 2, dim=0)),
        (np.subtract, lambda f: f(SAMPLE, 2.0), lambda f, x: f(x, 2.0)),
        (np.trapezoid, lambda f: f(SAMPLE, axis=1), lambda f, x: f(x, dim=1)),
    ],
)
def test_the_torch_function_does_the_same_with_other_arguments(fn: Any, ours: Any, theirs: Any) -> None:
    same = bridge.equivalent(fn)
    np.testing.assert_allclose(theirs(same.function, torch.from_numpy(SAMPLE)).numpy(), ours(fn), rtol=1e-12)


def test_every_equivalent_exists_and_others_are_not_invented() -> None:
    assert all(callable(same.function) for same in table().values())
    assert str(bridge.equivalent(np.clip)).startswith("torch.clamp (")
    with pytest.raises(LookupError, match="'polyfit'.*wrap it with quadgrad.bridge.wrap"):
        bridge.equivalent(np.polyfit)


def test_neither_the_bridge_nor_the_compiler_is_loaded_before_it_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys, math, torch, quadgrad as qg; assert 'quadgrad.bridge' not in sys.modules; "
        "x = torch.ones(2, requires_grad=True); qg.bridge.wrap(math.sin, scalars=True)(x).sum().backward(); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_option_is_documented() -> None:
    text = inspect.getdoc(bridge.wrap)
    for name in inspect.signature(bridge.wrap).parameters:
        assert name in text, name
    assert qg.bridge is bridge


def test_vmap_of_a_whole_batch_is_one_call_of_a_vectorized_function() -> None:
    shapes: list[tuple[int, ...]] = []

    def fn(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return np.sum(x**2, axis=-1)

    vmap(bridge.wrap(fn, vectorized=True))(torch.ones(7, 3, dtype=torch.float64))
    assert shapes == [(7, 3)]
