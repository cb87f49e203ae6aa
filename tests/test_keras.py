"""A Keras model as the integrand: on TensorFlow of quadgrad.tensorflow.quad, on torch of quadgrad.quad."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import quadgrad as qg

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
keras = pytest.importorskip("keras", reason="Keras is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad.tensorflow as qgt  # noqa: E402  (needs TensorFlow)

UPPER = np.linspace(0.5, 2.0, 8)
TARGET = np.sin(UPPER)
STEPS = 100


def weights():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 8)), rng.normal(size=8), rng.normal(size=(8, 1)) / 3, np.zeros(1)]


def network():
    layers = [keras.layers.Dense(8, activation="tanh", dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    model = keras.Sequential(layers)
    model.build((None, 1))
    model.set_weights(weights())
    return model


@functools.cache
def losses_of_torch():
    first, second = torch.nn.Linear(1, 8, dtype=torch.float64), torch.nn.Linear(8, 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip([*first.parameters(), *second.parameters()], weights(), strict=True):
            parameter.copy_(torch.from_numpy(value.T))
    net = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0625)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        values = qg.quad(lambda x: net(x[..., None])[..., 0], 0.0, torch.from_numpy(UPPER)).value
        loss = ((values - torch.from_numpy(TARGET)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
def test_a_network_on_tensorflow_learns_as_its_twin_in_torch(compiled):
    model = network()
    f = lambda x: tf.reshape(model(tf.reshape(x, [-1, 1])), tf.shape(x))
    optimizer = keras.optimizers.SGD(0.0625)  # which float32, in which Keras keeps it, has too
    optimizer.build(model.trainable_variables)

    def step():
        with tf.GradientTape() as tape:
            values = qgt.quad(f, 0.0, tf.constant(UPPER)).value
            loss = tf.reduce_mean((values - TARGET) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    call = tf.function(step) if compiled else step
    losses = [float(call()) for _ in range(STEPS)]
    assert losses[-1] < 0.1 * losses[0]
    np.testing.assert_allclose(losses, losses_of_torch(), rtol=0, atol=1e-12)


def test_a_model_that_is_given_x_itself_is_told_what_it_wants():
    model = network()
    with pytest.raises(Exception) as caught:
        qgt.quad(lambda x: model(x), 0.0, tf.constant(UPPER))
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "tf.reshape(x, [-1, 1])" in said


def test_a_network_on_the_torch_backend_belongs_to_torch():
    # In float32: Keras 3.15 multiplies matrices in no other precision on this backend, whatever their dtype.
    program = """
        import keras, numpy as np, torch
        import quadgrad as qg

        assert keras.backend.backend() == "torch"
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
        model.build((None, 1))
        f = lambda x: model(x.reshape(-1, 1)).reshape(x.shape)
        upper = torch.tensor([0.5, 2.0], requires_grad=True)
        value, error = qg.quad(f, 0.0, upper)
        parameters = [v.value for v in model.trainable_variables]
        found = torch.autograd.grad(value.sum(), [*parameters, upper])
        x, w = (torch.from_numpy(v).float() for v in np.polynomial.legendre.leggauss(40))
        exact = torch.stack([(w * u / 2 * f((x + 1) * u / 2)).sum() for u in upper])
        expected = torch.autograd.grad(exact.sum(), [*parameters, upper])
        assert ((value - exact).abs() <= error + 1e-6).all(), (value, exact, error)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True))
        print("right")
    """
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "right", done.stderr[-3000:]
