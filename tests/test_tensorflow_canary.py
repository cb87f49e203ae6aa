"""TensorFlow's private calls still do what quadgrad asks of them, and its traps are still there."""

import subprocess
import sys

import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad.tensorflow  # noqa: E402  (needs TensorFlow)
from quadgrad.tensorflow._recording import (  # noqa: E402  (needs TensorFlow)
    add_note,
    calling_line,
    function_graph,
    in_xla,
    is_recording,
    is_watched,
    silence,
)


def test_tapes_and_accumulators_tell_what_they_watch():
    one, other, variable = tf.constant(1.0), tf.constant(2.0), tf.Variable(1.0)
    assert not is_recording() and not is_watched(one)
    with tf.GradientTape() as tape:
        tape.watch(one)
        assert is_recording() and is_watched(one) and is_watched(2 * one) and not is_watched(other)
        assert not is_watched(tf.stop_gradient(one)) and is_watched(variable * 1.0)
        with silence():
            assert not is_recording() and not is_watched(2 * one)
            hidden = one * one
    assert tape.gradient(hidden, one) is None
    with tf.autodiff.ForwardAccumulator(one, other):
        assert is_recording() and is_watched(one) and is_watched(2 * one) and not is_watched(other)


def test_the_functions_that_operations_call_are_found():
    inner = tf.function(lambda x: tf.cond(x > 0.0, lambda: tf.sin(x), lambda: x), autograph=False)
    graph = tf.function(inner, autograph=False).get_concrete_function(tf.TensorSpec([])).graph
    for name in ("f", "then_branch"):  # a function in a function
        (call,) = [op for op in graph.get_operations() if name in [a.name for a in op.op_def.attr]]
        graph = function_graph(call.graph, call.get_attr(name).name)
    assert "Sin" in [op.type for op in graph.get_operations()]
    with pytest.raises(NotImplementedError, match="f calls nothing, which TensorFlow does not find"):
        function_graph(graph, "nothing")


def test_autograph_keeps_what_is_said():
    """Exceptions of our own, notes on others, and the line that a warning names."""
    error, found = quadgrad.tensorflow.IntegrandError("mine"), []

    @tf.function
    def run(kind):
        found.append(site(lambda: calling_line()))
        if kind == 0:
            raise error
        site(lambda: add_note(problem, "noted"))
        raise problem

    site = tf.autograph.experimental.do_not_convert(lambda call: call())
    with pytest.raises(quadgrad.tensorflow.IntegrandError) as caught:
        run(0)
    assert caught.value is error
    for problem in (TypeError("theirs"), ValueError("theirs")):
        with pytest.raises(type(problem), match="(?s)theirs.*noted"):
            run(1)


def test_xla_is_seen_through_functions():
    seen = []

    @tf.function(autograph=False)
    def inner(x):
        seen.append(in_xla())
        return x

    tf.function(lambda x: inner(x) + 1.0, jit_compile=True, autograph=False)(tf.constant(1.0))
    tf.function(lambda x: inner(x) + 1.0, autograph=False)(tf.constant([1.0]))
    assert seen == [True, False]


def test_memory_that_is_not_aligned_ends_the_process():
    """Why it is copied; where this fails, the copy may go."""
    code = (
        "import torch, tensorflow as tf\n"
        "t = torch.arange(64.0)[1:]\n"
        "print(tf.experimental.dlpack.from_dlpack(t.__dlpack__()) + 1.0)\n"
        "print('alive')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0 and "alive" not in ended.stdout
