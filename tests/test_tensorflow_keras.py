"""Keras models as integrands: trained as torch's twin is, and in half precision."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad as qg  # noqa: E402  (what follows needs TensorFlow)
import quadgrad.tensorflow as qgt  # noqa: E402

D = tf.float64
STEPS, RATE = 100, 0.05


def weights():
    generator = np.random.default_rng(0)
    shapes = ((1, 8), (8,), (8, 1), (1,))
    return [0.5 * generator.normal(size=shape) for shape in shapes]


def model(dtype="float64"):
    layers = [tf.keras.layers.Dense(8, "tanh", dtype=dtype), tf.keras.layers.Dense(1, dtype=dtype)]
    network = tf.keras.Sequential([tf.keras.Input((1,), dtype="float64"), *layers])
    network.set_weights(weights())
    return network


def as_integrand(network):
    return lambda x: tf.reshape(network(tf.reshape(x, [-1, 1])), tf.shape(x))


B, TARGET = [0.5, 1.0, 2.0], [0.2, 0.7, 1.1]


def torch_losses():
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), weights(), strict=True):
            parameter.copy_(torch.from_numpy(values.T))
    b, target = (torch.tensor(v, dtype=torch.float64) for v in (B, TARGET))
    found = []
    for _ in range(STEPS):
        value = qg.quad(lambda x: network(x[..., None])[..., 0], 0.0, b).value
        loss = ((value - target) ** 2).sum()
        found.append(loss.item())
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= RATE * parameter.grad
    return found


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_is_that_of_the_torch_twin(compiled):
    network, b, target = model(), tf.constant(B, D), tf.constant(TARGET, D)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((qgt.quad(as_integrand(network), 0.0, b).value - target) ** 2)
        variables = network.trainable_variables
        for variable, slope in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(RATE * slope)
        return loss

    step = tf.function(step, autograph=False) if compiled else step
    losses, twin = [float(step()) for _ in range(STEPS)], torch_losses()
    assert np.abs(np.subtract(losses, twin)).max() < 1e-12
    assert losses[-1] < 0.2 * losses[0]


def test_half_precision_policies_are_summed_and_returned_in_single_precision():
    network, exact = model("mixed_float16"), model("float64")
    with tf.GradientTape() as tape:
        result = qgt.quad(as_integrand(network), 0.0, tf.constant(1.0))
    slopes = tape.gradient(result.value, network.trainable_variables)
    assert result.value.dtype == tf.float32 and all(s.dtype == tf.float32 for s in slopes)
    true = float(qgt.quad(as_integrand(exact), 0.0, tf.constant(1.0, D)).value)
    assert abs(float(result.value) - true) <= float(result.error) < 1e-2


def test_a_model_is_sampled_in_several_dimensions():
    layer = tf.keras.layers.Dense(1, dtype="float64", kernel_initializer="ones")
    with tf.GradientTape() as tape:
        f = lambda x: tf.reshape(layer(tf.reshape(x, [-1, 3])), tf.shape(x)[:-1])
        value = qgt.qmc(f, tf.zeros(3, D), 1.0, n=2**10).value
    assert np.isclose(value, 1.5, rtol=1e-3)
    assert np.allclose(tape.gradient(value, layer.kernel), 0.5, rtol=1e-2)


def test_a_model_on_keras_torch_backend_belongs_to_torchs_quad():
    """In single precision: on that backend Keras rounds to it, and a search in double precision says so."""
    code = """
import keras, torch, quadgrad as qg
layer = keras.layers.Dense(1, kernel_initializer="ones")
layer.build((None, 1))
f = lambda x: layer(x.reshape(-1, 1)).reshape(x.shape)
value = qg.quad(f, 0.0, torch.tensor(2.0)).value
(slope,) = torch.autograd.grad(value, layer.kernel.value)
print(round(float(value.detach()), 5), round(float(slope), 5))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "torch"}
    )
    assert ended.stdout.split() == ["2.0", "2.0"], ended.stderr[-2000:]
