"""NumPy and SciPy functions in TensorFlow: values and derivatives are the bridge's, whatever asks for them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import digamma, gamma, polygamma

import quadgrad as qg

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

from quadgrad.tensorflow import BridgeError, wrap  # noqa: E402  (needs TensorFlow)

POINTS = np.array([0.7, 1.5, 2.7])
slope = lambda x: gamma(x) * digamma(x)
curvature = lambda x: gamma(x) * (digamma(x) ** 2 + polygamma(1, x))
WAYS = {
    "given": ({"derivative": slope}, 1e-15, 1e-8),
    "central": ({}, 1e-9, 1e-5),
    "richardson": ({"derivative": "richardson"}, 1e-12, 1e-5),
    "complex": ({"derivative": "complex"}, 1e-14, 1e-8),
}


def twice(f):
    """Return a function that gives f(x), the derivative of its sum, and the derivative of that one's sum."""

    def all_three(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = f(x)
            first = inner.gradient(y, x)
        return y, first, outer.gradient(first, x)

    return all_three


def windows(images):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))


def convolve(images, kernels):
    return np.einsum("nijab,kab->nkij", windows(images), kernels)


# ------------------------------------------------------------------------------------- what differentiates


@pytest.mark.parametrize(("options", "first", "second"), WAYS.values(), ids=WAYS)
class TestGamma:
    """scipy.special.gamma has derivatives on paper, and torch's from the bridge."""

    def test_nested_tapes_give_torchs_derivatives_which_are_right(self, options, first, second):
        x = torch.tensor(POINTS, requires_grad=True)
        (by_torch,) = torch.autograd.grad(qg.bridge.wrap(gamma, **options)(x).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(by_torch.sum(), x)
        for call in (twice(wrap(gamma, **options)), tf.function(twice(wrap(gamma, **options)))):
            y, dy, ddy = call(tf.constant(POINTS))
            np.testing.assert_array_equal(y, gamma(POINTS))
            np.testing.assert_array_equal(dy, by_torch.detach())
            np.testing.assert_array_equal(ddy, again)
            np.testing.assert_allclose(dy, slope(POINTS), rtol=first)
            np.testing.assert_allclose(ddy, curvature(POINTS), rtol=second)

    def test_tapes_outside_of_a_graph(self, options, first, second):
        s, c = np.sin(POINTS), np.cos(POINTS)
        f = wrap(gamma, **options)
        h = tf.function(lambda x: f(x) * tf.sin(x), input_signature=[tf.TensorSpec(None, tf.float64)])
        y, dy, ddy = twice(h)(tf.constant(POINTS))
        np.testing.assert_allclose(y, gamma(POINTS) * s, rtol=1e-15)
        np.testing.assert_allclose(dy, slope(POINTS) * s + gamma(POINTS) * c, rtol=0, atol=first)
        exact = curvature(POINTS) * s + 2 * slope(POINTS) * c - gamma(POINTS) * s
        np.testing.assert_allclose(ddy, exact, rtol=0, atol=second)

    def test_jacobians_with_and_without_pfor(self, options, first, second):
        x, f = tf.constant(POINTS), wrap(gamma, **options)
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                y = f(x)
            dy = tape.gradient(y, x)
        for pfor in (False, True):
            found = tape.jacobian(y, x, experimental_use_pfor=pfor)
            np.testing.assert_allclose(found, np.diag(slope(POINTS)), rtol=first)
            found = outer.jacobian(dy, x, experimental_use_pfor=pfor)
            np.testing.assert_allclose(found, np.diag(curvature(POINTS)), rtol=second)

    def test_the_derivative_of_a_jacobian_by_pfor(self, options, first, second):
        x, f = tf.constant(POINTS), wrap(gamma, **options)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x)
            jacobian = tape.jacobian(y, x)
        np.testing.assert_allclose(outer.gradient(jacobian, x), curvature(POINTS), rtol=second)

    def test_forward_mode(self, options, first, second):
        x, v, f = tf.constant(POINTS), np.array([1.0, -2.0, 0.5]), wrap(gamma, **options)
        for g in (f, tf.function(f)):
            with tf.autodiff.ForwardAccumulator(x, tf.constant(v)) as forward:
                y = g(x)
            np.testing.assert_allclose(forward.jvp(y), slope(POINTS) * v, rtol=first)
        with tf.autodiff.ForwardAccumulator(x, tf.constant(v)) as forward:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x)
            dy = tape.gradient(y, x)
        np.testing.assert_allclose(forward.jvp(dy), curvature(POINTS) * v, rtol=second)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize(
    "options", [{}, {"vjp": True}, {"derivative": "complex"}], ids=["central", "vjp", "complex"]
)
def test_a_convolution_has_torchs_gradients(compiled, options):
    rng = np.random.default_rng(0)
    images, kernels, weights = rng.normal(size=(2, 5, 4)), rng.normal(size=(3, 3, 3)), rng.normal(size=(2, 3, 5, 4))
    if "vjp" in options:
        options = {"vjp": by_hand}
    here, there = wrap(convolve, **options), qg.bridge.wrap(convolve, **options)

    def loss_and_gradients(images, kernels):
        with tf.GradientTape() as tape:
            tape.watch([images, kernels])
            loss = tf.reduce_sum(tf.sin(here(images, kernels)) * weights)
        return loss, *tape.gradient(loss, [images, kernels])

    call = tf.function(loss_and_gradients) if compiled else loss_and_gradients
    loss, *gradients = call(tf.constant(images), tf.constant(kernels))
    leaves = [torch.tensor(a, requires_grad=True) for a in (images, kernels)]
    by_bridge = torch.autograd.grad((there(*leaves).sin() * torch.tensor(weights)).sum(), leaves)
    padded = torch.nn.functional.pad(leaves[0], (1, 1, 1, 1))
    unfolded = torch.einsum("nijab,kab->nkij", padded.unfold(1, 3, 1).unfold(2, 3, 1), leaves[1])
    exact_loss = (unfolded.sin() * torch.tensor(weights)).sum()
    assert float(loss) == pytest.approx(exact_loss.item(), rel=1e-13)
    exact = torch.autograd.grad(exact_loss, leaves)
    tolerance = 1e-8 if not options else 1e-12
    for found, other, right in zip(gradients, by_bridge, exact, strict=True):
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-14 if options else 1e-9)
        np.testing.assert_allclose(found, right, rtol=0, atol=tolerance)
    if not options:
        for error, found, right in zip(here.info.gradient_error, gradients, exact, strict=True):
            assert (np.abs(found - right.numpy()) <= error + 1e-15).all()


def by_hand(images, kernels, g):
    spread = np.pad(g, ((0, 0), (0, 0), (1, 1), (1, 1)))
    spread = np.lib.stride_tricks.sliding_window_view(spread, (3, 3), axis=(2, 3))
    by_images = np.einsum("nkijab,kab->nij", spread, kernels[:, ::-1, ::-1])
    return by_images, np.einsum("nijab,nkij->kab", windows(images), g)


def test_complex_values_are_differentiated_as_tensorflow_does():
    phase = wrap(lambda x: np.exp(1j * x) * x, sparsity="elementwise", derivative="central")
    own = lambda x: tf.exp(tf.complex(tf.zeros_like(x), x)) * tf.cast(x, tf.complex128)
    x, weight = tf.constant(POINTS), tf.constant([1 + 2j, -0.5j, 0.3], tf.complex128)
    for f in (phase, tf.function(phase)):
        gradients = []
        for g in (f, own):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = g(x)
                loss = tf.reduce_sum(tf.math.real(weight * y) + 2 * tf.math.imag(y) + tf.abs(y) ** 3)
            gradients.append(tape.gradient(loss, x))
        np.testing.assert_allclose(*gradients, rtol=1e-8)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_several_outputs_of_which_one_is_used_by_slices(compiled):
    parts = wrap(lambda x, y: (x * y, np.sum(np.sin(x))))
    x, y = tf.constant(POINTS), tf.constant(POINTS[::-1].copy())

    def gradients(x, y):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, y])
            product, total = parts(x, y)
            picked = tf.reduce_sum(tf.gather(product, [2, 0, 2]))
        return *tape.gradient(picked, [x, y]), *tape.gradient(total, [x, y])

    by_x, by_y, of_total, nothing = (tf.function(gradients) if compiled else gradients)(x, y)
    counts = np.array([1.0, 0.0, 2.0])
    np.testing.assert_allclose(by_x, counts * POINTS[::-1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(by_y, counts * POINTS, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(of_total, np.cos(POINTS), rtol=1e-8)
    np.testing.assert_allclose(nothing, 0.0, atol=1e-12)


def test_only_what_is_asked_for_is_differentiated():
    calls = []
    f = wrap(lambda x, w: calls.append(1) or np.tanh(x @ w), noise=1e-16)
    x, w = tf.random.stateless_normal([40, 3], [0, 0], dtype=tf.float64), tf.Variable(np.ones((3, 2)))

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(f(x, w) ** 2)
        return tape.gradient(loss, w)

    eager = step()
    few = len(calls)
    assert few < 60  # 4 for each of the 6 numbers in w and none for the 120 in x, plus a little
    f.forget()
    calls.clear()
    graph = tf.function(step)()
    assert len(calls) <= few + 1
    np.testing.assert_allclose(graph, eager, rtol=1e-12)
    calls.clear()
    f(x, w)
    assert len(calls) == 1


def test_what_the_function_closes_over_may_change():
    scale = np.array(2.0)
    f = wrap(lambda x: scale * x**2)
    call = tf.function(twice(f))
    for value in (2.0, 3.0):
        scale[...] = value
        for g in (twice(f), call):
            y, dy, ddy = g(tf.constant(POINTS))
            np.testing.assert_allclose(y, value * POINTS**2)
            np.testing.assert_allclose(dy, 2 * value * POINTS, rtol=1e-8)
            np.testing.assert_allclose(ddy, 2 * value, rtol=1e-5)
    constant = tf.function(lambda: twice(f)(tf.constant(POINTS)))  # nothing that a graph could compute ahead
    for value in (5.0, 7.0):
        scale[...] = value
        np.testing.assert_allclose(constant()[1], 2 * value * POINTS, rtol=1e-8)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_the_third_derivative_is_refused_and_nothing_below_it(compiled):
    f = wrap(gamma, derivative=slope)
    call = twice(tf.function(f) if compiled else f)
    x, factor = tf.constant(POINTS), tf.Variable(2.0, dtype=tf.float64)
    with tf.GradientTape() as tape:
        second = factor * call(x)[2]
    np.testing.assert_allclose(tape.gradient(second, factor), curvature(POINTS).sum(), rtol=1e-8)
    with tf.GradientTape() as tape:
        tape.watch(x)
        second = call(x)[2]
    with pytest.raises((NotImplementedError, tf.errors.UnimplementedError), match="first and second derivatives"):
        tape.gradient(second, x)


# ------------------------------------------------------------------------------------------------ graphs, batches


def test_shapes_that_a_graph_does_not_know():
    spec = lambda *shape: tf.TensorSpec(shape, tf.float64)
    f = wrap(convolve)
    traced = tf.function(f).get_concrete_function(spec(None, 8, 8), spec(2, 3, 3))
    assert traced.output_shapes == tf.TensorShape([None, 2, 8, 8])
    images, kernels = np.ones((3, 8, 8)), np.ones((2, 3, 3))
    np.testing.assert_array_equal(traced(tf.constant(images), tf.constant(kernels)), convolve(images, kernels))
    anything = tf.function(wrap(gamma), input_signature=[tf.TensorSpec(None, tf.float64)])
    np.testing.assert_array_equal(anything(tf.constant(POINTS)), gamma(POINTS))
    np.testing.assert_array_equal(anything(tf.constant(2.7, tf.float64)), gamma(2.7))
    pairs = lambda x: x.reshape(2, -1).sum(0)
    with pytest.raises(BridgeError, match=r"cannot reshape.*with ones of shape \(9,\).*give out_shape"):
        tf.function(wrap(pairs)).get_concrete_function(spec(None))
    told = wrap(pairs, out_shape=lambda shape: (shape[0] // 2,))
    assert tf.function(told).get_concrete_function(spec(None)).output_shapes.rank == 1
    with pytest.raises(qg.bridge.BridgeError, match="give out_shape"):
        tf.function(wrap(pairs), autograph=False).get_concrete_function(spec(None))
    np.testing.assert_array_equal(tf.function(told)(tf.constant([1.0, 2.0, 3.0, 4.0])), [4.0, 6.0])


def test_batches():
    norm = wrap(lambda x: np.sqrt(np.sum(x * x)), derivative="complex", out_shape=())
    x = tf.constant([[3.0, 4.0], [5.0, 12.0]], tf.float64)
    for over in (tf.map_fn, tf.function(lambda f, x: tf.map_fn(f, x)), tf.vectorized_map):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = over(norm, x)
        np.testing.assert_allclose(y, [5.0, 13.0])
        np.testing.assert_allclose(tape.gradient(y, x), [[0.6, 0.8], [5 / 13, 12 / 13]], rtol=1e-14)


def test_a_keras_layer_learns():
    import keras

    class Power(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.power = self.add_weight(shape=(), initializer="ones")
            self.function = wrap(lambda x, p: x**p, sparsity="elementwise")

        def call(self, x):
            return self.function(x, self.power)

    x = np.linspace(0.5, 2.0, 32, dtype=np.float32)[:, None]
    model = keras.Sequential([Power()])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, x**1.7, epochs=30, batch_size=10, verbose=0)  # of which the last has 2 rows
    assert float(model.layers[0].power) == pytest.approx(1.7, abs=1e-2)


# ------------------------------------------------------------------------------------------------ inputs, messages


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_dtypes(dtype, compiled):
    x = tf.cast([0.5, 1.5], dtype)
    f = wrap(np.sin)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = (tf.function(f) if compiled else f)(x)
    assert y.dtype == (tf.float64 if dtype == "float64" else tf.float32)
    gradient = tape.gradient(y, x)
    assert gradient.dtype == x.dtype
    tolerance = {"float64": 1e-9, "float32": 2.4e-5}.get(dtype, tf.as_dtype(dtype).as_numpy_dtype(1e-2))
    np.testing.assert_allclose(tf.cast(gradient, tf.float64), np.cos([0.5, 1.5]), rtol=0, atol=float(tolerance))


def test_inputs_of_every_kind_and_arguments_by_name():
    @wrap
    def f(x, n, /, scale=1.0, *, mode="sum"):
        return scale * x ** int(n)

    x = tf.Variable(POINTS)
    assert f.__name__ == "f"
    np.testing.assert_allclose(f(x, 2), POINTS**2)
    np.testing.assert_allclose(f(POINTS, np.int64(2), scale=3.0), 3 * POINTS**2)
    with tf.GradientTape() as tape:
        y = f(x, tf.constant(2), scale=tf.constant(2.0, tf.float64))
    np.testing.assert_allclose(tape.gradient(y, x), 4 * POINTS, rtol=1e-8)
    static = wrap(lambda x, mode: {"up": x + 1, "down": x - 1}[mode], static="mode")
    np.testing.assert_allclose(static(x, mode="down"), POINTS - 1)
    single = f(tf.constant([2.0]), 2, 0.5)  # a Python number takes the dtype of the others
    assert single.dtype == tf.float32


def test_what_is_said_of_wrong_inputs():
    import keras

    f = wrap(np.sin)
    with pytest.raises(TypeError, match="complex64: pass its real and imaginary parts"):
        f(tf.constant(1j, tf.complex64))
    with pytest.raises(TypeError, match="belongs to quadgrad.bridge.wrap"):
        f(torch.ones(2))
    with pytest.raises(TypeError, match=r"keras\.layers\.Lambda"):
        f(keras.Input((3,)))
    with pytest.raises(TypeError, match=r"input 0 is list, not a tensor.*static"):
        f([1.0])
    with pytest.raises(TypeError, match=r"quadgrad\.tensorflow\.wrap"):
        qg.bridge.wrap(np.sin)(tf.constant(1.0))
    with pytest.raises(qg.bridge.BridgeError, match="did it forget to return"):
        wrap(lambda x: None)(tf.constant(1.0))
    with pytest.raises(NotImplementedError, match="jit_compile"):
        tf.function(f, jit_compile=True)(tf.constant(1.0))
    with pytest.raises(ValueError, match="derivative='centre'"):
        wrap(np.sin, "centre")
    with pytest.raises(TypeError, match="options"):
        wrap(qg.bridge.wrap(np.sin), vectorized=True)
    with pytest.raises(tf.errors.OpError, match="did it forget to return"):
        tf.function(wrap(lambda x: None, out_shape=()))(tf.constant(1.0))


def test_one_function_for_both_frameworks():
    f = wrap(qg.bridge.wrap(gamma, derivative=slope))
    assert repr(f).startswith("<tensorflow.wrap of <bridge.wrap of gamma")
    assert copy.deepcopy(f) is f
    assert qg.bridge.check(f.bridge, POINTS).passed
    np.testing.assert_array_equal(f(POINTS), f.bridge(POINTS))


def test_the_errors_of_a_graph_are_those_of_an_eager_call():
    infos = []
    for compiled in (False, True):
        f = wrap(lambda x, y: np.sin(x) * y)

        def gradients(x, y, f=f):
            with tf.GradientTape() as tape:
                tape.watch([x, y])
                z = f(x, y)
            return tape.gradient(z, [x, y])

        call = tf.function(gradients) if compiled else gradients
        call(tf.constant(POINTS), tf.constant(POINTS))
        infos.append(f.info)
    eager, graph = infos
    assert eager.method == graph.method == "central"
    assert [e.shape for e in graph.gradient_error] == [e.shape for e in eager.gradient_error] == [(3,), (3,)]
    for a, b in zip(eager.gradient_error, graph.gradient_error, strict=True):
        assert (b < 1e-8).all()
        assert (a < 1e-8).all()
