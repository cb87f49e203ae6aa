"""What goes into a wrapped function and what may come out, at every call."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import quadgrad as qg
from helpers import leaf, t64
from quadgrad import bridge
from quadgrad.bridge import BridgeError, BridgeWarning

X = t64([0.5, 1.0, 2.0])


# ------------------------------------------------------------------------------------------------ bad output


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: [1.0, 2.0], "returned list; expected a NumPy array, or a tuple"),
        (lambda x: None, "returned NoneType.*did it forget to return"),
        (lambda x: "text", "returned str"),
        (lambda x: (), "empty tuple"),
        (lambda x: x.astype(int), "returned int64; derivatives need float32, float64"),
        (lambda x: x > 1, "returned bool"),
        (lambda x: x.astype(np.longdouble), "returned float128|returned longdouble"),
        (lambda x: np.array([None]), "returned object"),
    ],
)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_output_of_the_wrong_type(fn: Any, message: str, with_gradient: bool) -> None:
    with pytest.raises(BridgeError, match=message):
        bridge.wrap(fn)(X.clone().requires_grad_(with_gradient))


def test_output_of_a_shape_that_was_not_declared() -> None:
    with pytest.raises(BridgeError, match=re.escape("returned shape (3,); out_shape says (2,)")):
        bridge.wrap(np.sin, out_shape=(2,))(X)
    with pytest.raises(BridgeError, match=re.escape("out_shape says (2,) and ()")):
        bridge.wrap(lambda x: (x, x.sum()), out_shape=[(2,), ()])(X)
    two = bridge.wrap(lambda x: (x, x.sum()), out_shape=lambda shape: [shape, ()])
    assert [tuple(y.shape) for y in two(X)] == [(3,), ()]


def test_output_whose_shape_depends_on_values() -> None:
    f = bridge.wrap(lambda x: x[x < 2.0 + 1e-9])
    with pytest.raises(BridgeError, match="returned float64 of shape .2,.; expected float64 of shape .3,."):
        f(leaf([0.5, 1.0, 2.0])).sum().backward()


def test_an_elementwise_function_that_is_not() -> None:
    with pytest.raises(BridgeError, match=re.escape("declared elementwise, returned shape () for inputs that")):
        bridge.wrap(np.sum, sparsity="elementwise")(X)


def test_a_vectorized_function_that_is_not() -> None:
    f = bridge.wrap(lambda x: x.sum() * np.ones(1), vectorized=True)
    with pytest.raises(BridgeError, match="the leading dimension.*must come back first"):
        f(leaf([1.0, 2.0])).sum().backward()


def test_a_function_of_numbers_that_returns_an_array() -> None:
    with pytest.raises(BridgeError, match="scalars=True, returned float64 of shape .2,. for the numbers"):
        bridge.wrap(lambda x: np.ones(2), scalars=True)(X)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_not_a_number_is_reported_with_its_input(with_gradient: bool) -> None:
    f = bridge.wrap(lambda x: np.where(x > 1.5, np.nan, x))
    message = re.escape("returned nan in 1 of 3 entries for the input [0.5, 1. , 2. ]")
    with pytest.warns(BridgeWarning, match=message) as caught:
        y = f(X.clone().requires_grad_(with_gradient))
    assert caught[0].filename == __file__, "the warning points at the line that called"
    assert y.isnan().tolist() == [False, False, True]


def test_where_the_output_is_not_a_number_so_is_the_gradient_and_only_there() -> None:
    f = bridge.wrap(lambda x: np.where(x > 1.5, np.nan, x**2), sparsity="elementwise")
    x = leaf([0.5, 1.0, 2.0])
    with pytest.warns(BridgeWarning):
        y = f(x)
    y.backward(torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(x.grad, t64([1.0, 2.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_exceptions_carry_the_input(with_gradient: bool) -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        bridge.wrap(fn)(X.clone().requires_grad_(with_gradient))
    assert caught.value.__notes__ == ["quadgrad.bridge: raised by fn for the input [0.5, 1. , 2. ]"]


def test_exceptions_around_the_point_carry_the_point_where_they_were_raised() -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        if np.any(x < 0):
            raise ValueError("negative")
        return np.sqrt(x)

    with pytest.raises(ValueError, match="negative") as caught:
        bridge.wrap(fn)(leaf([0.0, 1.0])).sum().backward()
    assert "for the input [-" in caught.value.__notes__[0]


# --------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_function_that_changes_its_input(with_gradient: bool, vectorized: bool) -> None:
    def fn(x: np.ndarray) -> np.ndarray:
        x *= 2.0
        return x

    x = X.clone().requires_grad_(with_gradient)
    f = bridge.wrap(fn, vectorized=vectorized, sparsity="elementwise")
    y = f(x)
    assert torch.equal(x.detach(), X)
    assert torch.equal(y.detach(), 2 * X)
    assert y.data_ptr() != x.data_ptr()
    if with_gradient:
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(X, 2.0))
    report = bridge.check(f, X)
    assert "changes its input 0 in place" in str(report)
    assert torch.equal(X, t64([0.5, 1.0, 2.0]))


def test_a_function_that_returns_a_view_of_its_input() -> None:
    f = bridge.wrap(lambda x: x[::-1])
    x = leaf(X)
    y = f(x)
    with torch.no_grad():
        y.mul_(10.0)
    assert torch.equal(x.detach(), X)
    assert "returns a view of its input 0" in str(bridge.check(f, X))


def test_a_function_that_returns_an_array_of_its_own_twice() -> None:
    buffer = np.zeros(3)

    def fn(x: np.ndarray) -> np.ndarray:
        buffer[:] = x
        return buffer

    f = bridge.wrap(fn)
    first = f(X)
    f(2 * X)
    assert torch.equal(first, X)


def test_a_function_without_memory_is_said_to_be_so() -> None:
    calls = iter(range(1000))
    report = bridge.check(lambda x: x * (1.0 + 1e-3 * next(calls)), X)
    assert "not deterministic" in str(report)


# ----------------------------------------------------------------------------------------------- dtypes


def test_float64_results_are_not_narrowed_and_float32_ones_not_widened() -> None:
    assert bridge.wrap(lambda x: x.astype(np.float64))(X.float()).dtype == torch.float64
    assert bridge.wrap(np.sin)(X.float()).dtype == torch.float32
    assert bridge.wrap(lambda x: np.exp(1j * x))(X).dtype == torch.complex128
    assert bridge.wrap(lambda x: np.exp(np.complex64(1j) * x))(X.float()).dtype == torch.complex64


def test_gradients_have_the_dtype_of_their_inputs() -> None:
    x, p = X.float().requires_grad_(), t64(2.0).requires_grad_()
    bridge.wrap(lambda x, p: x * p)(x, p).sum().backward()
    assert (x.grad.dtype, p.grad.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    seen: list[Any] = []

    def fn(x: np.ndarray) -> np.ndarray:
        seen.append(x.dtype)
        return x**2

    x = X.to(dtype).requires_grad_()
    y = bridge.wrap(fn)(x)
    y.sum().backward()
    assert set(seen) == {np.dtype(np.float32)}
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, 2 * X.to(dtype))


def test_functions_of_numbers_compute_in_double_and_return_the_inputs_dtype() -> None:
    f = bridge.wrap(lambda a: a**3, scalars=True)
    x = X.float().requires_grad_()
    y = f(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    torch.testing.assert_close(x.grad, 3 * X.float() ** 2, rtol=2e-7, atol=0.0)


def test_numbers_and_arrays_are_taken_too() -> None:
    f = bridge.wrap(lambda x, p: x * p)
    assert f(2.0, 3.0) == 6.0
    assert f(2.0, 3.0).dtype == torch.float64
    assert f(X.float(), 3.0).dtype == torch.float32, "numbers do not promote"
    assert torch.equal(f(np.array([1.0, 2.0]), 2.0), t64([2.0, 4.0]))
    assert f(X, 3).dtype == torch.float64


def test_complex_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="real and imaginary parts as two inputs"):
        bridge.wrap(np.exp)(X.to(torch.complex128))


def test_integer_inputs_are_handed_on_and_not_differentiated() -> None:
    f = bridge.wrap(lambda x, n: x ** int(n))
    x = leaf(X)
    f(x, torch.tensor(3)).sum().backward()
    torch.testing.assert_close(x.grad, 3 * X**2)


def test_tensors_in_and_out() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        assert not x.requires_grad
        return torch.special.i0(x)

    x = leaf(X)
    bridge.wrap(fn, "richardson", tensors=True)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.special.i1(X))


# --------------------------------------------------------------------------------------------- arguments


def test_static_arguments_by_place_and_name() -> None:
    def fn(x: np.ndarray, mode: str, power: int = 2) -> np.ndarray:
        return {"sum": np.sum, "max": np.max}[mode](x**power)

    f = bridge.wrap(fn, static=("mode", 2))
    x = leaf(X)
    assert f(x, "sum", 3) == 9.125
    assert f(x, mode="max") == 4.0
    f(x, "sum", 3).backward()
    torch.testing.assert_close(x.grad, 3 * X**2)
    assert torch.func.vmap(lambda x: f(x, "sum"))(torch.stack([X, 2 * X])).tolist() == [5.25, 21.0]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: f(x, "sum", 3), fullgraph=True, backend="aot_eager")
    assert compiled(X) == 9.125


def test_arguments_that_cannot_be_differentiated_or_remembered() -> None:
    with pytest.raises(TypeError, match=re.escape("input 1 is str, not a tensor, array or number; name")):
        bridge.wrap(lambda x, mode: x)(X, "sum")
    with pytest.raises(TypeError, match="static arguments must be hashable"):
        bridge.wrap(lambda x, table: x, static=1)(X, [1, 2])
    with pytest.raises(ValueError, match="static='colour' is no parameter of fn; it has x"):
        bridge.wrap(fn, static="colour")
    with pytest.raises(TypeError, match="without any input"):
        bridge.wrap(lambda: 1.0)()
    with pytest.raises(TypeError, match="functools.partial"):
        bridge.wrap(keyword_only)(X, scale=2.0)
    bound = bridge.wrap(partial(keyword_only, scale=2.0))
    assert torch.equal(bound(X), 2 * X)


def fn(x: np.ndarray) -> np.ndarray:
    return x


def keyword_only(x: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    return scale * x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"derivative": "centred"}, "derivative='centred' is no callable and not one of central"),
        ({"derivative": np.cos, "jacobian": np.cos}, "one is enough"),
        ({"noise": -1.0}, "at least 0 and below 1"),
        ({"sparsity": "diagonal"}, "'elementwise' or a matrix"),
        ({"bounds": (1.0, 0.0)}, "lower must be below upper"),
        ({"bounds": 3.0}, "expected a pair"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bridge.wrap(np.sin, **options)


def test_a_method_in_place_of_the_function() -> None:
    with pytest.raises(TypeError, match="write derivative='central'"):
        bridge.wrap("central")


def test_as_a_decorator_with_and_without_options() -> None:
    @bridge.wrap
    def plain(x: np.ndarray) -> np.ndarray:
        """Square."""
        return x**2

    @bridge.wrap(derivative="complex")
    def stepped(x: np.ndarray) -> np.ndarray:
        return x**2

    assert plain.__doc__ == "Square."
    assert plain.__name__ == "plain"
    assert "complex" in repr(stepped)
    for f in (plain, stepped):
        x = leaf(X)
        f(x).sum().backward()
        torch.testing.assert_close(x.grad, 2 * X)


# ------------------------------------------------------------------------------------------- derivatives given


def test_a_jacobian_with_a_batch_dimension() -> None:
    """x -> (sin x, cos x) with a Jacobian (batch, 2): right for a batch of any length, 2 among them."""
    f = bridge.wrap(
        lambda x: np.stack([np.sin(x), np.cos(x)], -1), jacobian=lambda x: np.stack([np.cos(x), -np.sin(x)], -1)
    )
    g = bridge.wrap(lambda x: (np.sin(x), np.cos(x)), jacobian=lambda x: (np.cos(x), -np.sin(x)))
    for length in (0, 1, 2, 3, 5):
        x = torch.linspace(0.3, 2.0, length, dtype=torch.float64, requires_grad=True)
        weights = torch.arange(1.0, 2 * length + 1, dtype=torch.float64).reshape(length, 2)
        exact = weights[:, 0] * torch.cos(x) - weights[:, 1] * torch.sin(x)
        (found,) = torch.autograd.grad((f(x) * weights).sum(), x)
        torch.testing.assert_close(found, exact.detach())
        (found,) = torch.autograd.grad(sum((y * w).sum() for y, w in zip(g(x), weights.T, strict=True)), x)
        torch.testing.assert_close(found, exact.detach())
    torch.testing.assert_close(torch.func.jacrev(f)(X), torch.func.jacfwd(f)(X))


def test_full_jacobians_of_matrices_and_of_several_inputs_and_outputs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))

    def jacobian(a: np.ndarray, b: np.ndarray) -> Any:
        by_a = np.einsum("ik,lj->ijkl", np.eye(2), b)
        by_b = np.einsum("ik,jl->ijkl", a, np.eye(2))
        return (by_a, by_b), (2 * a, np.zeros_like(b))

    f = bridge.wrap(lambda a, b: (a @ b, np.sum(a**2)), jacobian=jacobian)
    twin = lambda a, b: (a @ b, (a**2).sum())
    for found, exact in zip(
        torch.utils._pytree.tree_leaves(torch.func.jacrev(f, (0, 1))(t64(a), t64(b))),
        torch.utils._pytree.tree_leaves(torch.func.jacrev(twin, (0, 1))(t64(a), t64(b))),
        strict=True,
    ):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"jacobian": lambda x: np.ones((2, 3))},
            "returned shape (2, 3); for an output of shape (3,) and an input",
        ),
        ({"jacobian": lambda x: (np.eye(3), np.eye(3))}, "returned 2 arrays; expected 1"),
        ({"derivative": lambda x: np.ones((3, 3))}, "an elementwise derivative has the output's shape, (3,)"),
        ({"vjp": lambda x, g: np.ones(2)}, "returned shape (2,) for input 0; expected (3,)"),
        ({"vjp": lambda x, g: (g, g)}, "returned 2 arrays; expected 1, one for each input"),
        ({"jvp": lambda x, v: np.ones(4)}, "returned shape (4,) for output 0; expected (3,)"),
    ],
)
def test_derivatives_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BridgeError, match=re.escape(message)):
        bridge.wrap(lambda x: np.sin(x), **options)(leaf(X)).sum().backward()


def test_a_vjp_of_several_outputs_may_leave_inputs_out() -> None:
    f = bridge.wrap(lambda x, p: (x * 2.0, x.sum() + p), vjp=lambda x, p, g: (2 * g[0] + g[1], None))
    x, p = leaf(X), leaf(1.0)
    y, z = f(x, p)
    (y.sum() + 3 * z).backward()
    assert x.grad.tolist() == [5.0, 5.0, 5.0]
    assert p.grad == 0.0


def test_exceptions_of_a_given_derivative_carry_the_input() -> None:
    def broken(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        raise RuntimeError("in vjp")

    with pytest.raises(RuntimeError, match="in vjp") as caught:
        bridge.wrap(np.sin, vjp=broken)(leaf(X)).sum().backward()
    assert "vjp= of sin for the input [0.5" in caught.value.__notes__[0]


# ----------------------------------------------------------------------------------------------- lifetime


def test_a_graph_keeps_the_function_it_needs() -> None:
    x = leaf(X)
    y = bridge.wrap(lambda x: x**2)(x)
    gc.collect()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * X)


def test_nothing_else_does() -> None:
    f = bridge.wrap(lambda x: x**2)
    f(leaf(X)).sum().backward()
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


def test_exported_code_says_when_its_function_is_gone() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = bridge.wrap(lambda x: x**2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.f(x)

    exported = torch.export.export(Module(), (X,)).module()
    gc.collect()
    with pytest.raises(BridgeError, match="the wrapped function behind this graph is gone"):
        exported(X)


def test_reached_as_an_attribute_of_the_package() -> None:
    assert qg.bridge.wrap is bridge.wrap
    with pytest.raises(AttributeError, match="no attribute 'bridges'"):
        qg.bridges  # noqa: B018


def test_global_state_is_untouched() -> None:
    state, errors = torch.get_rng_state(), np.geterr()
    bridge.wrap(np.sin, "spsa")(leaf(X)).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.geterr() == errors


@bridge.wrap(derivative="complex")
def cubed(x: np.ndarray) -> np.ndarray:
    return x**3


def test_copies_and_pickles() -> None:
    layer = bridge.numpy_layer(lambda x, w: x @ w, {"w": np.eye(3)})
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.w.mul_(2.0)
    assert torch.equal(twin(X), 2 * layer(X))
    assert twin.function is layer.function
    assert pickle.loads(pickle.dumps(cubed)) is cubed
    again = pickle.loads(pickle.dumps(bridge.wrap(fn, bounds=(0.0, 5.0))))
    x = leaf(X)
    again(x).sum().backward()
    assert torch.equal(x.grad.round(decimals=6), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("method", ["central", "forward", "richardson", "complex", "auto", "spsa"])
@pytest.mark.parametrize("fn", [np.sin, lambda x: np.sum(x**3), lambda x: x[:0]], ids=["sin", "sum", "nothing"])
def test_nothing_is_differentiated_to_nothing(fn: Any, method: str, shape: tuple[int, ...]) -> None:
    """Empty inputs, outputs, or both: of shapes that fit, twice."""
    x = t64(np.zeros(shape)).requires_grad_()
    (slope,) = torch.autograd.grad(bridge.wrap(fn, method)(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert slope.shape == second.shape == shape


@pytest.mark.parametrize("kept", [True, False])
def test_a_given_derivative_stays_the_users(kept: bool) -> None:
    slopes = np.array([2.0, 3.0])

    def derivative(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = slopes if kept else np.array([2.0, 3.0])
        found.flags.writeable = kept
        return found, found

    x, y = (torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    g = torch.tensor([5.0, 7.0], dtype=torch.float64)
    wrapped = qg.bridge.wrap(lambda x, y: slopes * (x + y), derivative=derivative)
    for _ in range(2):
        for found in torch.autograd.grad(wrapped(x, y), (x, y), g):
            assert found.tolist() == [10.0, 21.0]
    assert slopes.tolist() == [2.0, 3.0]
    assert g.tolist() == [5.0, 7.0]


def test_a_read_only_derivative_is_multiplied() -> None:
    def derivative(x: np.ndarray) -> np.ndarray:
        found = 2.0 * x
        found.flags.writeable = False
        return found

    x = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)
    qg.bridge.wrap(lambda x: x * x, derivative=derivative)(x).backward(
        torch.tensor([3.0, 5.0], dtype=torch.float64)
    )
    assert x.grad is not None
    assert x.grad.tolist() == [6.0, 40.0]
