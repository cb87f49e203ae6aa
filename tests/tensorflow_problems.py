"""What the tests on TensorFlow share: ways to call, and integrals with exact derivatives."""

import mpmath
import numpy as np
import tensorflow as tf

import quadgrad.tensorflow as qgt

D = tf.float64
ZERO, ONE = tf.constant(0.0, D), tf.constant(1.0, D)


def eager(run, *args):
    """Call as it is."""
    return run(*args)


def graph(run, *args):
    """Call in a function, with known shapes."""
    return tf.function(run, autograph=False)(*args)


def unknown(run, *args):
    """Call in a function that knows neither shape nor rank."""
    return tf.function(run, autograph=False, input_signature=[tf.TensorSpec(None, a.dtype) for a in args])(*args)


WAYS = [eager, graph, unknown]


def gradients(integral, order=1):
    """Return a function that gives the value and the derivatives of ``integral(v)``, elementwise in v."""

    def run(v):
        if order == 0:
            return [integral(v)]
        with tf.GradientTape() as tape:
            tape.watch(v)
            found = gradients(integral, order - 1)(v)
        return [*found, tape.gradient(found[-1], v)]

    return run


def gamma(s):
    """Gamma by its integral."""
    return qgt.quad(lambda x, s: x ** (s - 1.0) * tf.exp(-x), 0.0, float("inf"), (s,), rtol=1e-13, atol=1e-13).value


def exact_gamma(s):
    """Gamma and its two derivatives."""
    return [np.array([float(mpmath.diff(mpmath.gamma, mpmath.mpf(one), k)) for one in s]) for k in range(3)]
