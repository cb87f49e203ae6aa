"""quadgrad.tensorflow.quad: values and derivatives, eager, in graphs, and in graphs that know no shapes."""

import mpmath
import numpy as np
import pytest
import torch

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad as qg  # noqa: E402  (what follows needs TensorFlow)
import quadgrad.tensorflow as qgt  # noqa: E402
from tests.tensorflow_problems import (  # noqa: E402
    ONE,
    WAYS,
    ZERO,
    D,
    eager,
    exact_gamma,
    gamma,
    gradients,
    graph,
)  # fmt: skip

VALUE, SLOPE = 0.708073418273571, 0.100612004276055
THETA = np.array([1.0, 2.0])


def wave(theta, **options):
    """Integrate theta[0] sin(theta[1] x), closing over theta."""
    return qgt.quad(lambda x: theta[0] * tf.sin(theta[1] * x), ZERO, ONE, **options)


@pytest.mark.parametrize("way", WAYS)
def test_value_gradient_and_hessian(way):
    def run(theta):
        with tf.GradientTape() as outer:
            outer.watch(theta)
            with tf.GradientTape() as inner:
                inner.watch(theta)
                value = wave(theta).value
            slope = inner.gradient(value, theta)
        return value, slope, outer.jacobian(slope, theta)

    value, slope, hessian = way(run, tf.constant(THETA))
    assert abs(value - VALUE) < 1e-12
    assert np.abs(slope - [VALUE, SLOPE]).max() < 1e-12
    second = np.sin(2.0) / 2 - np.cos(2.0) / 4 - 0.25  # the integral of x^2 sin(2 x)
    assert np.abs(hessian - np.array([[0, SLOPE], [SLOPE, -second]])).max() < 1e-12


def test_beside_the_usual_answers():
    theta, x = THETA, np.linspace(0, 1, 1000)
    f = lambda x: theta[0] * np.sin(theta[1] * x)
    trapezoid = abs(np.trapezoid(f(x), x) - VALUE)
    samples = abs(f(np.random.default_rng(0).random(10_000)).mean() - VALUE)
    assert abs(float(wave(tf.constant(theta)).value) - VALUE) < 1e-12 < 1e-7 < trapezoid < 1e-6 < samples


@pytest.mark.parametrize("mark", ["points", "jumps"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_moves(way, mark):
    """theta0 sin(theta1 x), and 2 more from theta2 on."""

    def run(theta):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            f = lambda x: theta[0] * tf.sin(theta[1] * x) + 2.0 * tf.cast(x > tf.stop_gradient(theta[2]), D)
            where = {"points": [theta[2]]} if mark == "points" else {"jumps": lambda x: x - theta[2]}
            value = qgt.quad(f, ZERO, ONE, **where).value
        return value, tape.gradient(value, theta)

    value, slope = way(run, tf.constant([1.0, 2.0, 0.3], D))
    assert abs(value - VALUE - 1.4) < 1e-12
    assert np.abs(slope - [VALUE, SLOPE, -2.0]).max() < 1e-11


@pytest.mark.parametrize("way", WAYS)
def test_gamma_and_two_derivatives(way):
    s = np.array([2.7, 0.2])
    for found, exact in zip(way(gradients(gamma, 2), tf.constant(s)), exact_gamma(s), strict=True):
        assert np.abs(found / exact - 1).max() < 1e-12


@pytest.mark.parametrize("how", ["closed over", "passed", "a variable", "a variable passed"])
@pytest.mark.parametrize("way", [eager, graph])
def test_a_limit_that_a_singularity_moves_with(way, how):
    b = tf.constant(0.7, D)
    variable = tf.Variable(b)

    def integral(b):
        if how.endswith("passed"):
            return qgt.quad(lambda x, b: (b - x) ** -0.5, 0.0, b, (b,)).value
        return qgt.quad(lambda x: (b - x) ** -0.5, 0.0, b).value

    def of_variable():
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                value = integral(variable)
            slope = tape.gradient(value, variable)
        return value, slope, outer.gradient(slope, variable)

    found = way(of_variable) if how.startswith("a variable") else way(gradients(integral, 2), b)
    assert np.allclose(found, [2 * 0.7**0.5, 0.7**-0.5, -0.5 * 0.7**-1.5], rtol=1e-12, atol=0)


@pytest.mark.parametrize("way", [eager, graph])
def test_a_singularity_that_stays_has_an_infinite_derivative(way):
    with pytest.warns(qgt.IntegrationWarning, match="the derivative with respect to limit b is infinite") as caught:
        _, slope = way(
            gradients(lambda b: qgt.quad(lambda x: (0.7 - x) ** -0.5, 0.0, b).value), tf.constant(0.7, D)
        )
    assert np.isposinf(slope) and caught[0].filename == __file__


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("b", [0.5, [0.3, 1.0], [[1.0], [2.0]], [-0.5, 0.0]], ids=str)
def test_limits_and_batches(way, b):
    def run(b):
        with tf.GradientTape() as tape:
            tape.watch(b)
            result = qgt.quad(lambda x, s: tf.cos(s * x), 0.0, b, (1.0 + b,))
        return result.value, tape.gradient(result.value, b), result.status

    value, slope, status = way(run, tf.constant(b, D))
    s, b = 1 + np.array(b), np.array(b)
    assert np.abs(value - np.sin(s * b) / s).max() < 1e-13
    exact = np.cos(s * b) + (b * s * np.cos(s * b) - np.sin(s * b)) / s**2
    assert np.abs(slope - exact).max() < 1e-12
    assert not np.any(status)


@pytest.mark.parametrize("way", WAYS)
def test_infinite_limits_and_events(way):
    """Moments of a normal density between limits, some of which are infinite."""

    def run(m):
        f = lambda x, m: tf.exp(-((x - m) ** 2))[..., None] * tf.stack([tf.ones_like(x), x], -1)
        return qgt.quad(f, [-np.inf, 0.0, -np.inf], [np.inf, np.inf, 1.0], (m,)).value

    m = tf.constant([0.3, 0.0, 1.0], D)
    value, slope = way(gradients(lambda m: tf.reduce_sum(run(m))), m)
    root = np.pi**0.5
    assert abs(value - (1.3 * root + root / 2 + 0.5 + root - 0.5)) < 1e-11
    assert np.abs(slope - [root, 1 + root / 2, root / 2 - 2]).max() < 1e-9


@pytest.mark.parametrize("way", WAYS)
def test_complex_values(way):
    def run(w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            value = qgt.quad(lambda x, w: tf.exp(tf.complex(tf.zeros_like(x), w * x)), ZERO, ONE, (w,)).value
            real = tf.math.real(value)
        return value, tape.gradient(real, w)

    value, slope = way(run, tf.constant(2.0, D))
    assert abs(value.numpy() - (np.exp(2j) - 1) / 2j) < 1e-13
    assert abs(slope - (2 * np.cos(2) - np.sin(2)) / 4) < 1e-13


@pytest.mark.parametrize("way", [eager, graph])
def test_logarithms(way):
    def run(n):
        f = lambda rate, n: n * tf.math.log(rate) - 2 * rate - tf.math.lgamma(n + 1)
        return qgt.quad(f, 0.0, float("inf"), (n,), log=True).value

    n = np.array([400.0, 3000.0])
    value, slope = way(gradients(run), tf.constant(n))
    assert np.allclose(value, -(n + 1) * np.log(2), rtol=1e-10) and np.allclose(slope, -np.log(2), rtol=1e-8)


@pytest.mark.parametrize("way", [eager, graph])
def test_chunks_change_nothing(way):
    f = lambda x, k: tf.exp(-k * x) * x**-0.5
    k = tf.constant([0.5, 1.0, 400.0], D)
    run = lambda **options: way(gradients(lambda k: qgt.quad(f, ZERO, ONE, (k,), **options).value, 2), k)
    for chunked, whole in zip(run(chunk_size=64), run(), strict=True):
        assert np.allclose(chunked, whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("way", "pfor"), [(eager, True), (eager, False), (graph, True)])
def test_jacobians_with_and_without_pfor(way, pfor):
    def run(k):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(k)
            f = lambda x, k: tf.exp(-k * x) * x**-0.5 + tf.cast(x > tf.stop_gradient(k) / 4, D)
            value = qgt.quad(f, ZERO, k, (k,), jumps=lambda x, k: x - k / 4).value
        return value, tape.jacobian(value, k, experimental_use_pfor=pfor), tape.gradient(value, k)

    k = np.array([0.5, 1.5])
    value, jacobian, slope = way(run, tf.constant(k))
    assert np.allclose(jacobian, np.diag(slope), rtol=1e-13, atol=0)
    erf = np.vectorize(lambda k: float(mpmath.erf(k)))
    assert np.abs(value - (np.sqrt(np.pi / k) * erf(k) + 0.75 * k)).max() < 1e-7


def test_forward_mode():
    w, b = tf.constant(2.0, D), tf.constant(0.7, D)
    with tf.autodiff.ForwardAccumulator([w, b], [ONE, tf.constant(3.0, D)]) as accumulator:
        value = qgt.quad(lambda x, w: tf.sin(w * x), ZERO, b, (w,)).value
    slope = (0.7 * 2 * np.sin(1.4) - (1 - np.cos(1.4))) / 4
    assert abs(accumulator.jvp(value) - slope - 3 * np.sin(1.4)) < 1e-13


def test_forward_over_reverse():
    w = tf.constant(2.0, D)
    with tf.autodiff.ForwardAccumulator(w, ONE) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch(w)
            value = qgt.quad(lambda x: tf.exp(w * x), ZERO, ONE).value
        slope = tape.gradient(value, w)
    assert abs(accumulator.jvp(slope) - (np.exp(2.0) - 1) / 4) < 1e-13  # (2 e^2 - 2 (e^2 + 1) / 2) / 4


@pytest.mark.parametrize("way", [eager, graph])
def test_map_fn_and_vectorized_map_by_its_loop(way):
    for each in (tf.map_fn, tf.vectorized_map)[: 2 if way is eager else 1]:
        run = gradients(lambda v, each=each: each(lambda t: qgt.quad(lambda x: t * t * x, ZERO, ONE).value, v))
        value, slope = way(run, tf.constant([1.0, 2.0], D))
        assert np.allclose(value, [0.5, 2.0], rtol=1e-15) and np.allclose(slope, [1.0, 2.0], rtol=1e-15)


def test_an_integral_in_an_integrand():
    f = lambda x, w: qgt.quad(lambda y, x, w: tf.exp(-w * x * y), 0.0, 1.0, (x, w)).value
    value, slope = gradients(lambda w: qgt.quad(f, ZERO, ONE, (w,)).value)(tf.constant(2.0, D))
    x = np.polynomial.legendre.leggauss(40)
    nodes, weights = 0.5 + 0.5 * x[0], 0.5 * x[1]
    grid = np.exp(-2.0 * nodes[:, None] * nodes)
    assert abs(value - weights @ grid @ weights) < 1e-12
    assert abs(slope + weights @ (grid * nodes[:, None] * nodes) @ weights) < 1e-12


def test_an_eager_call_sees_what_f_closes_over_now():
    number, tensor, variable = 1.0, ONE, tf.Variable(1.0, dtype=D)
    f = lambda x: number * tensor * variable * tf.ones_like(x)
    assert float(qgt.quad(f, ZERO, ONE).value) == pytest.approx(1.0, rel=1e-14)
    number, tensor = 2.0, tf.constant(3.0, D)
    variable.assign(5.0)
    assert float(qgt.quad(f, ZERO, ONE).value) == pytest.approx(30.0, rel=1e-14)


def test_a_graph_sees_variables_as_they_are_at_that_line():
    v = tf.Variable(0.0, dtype=D)

    def run():
        found = []
        for number in (1.0, 3.0):
            v.assign(number)
            found.append(qgt.quad(lambda x: v * x, ZERO, ONE).value)
        v.assign(100.0)
        return found

    assert np.allclose(graph(run), [0.5, 1.5], rtol=1e-14)


def test_one_trace_for_equal_shapes():
    traces = []

    @tf.function(autograph=False)
    def run(t):
        traces.append(1)
        return qgt.quad(lambda x, t: t * x, ZERO, ONE, (t,)).value

    for number in range(3):
        assert np.allclose(run(tf.constant([1.0, 2.0], D) * number), np.array([0.5, 1.0]) * number, rtol=1e-14)
    assert len(traces) == 1


def test_nothing_is_evaluated_twice_without_a_tape():
    calls = []

    def f(x):
        calls.append(len(x))
        return tf.exp(x)

    result = qgt.quad(f, ZERO, ONE)
    assert calls == [26, 3] and int(result.nfev) == 26  # three nodes once more, among others: f must not mix
    with tf.GradientTape():  # which sees nothing of it
        qgt.quad(f, ZERO, ONE)
    assert calls == [26, 3] * 2


def test_a_search_leaves_nothing_on_the_tape():
    v = tf.Variable(1.0, dtype=D)
    with tf.GradientTape(persistent=True) as tape:
        result = qgt.quad(lambda x: v * tf.sin(40 * x), ZERO, ONE)
    for part in (result.error, tf.cast(result.status, D), tf.cast(result.nfev, D)):
        assert tape.gradient(part, v) is None


def test_results_unpack_and_tell_what_torchs_tell():
    f = lambda x: 1.0 / (1.0 + x * x)  # the same to the last bit in both: exp is not on every processor
    result = qgt.quad(f, ZERO, tf.constant([1.0, 2.0], D))
    value, error = result
    twin = qg.quad(f, 0.0, torch.tensor([1.0, 2.0]).double())
    assert np.array_equal(value, twin.value) and np.array_equal(error, twin.error)
    assert repr(result) == repr(twin) and result.message == twin.message
    assert np.all(result.converged) and value.dtype == D and result.plan.same(twin.plan)
    again = qgt.quad(f, ZERO, tf.constant([1.0, 2.0], D), plan=result.plan)
    assert np.array_equal(again.value, value)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32])
def test_narrow_dtypes_are_summed_in_single_precision(dtype):
    value, slope = gradients(lambda s: qgt.quad(lambda x, s: s * x, 0.0, 1.0, (s,)).value)(tf.constant(2.0, dtype))
    assert value.dtype == tf.float32 and slope.dtype == dtype
    assert abs(float(value) - 1.0) < 4e-3 and abs(float(slope) - 0.5) < 4e-3


def test_modules_elements_and_mixed_dtypes():
    class Line(tf.Module):
        def __init__(self):
            self.slope = tf.Variable(2.0, dtype=D)

        def __call__(self, x):
            return self.slope * x

    line = Line()
    with tf.GradientTape() as tape:
        value = qgt.quad(line, ZERO, ONE).value
    assert float(tape.gradient(value, line.trainable_variables)[0]) == pytest.approx(0.5, rel=1e-14)
    c = tf.constant([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])  # float32, beside a limit in double precision
    f = lambda x, c: tf.reduce_sum(c * x[..., None] ** tf.range(3.0, dtype=D), -1)
    for way in (eager, graph):
        run = gradients(lambda c: qgt.quad(f, ZERO, ONE, (qgt.element(c, ndim=1),)).value)
        value, slope = way(run, c)
        assert np.allclose(value, [2.0, 1.0], rtol=1e-14)
        assert slope.dtype == tf.float32 and np.allclose(slope, [[1, 1 / 2, 1 / 3]] * 2, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_empty_intervals_and_empty_batches(way):
    run = gradients(lambda b: qgt.quad(lambda x, b: tf.cos(b * x), b - b + ONE, ONE + b, (b,)).value)
    value, slope = way(run, tf.constant(0.0, D))
    assert float(value) == 0.0 and abs(slope - 1.0) < 1e-14
    value, slope = way(run, tf.zeros([0, 2], D))
    assert value.shape == slope.shape == (0, 2)
