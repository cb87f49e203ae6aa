"""Integrals of samples in TensorFlow: SciPy's values, torch's derivatives, whatever a graph knows of shapes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import torch

import quadgrad as qg

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad.tensorflow as qgt  # noqa: E402  (needs TensorFlow)

RULES = ["trapezoid", "simpson", "cumulative_trapezoid", "cumulative_simpson"]
SHAPES = [((n,), 0) for n in (1, 2, 3, 4, 5, 6, 11)] + [((3, 4), -1), ((5, 2), 0), ((2, 7, 3), 1), ((2, 6, 3), -2)]
rng = np.random.default_rng(3)


def samples(shape, dim, spacing, dtype=np.float64):
    y = rng.normal(size=shape).astype(dtype)
    if np.iscomplexobj(y):
        y += 1j * rng.normal(size=shape)
    n, rows = shape[dim], [1 if i == dim % len(shape) else k for i, k in enumerate(shape)]
    steps = rng.uniform(0.5, 1.5, size=n)
    given = {
        "even": {},
        "dx": {"dx": 0.3},
        "dx of rows": {"dx": rng.uniform(0.5, 1.5, size=rows)},
        "x": {"x": np.cumsum(steps)},
        "decreasing": {"x": -np.cumsum(steps)},
        "x of rows": {"x": np.cumsum(rng.uniform(0.5, 1.5, size=shape), axis=dim)},
    }[spacing]
    return y, {name: value.astype(y.real.dtype) if name == "x" else value for name, value in given.items()}


def by_scipy(rule, y, dim, given, **options):
    if rule == "cumulative_simpson" and y.shape[dim] < 3 and np.iscomplexobj(y):
        rule = "cumulative_trapezoid"
    if rule == "simpson" and "dx" in given:  # which takes no dx of rows
        return np.squeeze(given["dx"] * np.expand_dims(scipy.integrate.simpson(y, axis=dim), dim), dim)
    return getattr(scipy.integrate, rule)(y, axis=dim, **given, **options)


@pytest.mark.parametrize("spacing", ["even", "dx", "dx of rows", "x", "decreasing", "x of rows"])
@pytest.mark.parametrize("rule", RULES)
def test_values_are_scipys(rule, spacing):
    if rule == "cumulative_simpson" and spacing == "decreasing":
        pytest.skip("SciPy takes no decreasing x there")
    for shape, dim in SHAPES:
        if shape[dim] < 2 and rule.startswith("cumulative"):
            continue
        for dtype in (np.float64, np.complex128):
            y, given = samples(shape, dim, spacing, dtype)
            found = getattr(qgt, rule)(tf.constant(y), dim=dim, **given)
            assert found.dtype == dtype
            expected = by_scipy(rule, y, dim, given)
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13, err_msg=f"{shape} {dim} {dtype}")


@pytest.mark.parametrize(("ranks", "dim"), [(False, -1), (True, -2)], ids=["nothing known", "ranks known"])
@pytest.mark.parametrize("rule", RULES)
def test_one_graph_for_all_shapes(rule, dim, ranks):
    for spacing in ("x", "dx of rows"):
        _, given = samples((3, 3), dim, spacing)
        wide = [tf.TensorSpec([None, None] if ranks else None, tf.float64)]
        specs = wide + [tf.TensorSpec([None] * v.ndim if ranks else None, tf.float64) for v in given.values()]
        (name,) = given
        call = lambda y, v, name=name: getattr(qgt, rule)(y, dim=dim, **{name: v})
        graph = tf.function(call, input_signature=specs)
        for n in (2, 3, 4, 5):
            y, given = samples((n, 3) if dim == -2 else (3, n), dim, spacing)
            expected = by_scipy(rule, y, dim, given)
            np.testing.assert_allclose(graph(y, *given.values()), expected, rtol=1e-13, atol=1e-13)
        assert graph.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [5, 6])
def test_compiled_with_and_without_known_shapes(rule, n):
    y, given = samples((2, n), -1, "x")
    expected = by_scipy(rule, y, -1, given)
    f = lambda y, x: getattr(qgt, rule)(y, x)
    anything = [tf.TensorSpec(None, tf.float64)] * 2
    for call in (
        tf.function(f, jit_compile=True),
        tf.function(f, input_signature=anything, jit_compile=True),
    ):
        np.testing.assert_allclose(call(tf.constant(y), tf.constant(given["x"])), expected, rtol=1e-13)


@pytest.mark.parametrize(("compiled", "n"), [(None, 2), (None, 5), (None, 6), (True, 6)])
@pytest.mark.parametrize("rule", RULES)
def test_two_derivatives_by_y_x_and_dx_are_torchs(rule, n, compiled):
    y, weights = rng.normal(size=(2, n)), rng.normal(size=(2, n))
    x, dx = np.cumsum(rng.uniform(0.5, 1.5, size=(2, n)), -1), np.array([[0.4], [1.3]])

    def total(module, y, x, dx, weights, sum):
        parts = getattr(module, rule)(y**3, x), getattr(module, rule)(y**3, dx=dx)
        some = weights[..., 0] if not rule.startswith("cumulative") else weights[..., 1:]
        return sum(some * (parts[0] ** 2 + parts[1] ** 2))

    def derivatives(y, x, dx):
        with tf.GradientTape() as outer:
            outer.watch([y, x, dx])
            with tf.GradientTape() as inner:
                inner.watch([y, x, dx])
                loss = total(qgt, y, x, dx, weights, tf.reduce_sum)
            first = inner.gradient(loss, [y, x, dx])
            again = tf.add_n([tf.reduce_sum(g * g) for g in first])
        return *first, *outer.gradient(again, [y, x, dx])

    call = tf.function(derivatives, jit_compile=compiled) if compiled is not None else derivatives
    found = call(*map(tf.constant, (y, x, dx)))
    leaves = [torch.tensor(v, requires_grad=True) for v in (y, x, dx)]
    loss = total(qg, *leaves, torch.tensor(weights), torch.sum)
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), leaves)
    for ours, theirs in zip(found, (*first, *second), strict=True):
        np.testing.assert_allclose(
            ours, theirs.detach(), rtol=1e-10, atol=1e-10 * float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("rule", RULES)
def test_errors_and_initial_values_are_torchs(rule):
    y, given = samples((2, 9), -1, "x")
    options = {"initial": np.array([[2.0], [3.0]])} if rule.startswith("cumulative") else {}
    value, error = getattr(qg, rule)(
        torch.tensor(y), torch.tensor(given["x"]), return_error=True,
        **{name: torch.tensor(v) for name, v in options.items()},
    )  # fmt: skip
    f = lambda y: getattr(qgt, rule)(y, given["x"], return_error=True, **options)
    for call in (f, tf.function(f, input_signature=[tf.TensorSpec([None, None], tf.float64)])):
        ours, ours_error = call(tf.constant(y))
        np.testing.assert_allclose(ours, value, rtol=1e-13)
        np.testing.assert_array_equal(ours_error, error)
    with pytest.raises(NotImplementedError, match="jit_compile"):
        tf.function(f, jit_compile=True)(tf.constant(y))


def test_a_gap_of_nothing_is_passed_over():
    x = tf.constant([0.0, 1.0, 1.0, 2.0, 3.5], tf.float64)
    y = tf.constant([1.0, 2.0, 2.0, -1.0, 0.5], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        value = qgt.simpson(y, x)
    np.testing.assert_allclose(value, scipy.integrate.simpson(y.numpy(), x.numpy()), rtol=1e-14)
    assert all(np.isfinite(g).all() for g in tape.gradient(value, [x, y]))


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int32", "float64"),
    ],
)
def test_dtypes(y, dtype):
    values = tf.cast([1.0, 2.0, 4.0], y)
    found = qgt.trapezoid(values, dx=tf.constant(2.0, tf.float64))  # a scalar does not promote
    assert found.dtype.name == dtype
    assert float(found) == 9.0
    assert qgt.trapezoid(values, tf.constant([0.0, 1.0, 2.0], tf.float64)).dtype == tf.float64
    assert float(qgt.simpson([1.0, 2.0, 3.0])) == 4.0


def test_what_is_said_of_wrong_input():
    y = tf.ones([3, 4])
    with pytest.raises(ValueError, match=r"x of shape \(3,\) does not fit y of shape \(3, 4\)"):
        qgt.trapezoid(y, tf.ones([3]))
    with pytest.raises(ValueError, match=r"dx of shape \(3,\) is neither a number nor one for each row"):
        qgt.simpson(y, dx=tf.ones([3]))
    with pytest.raises(IndexError, match="dim=2 is out of range"):
        qgt.simpson(y, dim=2)
    with pytest.raises(TypeError, match="x is complex"):
        qgt.simpson(y, tf.ones([4], tf.complex64))
    with pytest.raises(TypeError, match=r"y is a torch\.Tensor"):
        qgt.simpson(torch.ones(3))
    with pytest.raises(TypeError, match=r"join them with tf\.stack"):
        qgt.simpson([tf.constant(1.0), 2.0])
    with pytest.raises(ValueError, match="y is a single number"):
        qgt.trapezoid(1.0)
    with pytest.raises(ValueError, match="needs at least 1 sample"):
        qgt.simpson(tf.ones([2, 0]))
    with pytest.raises(ValueError, match=r"initial of shape \(3,\)"):
        qgt.cumulative_trapezoid(y, initial=tf.ones([3]))
    x = tf.constant([0.0, 2.0, 1.0, 3.0])
    with pytest.raises(ValueError, match=r"2\.0 is followed by 1\.0 at index 1"):
        qgt.cumulative_simpson(y, x)
    assert np.isnan(tf.function(qgt.cumulative_simpson)(y, x)).all()
