"""quadgrad.tensorflow: what cannot be meant or done is refused with a sentence, what is lost is warned of."""

import math
import re

import numpy as np
import pytest
import torch

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.xdist_group("tensorflow")

import quadgrad as qg  # noqa: E402  (what follows needs TensorFlow)
import quadgrad.tensorflow as qgt  # noqa: E402
from tests.tensorflow_problems import ONE, ZERO, D, eager, graph  # noqa: E402

THETA = tf.constant([1.0, 2.0], D)


def told(error):
    """Everything that an exception says, notes included."""
    return "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: np.sin(np.ones((2, 1))), "NumPy numbers, which carry no gradient.*quadgrad.tensorflow.wrap"),
        (lambda x: np.float32(1.0), "NumPy numbers"),
        (lambda x: None, "None: is its return missing"),
        (lambda x: tf.sin, "it was not called"),
        (lambda x: qgt.quad(lambda y: y, 0.0, 1.0), "a Result: return its value"),
        (lambda x: torch.ones(3), "a torch.Tensor: integrate it by quadgrad.quad"),
        (lambda x: (x, x), "a tuple: tf.stack"),
        (lambda x: tf.cast(x > 0.5, tf.int32), "int32, which has no derivatives: tf.cast it to x.dtype"),
        (lambda x: x > 0.5, "bool, which has no derivatives"),
        (lambda x: tf.reduce_sum(x), r"returned shape \(\); expected x.shape"),
        (lambda x: tf.ones([7]), r"returned shape \(7,\)"),
    ],
)
@pytest.mark.parametrize("way", [eager, graph])
def test_what_an_integrand_must_not_return(way, f, says):
    with pytest.raises(qgt.IntegrandError, match=says):
        way(lambda: qgt.quad(f, ZERO, tf.constant([1.0, 2.0], D)).value)


@pytest.mark.parametrize("way", [eager, graph])
def test_a_parameter_vector_is_told_to_be_an_element(way):
    f = lambda x, t: t[0] * tf.sin(t[1] * x)
    with pytest.raises(Exception) as error:  # of TensorFlow's own kind, which differs
        way(lambda: qgt.quad(f, ZERO, ONE, (THETA,)).value)
    assert "quadgrad.tensorflow.element(t, ndim=k)" in told(error)
    with pytest.raises(TypeError, match=r"args\[0\] is a quadgrad.element, of torch"):
        way(lambda: qgt.quad(f, ZERO, ONE, (qg.element(torch.ones(2), 1),)).value)
    right = lambda x, t: t[..., 0] * tf.sin(t[..., 1] * x)
    assert float(way(lambda: qgt.quad(right, ZERO, ONE, (qgt.element(THETA, 1),)).value)) == pytest.approx(
        0.708073418
    )


@pytest.mark.parametrize("way", [eager, graph])
def test_double_precision_closed_over_with_python_limits(way):
    with pytest.raises(Exception) as error:
        way(lambda: qgt.quad(lambda x: THETA[0] * tf.sin(THETA[1] * x), 0.0, 1.0).value)
    assert "give a limit in theirs, such as tf.constant(0.0, tf.float64)" in told(error)


@pytest.mark.parametrize("way", [eager, graph])
def test_a_model_without_rows_is_told_to_reshape(way):
    layer = tf.keras.layers.Dense(1)
    with pytest.raises(Exception) as error:
        way(lambda: qgt.quad(lambda x: tf.squeeze(layer(x[0]), -1), 0.0, 1.0).value)
    assert "tf.reshape(model(tf.reshape(x, [-1, 1])), tf.shape(x))" in told(error)


@pytest.mark.parametrize("f", [math.exp, lambda x: x if x > 0.5 else 0 * x])
def test_a_function_of_one_number_is_told_what_it_wants(f):
    with pytest.raises(Exception) as error:
        qgt.quad(f, ZERO, ONE)
    assert "quadgrad.tensorflow.wrap(f, scalars=True)" in told(error) and "vectorized=False" not in told(error)
    scalar = qgt.wrap(lambda x: f(x), scalars=True)
    assert qgt.quad(scalar, ZERO, tf.constant(0.25, D)).converged


def test_inputs_of_other_libraries():
    with pytest.raises(TypeError, match="a is a torch.Tensor"):
        qgt.quad(tf.sin, torch.tensor(0.0), 1.0)
    with pytest.raises(TypeError, match="b is a symbolic tensor of Keras"):
        qgt.quad(tf.sin, 0.0, tf.keras.Input(()))
    with pytest.raises(TypeError, match="f must be a function"):
        qgt.quad(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="ndim=2 does not fit"):
        qgt.element(THETA, 2)
    assert float(qgt.quad(tf.sin, np.float64(0.0), np.array(1.0)).value) == pytest.approx(1 - np.cos(1), rel=1e-14)


@pytest.mark.parametrize("way", [eager, graph])
@pytest.mark.parametrize(
    ("a", "options", "says"),
    [
        (float("nan"), {}, "limit a is NaN"),
        (tf.constant([1.0, float("nan")]), {}, r"limit a is NaN at index \(1,\)"),
        (tf.constant(1j), {}, "limits must be real"),
        (0.0, {"rtol": 0.0}, "rtol and atol are both 0"),
        (0.0, {"rule": "gk20"}, "gk20"),
        (0.0, {"max_nfev": 3}, "max_nfev=3 is less than"),
    ],
)
def test_the_engine_speaks_through(way, a, options, says):
    with pytest.raises(Exception, match=says):
        way(lambda: qgt.quad(tf.identity, a, 1.0, **options).value)


def test_options_that_are_torchs_alone():
    for option, says in [
        ({"gradient": qg.Resolve()}, "tighten rtol"),
        ({"vectorized": False}, "tf.map_fn"),
        ({"group": "g"}, "tf.distribute"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"on_failure": "shout"}, "on_failure"),
        ({"limit_gradient": "none"}, "limit_gradient"),
    ]:
        with pytest.raises((NotImplementedError, ValueError), match=says):
            qgt.quad(tf.sin, 0.0, 1.0, **option)
    qgt.quad(tf.sin, 0.0, 1.0, gradient=qg.Reuse())


def test_xla_is_refused_where_it_would_have_to_search():
    run = tf.function(lambda: qgt.quad(tf.sin, 0.0, 1.0).value, jit_compile=True, autograph=False)
    with pytest.raises(NotImplementedError, match="XLA cannot compile.*quadgrad.tensorflow.replay"):
        run()
    run = tf.function(lambda: qgt.qmc(lambda x: x[..., 0], [0.0], [1.0]).value, jit_compile=True, autograph=False)
    with pytest.raises(NotImplementedError, match="XLA cannot compile"):
        run()


def test_vectorized_map_without_its_loop_says_what_is_missing():
    with pytest.raises(ValueError, match=r"(?s)quadgrad_searches_in_Python.*fallback_to_while_loop"):
        tf.vectorized_map(lambda t: qgt.quad(lambda x: t * x, ZERO, ONE).value, THETA, fallback_to_while_loop=False)


def test_a_saved_model_that_would_have_to_search_is_refused(tmp_path):
    class Searches(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], D)], autograph=False)
        def __call__(self, b):
            return qgt.quad(tf.sin, ZERO, b).value

    model = Searches()
    assert float(model(ONE)) == pytest.approx(1 - np.cos(1), rel=1e-14)
    with pytest.raises(AssertionError, match="cannot_be_saved/save_a_plan_and_call_quadgrad.tensorflow.replay"):
        tf.saved_model.save(model, str(tmp_path))


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ((None, 1.0), "a must be a number or a tensor"),
        ((0.0, "1"), "b must be a number or a tensor"),
        ((0.0, tf.ragged.constant([[1.0], [1.0, 2.0]])), r"b is a RaggedTensor.*to_tensor\(\)"),
        ((tf.sparse.from_dense([1.0]), 1.0), r"a is a SparseTensor.*to_dense"),
    ],
    ids=str,
)
def test_limits_that_are_no_numbers(ends, says):
    with pytest.raises(TypeError, match=says):
        qgt.quad(tf.sin, *ends)


@pytest.mark.parametrize("way", [eager, graph])
def test_variables_of_keras_and_arrays_of_others_are_inputs(way):
    class Column:
        def __array__(self, dtype=None, copy=None):
            return np.array([1.0, 3.0])

    b = tf.keras.Variable(2.0, dtype="float64")

    def run():
        with tf.GradientTape() as tape:
            value = qgt.quad(lambda x, b, c: b * c * x, 0.0, b, (b, Column())).value
        return value, tape.gradient(value, b.value)

    value, slope = way(run)
    assert np.allclose(value, [4.0, 12.0], rtol=1e-14) and float(slope) == pytest.approx(24.0, rel=1e-14)


def differentiate(f, **options):
    def run(t):
        with tf.GradientTape() as tape:
            tape.watch(t)
            value = qgt.quad(f, ZERO, ONE, (t,), **options).value
        return tape.gradient(value, t, unconnected_gradients="zero")

    return run


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("way", [eager, graph])
def test_what_stop_gradient_hides_is_told_where_it_moves_a_jump(way, scale):
    f = lambda x, t: (1.0 - scale + scale * t) * tf.cast(x > tf.stop_gradient(t), D)
    with pytest.warns(qgt.UnmarkedJumpWarning, match=r"jumps at x = 0.3, where nothing is marked") as caught:
        slope = way(differentiate(f), tf.constant(0.3, D))
    assert caught[0].filename == __file__
    assert abs(slope - 0.7 * scale) < 1e-9  # stop_gradient is respected
    assert abs(way(differentiate(f, jumps=lambda x, t: x - t), tf.constant(0.3, D)) - 0.7 * scale + (
        1.0 if scale == 0.0 else 0.3
    )) < 1e-9  # fmt: skip


def test_a_breakpoint_that_ought_to_move_is_told():
    f = lambda x, t: t * tf.cast(x > tf.stop_gradient(t), D)
    with pytest.warns(qgt.UnmarkedJumpWarning, match="without tf.stop_gradient"):
        differentiate(lambda x, t: t * tf.cast(x > t, D), points=[0.3])(tf.constant(0.3, D))
    assert f is not None


def test_a_lost_gradient_is_told_in_tensorflows_words():
    with pytest.warns(qgt.SeveredGradientWarning, match=r"args\[0\] is watched by a tape.*tf.stop_gradient"):
        differentiate(lambda x, t: x + tf.stop_gradient(t))(ONE)
    with pytest.warns(qgt.SeveredGradientWarning, match="leaves TensorFlow"):
        differentiate(lambda x, t: x * float(t.numpy().ravel()[0]))(ONE)


@pytest.mark.parametrize("way", [eager, graph])
def test_failures(way):
    run = lambda on_failure: way(
        lambda: [*vars(qgt.quad(lambda x: 1 / x, ZERO, ONE, on_failure=on_failure)).values()][:3]
    )
    with pytest.warns(qgt.IntegrationWarning, match="1 of 1 integrals did not converge") as caught:
        _, error, status = run("warn")
    assert caught[0].filename == __file__ and int(status) == qgt.Status.DIVERGENT and float(error) > 1
    with pytest.raises(Exception, match="1 of 1 integrals did not converge"):
        run("raise")
    run("ignore")


def test_noise_is_refused():
    with tf.GradientTape() as tape:
        tape.watch(ONE)
        with pytest.raises(qgt.IntegrandError, match="not deterministic"):
            qgt.quad(lambda x, t: t * x + 0.1 * tf.random.normal(tf.shape(x), dtype=D), ZERO, ONE, (ONE,), rtol=0.5)


def test_what_is_public():
    public = ["IntegrandError", "Result", "element", "gradient_error", "qmc", "quad", "replay"]
    assert set(public) <= set(dir(qgt)) and not [
        n for n in dir(qgt) if n.startswith("_") and not n.startswith("__")
    ]


@pytest.mark.parametrize("constant", (2.0, 2, 1j, np.float64(2.0)))
@pytest.mark.parametrize("run", (eager, graph))
def test_a_number_is_a_constant(run, constant):
    b = tf.Variable([2.0, 3.0], dtype=D)

    def call():
        with tf.GradientTape() as tape:
            value = qgt.quad(lambda x: constant, ONE, b).value
            size = tf.reduce_sum(tf.abs(value))
        return value, tape.gradient(size, b)

    value, gradient = run(call)
    np.testing.assert_allclose(value.numpy(), constant * np.array([1.0, 2.0]), rtol=1e-14)
    np.testing.assert_allclose(gradient.numpy(), abs(constant) * np.ones(2), rtol=1e-14)
    if run is eager:
        assert float(qgt.qmc(lambda x: 2.0, [0.0, 0.0], [1.0, 3.0]).value) == pytest.approx(6.0)


def test_a_number_made_of_many_x_is_no_constant():
    with pytest.raises(qg.IntegrandError, match=r"one number for many x.*leave out float\(\)"):
        qgt.quad(lambda x: float(tf.reduce_mean(x**2)), 0.0, 1.0)
    with pytest.raises(TypeError) as caught:
        tf.function(lambda b: qgt.quad(lambda x: float(x), 0.0, b).value)(tf.constant(1.0))
    assert "tf.where decides for each" in told(caught)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: qgt.quad(tf.sin, 0.0, 1.0, epsabs=1e-9), "'epsabs': that is atol here, atol=1e-09"),
        (lambda: qgt.qmc(tf.sin, [0.0], 1.0, n_points=64), "'n_points': that is n here, n=64"),
        (lambda: qgt.simpson(tf.ones(5), axis=0), "that is dim here, dim=0"),
        (lambda: qgt.quad(tf.ones(5), 0.0, 1.0), "quadgrad.simpson"),
        (lambda: float(qgt.quad(tf.sin, 0.0, 1.0)), r"write float\(result.value\)"),
        (lambda: tf.constant(2.0) * qgt.quad(tf.sin, 0.0, 1.0), "result.value"),
        (lambda: tf.sin(qgt.quad(tf.sin, 0.0, 1.0)), "write result.value"),
        (lambda: qgt.quad(tf.sin, 0.0, 1.0)[0], r"result.value\[0\]"),
        (lambda: np.asarray(qgt.quad(tf.sin, 0.0, 1.0)), r"result.value.numpy\(\)"),
        (lambda: qgt.quad(lambda x, a: a * x, 0.0, 1.0), r"args=\(a,\)"),
    ],
)
def test_the_first_hour(call, says):
    with pytest.raises(TypeError) as caught:
        call()
    assert re.search(says, told(caught))


def test_a_limit_in_float64_is_written_in_tensorflows_words():
    result = qgt.quad(tf.sin, 0.0, 1.0, rtol=1e-10, on_failure="ignore")
    assert "tf.constant(0.0, tf.float64)" in result.message and "torch" not in result.message
