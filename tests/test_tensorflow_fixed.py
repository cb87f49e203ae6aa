"""quadgrad.tensorflow.replay and qmc: torch's numbers and derivatives, also compiled by XLA, and error bars."""

import numpy as np
import pytest
import torch

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad as qg  # noqa: E402  (what follows needs TensorFlow)
import quadgrad.tensorflow as qgt  # noqa: E402
from tests.tensorflow_problems import ONE, ZERO, D, eager, gradients, graph  # noqa: E402

B = np.array([0.5, 1.0, 1.7])
INF = float("inf")


def xla(run, *args):
    """Call compiled by XLA."""
    return tf.function(run, autograph=False, jit_compile=True)(*args)


PROBLEMS = {  # f with a library's functions, limits, breakpoints; True stands for b
    "smooth": (lambda m: lambda x, b: m.sin(b * x), 0.0, True, None),
    "descending": (lambda m: lambda x, b: m.sin(b * x), True, 0.0, None),
    "half line": (lambda m: lambda x, b: m.exp(-b * x * x), True, INF, None),
    "line": (lambda m: lambda x, b: m.exp(-b * x * x), -INF, INF, None),
    "singular": (lambda m: lambda x, b: m.exp(-b * x) * x**-0.5, 0.0, True, None),
    "moving singularity": (lambda m: lambda x, b: (b - x) ** -0.5, 0.0, True, None),
    "jump": (lambda m: lambda x, b: m.where(x < b, x, 2.0 * m.ones_like(x)), 0.0, 2.0, True),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_replay_is_torchs(name):
    f, a, b, points = PROBLEMS[name]
    pick = lambda v, t: t if v is True else v
    mark = lambda t: None if points is None else t[:, None]
    bt = torch.tensor(B, requires_grad=True)
    plan = qg.quad(f(torch), pick(a, bt), pick(b, bt), (bt,), points=mark(bt)).plan
    value = qg.replay(f(torch), plan, pick(a, bt), pick(b, bt), (bt,), points=mark(bt))
    (slope,) = torch.autograd.grad(value.sum(), bt, create_graph=True)
    run = gradients(lambda t: qgt.replay(f(tf), plan, pick(a, t), pick(b, t), (t,), points=mark(t)), 1)
    for way in (eager, graph, xla):
        for found, exact in zip(way(run, tf.constant(B)), (value, slope), strict=True):
            assert np.allclose(found, exact.detach(), rtol=1e-12, atol=1e-14)


def test_replay_has_second_derivatives_and_logarithms():
    bt = torch.tensor(B, requires_grad=True)
    plan = qg.quad(lambda x, b: (b - x) ** -0.5, 0.0, bt, (bt,)).plan
    run = gradients(lambda b: qgt.replay(lambda x, b: (b - x) ** -0.5, plan, 0.0, b, (b,)), 2)
    assert np.allclose(xla(run, tf.constant(B))[2], -0.5 * B**-1.5, rtol=1e-12)
    plan = qg.quad(lambda x: -1e4 * x, 0.0, torch.tensor(1.0).double(), log=True).plan
    value, slope = eager(gradients(lambda k: qgt.replay(lambda x: -k * x, plan, ZERO, ONE, log=True)), 1e4 * ONE)
    assert np.isclose(value, -np.log(1e4), rtol=1e-12) and np.isclose(slope, -1e-4, rtol=1e-7)


def test_replay_is_saved_and_vectorized(tmp_path):
    plan = qgt.quad(tf.sin, ZERO, ONE).plan

    class Fixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], D)], autograph=False)
        def __call__(self, b):
            return qgt.replay(tf.sin, plan, ZERO, b)

    tf.saved_model.save(Fixed(), str(tmp_path))
    assert np.isclose(tf.saved_model.load(str(tmp_path))(2 * ONE), 1 - np.cos(2), rtol=1e-14)
    many = tf.vectorized_map(
        lambda b: qgt.replay(tf.sin, plan, ZERO, b), tf.constant(B), fallback_to_while_loop=False
    )
    assert np.allclose(many, 1 - np.cos(B), rtol=1e-13)


def test_replay_refuses_what_does_not_fit():
    plan = qgt.quad(tf.sin, ZERO, tf.constant([1.0, 2.0], D)).plan
    with pytest.raises(ValueError, match="0 breakpoints"):
        qgt.replay(tf.sin, plan, ZERO, ONE, points=[0.5])
    with pytest.raises(ValueError, match=r"does not broadcast to the plan's batch \(2,\)"):
        qgt.replay(tf.sin, plan, ZERO, tf.constant(B))
    with pytest.raises(TypeError, match="a plan of quadgrad.quad is needed"):
        qgt.replay(tf.sin, qgt.qmc(lambda x: x[..., 0], [0.0], [1.0], n=64).plan, ZERO, ONE)


BOXES = [
    ([[0.0, 0.0, -1.0]] * 2, [[1.0, 0.5, 1.0]] * 2, [0.5, 1.0]),
    ([[0.0, -INF, 1.0]], [[INF, INF, -1.0]], [0.7]),
    ([[0.0, 0.5, 1.0]], [[1.0, 0.5, 0.0]], [0.7]),  # no volume, but derivatives
]


@pytest.mark.parametrize("box", BOXES, ids=["boxes", "infinite, descending", "empty"])
@pytest.mark.parametrize("way", [eager, graph])
def test_samples_are_torchs(way, box):
    a, b, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in box)
    result = qg.qmc(lambda x, s: torch.exp(-(x**2).sum(-1) * s), a, b, (s,), n=2**12)
    exact = torch.autograd.grad(result.value.sum(), (a, b, s))

    def run(a, b, s):
        with tf.GradientTape() as tape:
            tape.watch((a, b, s))
            found = qgt.qmc(lambda x, s: tf.exp(-tf.reduce_sum(x**2, -1) * s), a, b, (s,), n=2**12)
        return found.value, found.error, found.status, *tape.gradient(found.value, (a, b, s))

    value, error, status, *slopes = way(run, *(tf.constant(v, D) for v in box))
    assert np.allclose(value, result.value.detach(), rtol=1e-13, atol=0)
    assert np.allclose(error, result.error, rtol=1e-13, atol=0) and np.array_equal(status, result.status)
    for slope, true in zip(slopes, exact, strict=True):
        assert np.allclose(slope, true.nan_to_num(), rtol=1e-12, atol=1e-14)


def test_error_bars_cover_value_and_gradient():
    theta = tf.Variable([1.0, 2.0], dtype=D)
    exact, slopes = 0.708073418273571, np.array([0.708073418273571, 0.100612004276055])
    covered = 0
    for seed in range(10):
        with tf.GradientTape() as tape:
            f = lambda x, t: t[..., 0] * tf.sin(t[..., 1] * x[..., 0])
            result = qgt.qmc(f, [0.0], [1.0], (qgt.element(theta, 1),), seed=seed)
        slope, bars = tape.gradient(result.value, theta), qgt.gradient_error(result, theta)
        assert bool(result.converged) and float(result.error) < 1e-3 and float(tf.reduce_max(bars)) < 1e-3
        covered += abs(result.value - exact) <= result.error and np.all(np.abs(slope - slopes) <= bars)
    assert covered >= 9  # of intervals with 99 % each


def test_gradient_errors_are_torchs_and_refuse_what_they_cannot_know():
    s, t = tf.Variable(0.8, dtype=D), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    with tf.GradientTape():
        result = qgt.qmc(lambda x: tf.exp(-tf.reduce_sum(x**2, -1) / s**2), [-ONE] * 2, 1.0, n=2**12)
    twin = qg.qmc(lambda x: torch.exp(-(x**2).sum(-1) / t**2), -torch.ones(2).double(), 1.0, n=2**12)
    assert np.isclose(qgt.gradient_error(result, s), qg.gradient_error(twin, t), rtol=1e-9)
    with pytest.raises(ValueError, match=r"wrt\[0\]: the sample does not depend on it"):
        qgt.gradient_error(result, tf.constant(1.0, D))
    with pytest.raises(ValueError, match="compare the gradients at two tolerances"):
        qgt.gradient_error(qgt.quad(tf.sin, ZERO, ONE), s)


def test_batches_whose_samples_differ():
    w = np.array([0.02, 0.5])
    f = lambda x, w: tf.exp(-tf.reduce_sum((x - 0.4) ** 2, -1) / w**2)
    with tf.GradientTape() as tape:
        width = tf.constant(w)
        tape.watch(width)
        result = qgt.qmc(f, [0.0, 0.0], [1.0, 1.0], (width,), rtol=1e-3, seed=1)
    slope = tape.gradient(result.value, width)
    assert len(set(result.nfev.numpy())) == 2
    t = torch.tensor(w, requires_grad=True)
    g = lambda x, w: torch.exp(-((x - 0.4) ** 2).sum(-1) / w**2)
    twin = qg.qmc(g, [0.0, 0.0], [1.0, 1.0], (t,), rtol=1e-3, seed=1)
    assert np.allclose(result.value, twin.value.detach(), rtol=1e-13)
    assert np.allclose(slope, torch.autograd.grad(twin.value.sum(), t)[0], rtol=1e-12)
