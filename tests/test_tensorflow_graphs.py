"""quadgrad.tensorflow in graphs: functions inside of f, threads, replicas, AutoGraph, memory."""

import gc
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad.tensorflow as qgt  # noqa: E402  (what follows needs TensorFlow)
from quadgrad.tensorflow._inline import Inline  # noqa: E402
from tests.tensorflow_problems import ONE, ZERO, D, eager, gradients, graph  # noqa: E402

THETA = tf.constant([1.0, 2.0], D)


def test_one_thread_is_enough():
    """For functions, branches and loops inside of f, integrals inside of f, and several searches at once."""
    code = """
import threading
import tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
import quadgrad.tensorflow as qgt
product = tf.function(lambda x, y: tf.cond(x[0, 0] > 2.0, lambda: x, lambda: x * y))
def inner(x):
    once = lambda y, x: (lambda i, s: i < 1, lambda i, s: (i + 1, s + tf.exp(-x * y)), (0, 0.0 * y))
    decay = lambda y, x: tf.while_loop(*once(y, x))[1]
    return qgt.quad(lambda y, x: decay(y, x) + product(y, x), 0.0, 1.0, (x,)).value
@tf.function(autograph=False)
def run(b):
    with tf.GradientTape() as tape:
        tape.watch(b)
        value = qgt.quad(inner, 0.0, b, jumps=lambda x: x - b / 2).value
    return value, tape.gradient(value, b)
print([round(float(v), 5) for v in run(tf.constant(1.0))])
found = []
threads = [threading.Thread(target=lambda: found.append(run(tf.constant(1.0)))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["[1.0466,", "1.13212]", "4"], ended.stderr[-2000:]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_functions_branches_and_loops_inside_of_a_searched_function(sign):
    """A model in a function in a branch, and a loop of t x, three times; with the tape's own copies of them."""
    layer = tf.keras.layers.Dense(1, use_bias=False, dtype=D, kernel_initializer="ones")
    model = tf.function(lambda x: tf.reshape(layer(tf.reshape(x, [-1, 1])), tf.shape(x)), autograph=False)

    def f(x, t):
        branch = tf.cond(t > 0.0, lambda: model(t * x), lambda: -x * x * t)
        power = tf.while_loop(lambda i, _: i < 3, lambda i, p: (i + 1, p * t * x), (0, tf.ones_like(x)))[1]
        case = tf.switch_case(tf.constant(1), [lambda: x, lambda: x * t])
        return branch + power + case + tf.map_fn(lambda row: row * t, x)

    t = tf.constant(2.0 * sign, D)
    run = gradients(lambda t: qgt.quad(f, ZERO, ONE, (t,), rtol=1e-12).value, 2)
    model(ZERO)
    exact = [(1.0, 0.5, 0.0), (2.0 / 3, -1 / 3, 0.0)][sign < 0]
    exact = np.array(exact) + [t**3 / 4 + t, 3 * t**2 / 4 + 1, 3 * t / 2]
    for way in (eager, graph):
        assert np.abs(np.array(way(run, t)) - exact).max() < 1e-12


def test_an_operation_that_cannot_be_run_by_itself_is_refused():
    op = types.SimpleNamespace(type="Theirs", outputs=[types.SimpleNamespace(name="y")], inputs=[])
    result = types.SimpleNamespace(name="y")
    graph = types.SimpleNamespace(inputs=[], outputs=[result], get_operations=lambda: [op])
    with pytest.raises(NotImplementedError, match="f uses Theirs, which is not among tf.raw_ops"):
        Inline(graph)


def test_graphs_are_freed():
    """TensorFlow keeps a graph, for ever, of which a Python function in it holds a tensor."""
    closed = tf.function(lambda x, t: t * x)

    def trace(integral):
        run = tf.function(lambda t: integral(t).value)
        graph = run.get_concrete_function(tf.TensorSpec([], D)).graph
        return weakref.ref(graph)

    traced = [
        trace(lambda t: qgt.quad(lambda x: closed(x, t), ZERO, t, jumps=lambda x: x - t / 2)),
        trace(lambda t: qgt.quad(lambda x, p, q: p["t"] * q * x, 0.0, ONE, ({"t": t}, t))),
        trace(lambda t: qgt.qmc(lambda x, t: t * x[..., 0], [ZERO, ZERO], [ONE, t], (t,))),
    ]
    gc.collect()
    assert [graph() for graph in traced] == [None] * 3


@pytest.mark.parametrize("autograph", [True, False])
def test_autograph_changes_nothing_of_what_is_said(autograph):
    theta = tf.Variable(THETA)
    with pytest.raises(TypeError, match="(?s)double|float64.*give a limit in theirs"):
        tf.function(lambda: qgt.quad(lambda x: theta[0] * x, 0.0, 1.0).value, autograph=autograph)()
    with pytest.raises(qgt.IntegrandError, match=r"returned shape \(7,\)"):
        tf.function(lambda: qgt.quad(lambda x: tf.ones([7]), 0.0, 1.0).value, autograph=autograph)()

    def diverges():
        return qgt.quad(lambda x: 1 / x, ZERO, ONE).value

    with pytest.warns(qgt.IntegrationWarning) as caught:
        tf.function(diverges, autograph=autograph)()
    assert (caught[0].filename, caught[0].lineno) == (__file__, diverges.__code__.co_firstlineno + 1)


def test_several_replicas():
    code = """
import tensorflow as tf
cpu, two = tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import quadgrad.tensorflow as qgt
strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
with strategy.scope():
    v = tf.Variable(2.0)
def step():
    with tf.GradientTape() as tape:
        value = qgt.quad(lambda x: v * x, 0.0, 1.0).value
    return value, tape.gradient(value, v)
found = tf.function(lambda: strategy.run(step), autograph=False)()
print([round(float(v), 5) for part in found for v in part.values])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "[1.0, 1.0, 0.5, 0.5]\n", ended.stderr[-2000:]
