"""TensorFlow's private calls still do what quadgrad asks of them, and its traps are still there."""

import subprocess
import sys

import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

from quadgrad.tensorflow._recording import (  # noqa: E402  (needs TensorFlow)
    call_with_captures,
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


def test_a_function_is_called_with_other_captures():
    found = []

    @tf.function(autograph=False)
    def outer(t):
        inner = tf.function(lambda x: t * x, autograph=False).get_concrete_function(tf.TensorSpec([], tf.float32))
        found.append(inner)
        return t

    outer(tf.constant(2.0))
    assert tf.is_symbolic_tensor(found[0].captured_inputs[0])
    assert float(call_with_captures(found[0], [tf.constant(3.0)], [tf.constant(5.0)])) == 15.0


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
