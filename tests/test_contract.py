"""The calling contract: shapes, dtypes, statuses, options and what a call leaves alone."""

from __future__ import annotations

import logging
import math
import random
import warnings
from math import inf, nan, pi

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import PeakMemory, Recorder, integral, leaf, relative_error, t64


def peak(x: Tensor, e: Tensor) -> Tensor:
    return e / ((x - 0.3) ** 2 + e**2)


def decay(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x)


# -- shapes ------------------------------------------------------------------------------------------


# Shapes of a, b and one argument.
BATCHES = (
    ((), (), ()),
    ((3,), (), ()),
    ((), (), (4,)),
    ((3, 1), (4,), ()),
    ((3, 1), (4,), (2, 1, 1)),
    ((1,), (1,), (1,)),
    ((0,), (), ()),
)


@pytest.mark.parametrize(("a", "b", "p"), BATCHES, ids=str)
@pytest.mark.parametrize("event", [(), (2,), (2, 3)], ids=str)
def test_value_has_batch_and_event_shape(a: tuple, b: tuple, p: tuple, event: tuple) -> None:
    batch = torch.broadcast_shapes(a, b, p)
    f = lambda x, p: decay(x, p).reshape(x.shape + (1,) * len(event)) * torch.ones(event, dtype=torch.float64)
    zeros, ones, rates = (t64(value).expand(shape) for value, shape in ((0.0, a), (1.0, b), (1.7, p)))
    result = qg.quad(f, zeros, ones, (rates,))
    assert result.value.shape == batch + event
    assert result.error.shape == result.status.shape == result.nfev.shape == result.converged.shape == batch
    assert tuple(result.plan.batch_shape) == batch
    assert ((result.value - (1 - math.exp(-1.7)) / 1.7).abs() <= 1e-12).all()


def test_components_of_an_event_share_their_cells() -> None:
    f = lambda x: torch.stack((torch.exp(x), peak(x, t64(1e-3))), dim=-1)
    result = qg.quad(f, t64(0.0), t64(1.0), rtol=1e-10)
    alone = qg.quad(lambda x: peak(x, t64(1e-3)), t64(0.0), t64(1.0), rtol=1e-10)
    exact = t64([math.e - 1, math.atan(700) + math.atan(300)])
    assert ((result.value - exact).abs() <= result.error).all()
    assert int(alone.nfev) <= int(result.nfev) <= 2 * int(alone.nfev)


def test_complex_integrand_has_a_real_error_of_the_modulus() -> None:
    result = qg.quad(lambda x: torch.exp(1j * x), t64(0.0), t64(pi), rtol=1e-12)
    assert result.value.dtype is torch.complex128
    assert result.error.dtype is torch.float64
    assert abs(complex(result.value) - 2j) <= float(result.error)


@pytest.mark.parametrize("rank", (1, 2))
def test_probe_is_one_interior_node_of_one_element(rank: int) -> None:
    f = Recorder(decay)
    b = t64(3.0).expand((2,) * rank)
    result = qg.quad(f, t64(2.0), b, (t64(1.0),))
    assert f.seen[0].shape == (1,) * (rank + 1)
    assert 2.0 < float(f.seen[0]) < 3.0
    assert f.seen[1].shape == (1, 3)  # the same node again, beside those of others
    assert float(f.seen[1][0, -1]) == float(f.seen[0])
    assert f.nodes.numel() == int(result.nfev.sum()) + 1 + 3


def test_a_single_integral_is_probed_on_its_first_cell() -> None:
    f = Recorder(decay)
    result = qg.quad(f, t64(2.0), t64(3.0), (t64(1.0),))
    assert f.seen[0].shape == (26, 1)
    assert ((f.seen[0] > 2.0) & (f.seen[0] < 3.0)).all()
    assert torch.isin(f.seen[1], f.seen[0]).all()  # three of them again, beside other ones
    assert f.nodes.numel() == int(result.nfev) + 3
    for other in (
        lambda x, p: torch.exp(-1j * p * x),
        lambda x, p: torch.stack((x, p * x), -1),
        lambda x, p: x.half(),
    ):
        together = qg.quad(other, t64([2.0]), t64([3.0]), (t64(1.0),), rtol=0.1)
        alone = qg.quad(other, t64(2.0), t64(3.0), (t64(1.0),), rtol=0.1)
        assert torch.equal(alone.value, together.value[0]) and alone.nfev == together.nfev[0]
        assert alone.value.dtype == together.value.dtype


def test_x_in_search_has_a_row_for_each_node_and_a_column_for_each_cell() -> None:
    f = Recorder(decay)
    qg.quad(f, t64(0.0), t64(1.0), (t64([1.0, 2.0, 3.0]),), rule="gk15")
    assert f.seen[2].shape == (20, 3)  # the first cells' nodes, looks, and one place beside each limit
    assert f.args[2][0].tolist() == [1.0, 2.0, 3.0]


# -- qg.element --------------------------------------------------------------------------------------

SAMPLES = t64([[0.1, 0.4, 1.0], [0.0, 0.7, 0.2], [1.0, -1.0, 3.0], [0.3, 0.3, 0.3]])


def likelihood(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """Density of one row y of data given a random effect x, times the effect's density."""
    return torch.exp(-((x[..., None] - y) ** 2).sum(-1) / (2 * s**2) - x**2 / 2)


def likelihood_area(y: Tensor, s: Tensor) -> Tensor:
    k = y.shape[-1] / s**2 + 1
    m = y.sum(-1) / s**2
    return torch.sqrt(2 * pi / k) * torch.exp(m**2 / (2 * k) - (y**2).sum(-1) / (2 * s**2))


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4)], ids=str)
def test_element_arrives_whole_for_each_integral(shape: tuple[int, ...]) -> None:
    y = SAMPLES.reshape(*shape, 3).clone().requires_grad_()
    s = t64(0.8, requires_grad=True)
    value = integral(likelihood, -inf, inf, qg.element(y, ndim=1), s)
    exact = likelihood_area(y, s)
    ours, theirs = (torch.autograd.grad(torch.log(v).sum(), (y, s)) for v in (value, exact))
    assert value.shape == shape
    assert relative_error(value, exact) <= 1e-11
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-10


def test_element_of_a_matrix() -> None:
    matrices = torch.arange(18, dtype=torch.float64).reshape(2, 3, 3) / 18
    f = lambda x, m: torch.linalg.det(x[..., None, None] * torch.eye(3, dtype=x.dtype) + m)
    value = qg.quad(f, t64(0.0), t64(1.0), (qg.element(matrices, ndim=2),), rtol=1e-12).value
    singly = [qg.quad(lambda x, m=m: f(x, m), t64(0.0), t64(1.0), rtol=1e-12).value for m in matrices]
    assert relative_error(value, torch.stack(singly)) <= 1e-12


def test_element_under_vmap_and_grad() -> None:
    one = lambda y: integral(likelihood, -inf, inf, qg.element(y, ndim=1), 0.8)
    slopes = torch.func.vmap(torch.func.grad(one))(SAMPLES)
    exact = torch.func.vmap(torch.func.grad(lambda y: likelihood_area(y, t64(0.8))))(SAMPLES)
    assert (slopes - exact).abs().max() <= 1e-11


@pytest.mark.parametrize("ndim", (-1, 3))
def test_element_checks_its_ndim(ndim: int) -> None:
    with pytest.raises(ValueError, match=r"ndim.*\(4, 3\)"):
        qg.element(SAMPLES, ndim=ndim)


# -- dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "arg", "expected"),
    [
        (1.0, 2.0, None),
        (1.0, torch.tensor(2.0), torch.float32),
        (1.0, t64(2.0), torch.float64),
        (t64(1.0), torch.tensor(2.0), torch.float64),
        (torch.tensor(1.0), torch.tensor(2), torch.float32),
        (t64(1.0), 2, torch.float64),
    ],
)
def test_working_dtype_is_the_promoted_one_of_the_floating_tensors(limit, arg, expected) -> None:
    f = Recorder(lambda x, p: torch.exp(-x))
    result = qg.quad(f, 0, limit, (arg,))
    expected = expected or torch.get_default_dtype()
    assert {x.dtype for x in f.seen} == {expected}
    assert result.value.dtype is result.error.dtype is expected
    assert abs(float(result.value) - (1 - math.exp(-1))) <= float(result.error)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_is_called_in_its_own_dtype_and_summed_in_float32(dtype: torch.dtype) -> None:
    f = Recorder(decay)
    p = torch.tensor([0.5, 2.0], dtype=dtype)
    result = qg.quad(f, torch.tensor(0.0, dtype=dtype), torch.tensor(1.0, dtype=dtype), (p,))
    exact = (1 - torch.exp(-p.double())) / p.double()
    assert {x.dtype for x in f.seen} == {dtype}
    assert result.error.dtype is torch.float32
    assert result.converged.all()
    assert ((result.value.double() - exact).abs() <= result.error).all()
    assert relative_error(result.value.double(), exact) <= torch.finfo(dtype).eps


def test_default_tolerance_follows_the_coarser_of_input_and_output() -> None:
    f = lambda x: torch.exp(-x.float()) * 3
    assert qg.quad(f, t64(0.0), t64(1.0)).converged
    tight = qg.quad(f, t64(0.0), t64(1.0), rtol=1e-13, on_failure="ignore")
    assert tight.status == qg.Status.ROUNDOFF
    assert abs(float(tight.value) - 3 * (1 - math.exp(-1))) <= float(tight.error)


def test_float32_gradient() -> None:
    p = torch.tensor(1.7, requires_grad=True)
    qg.quad(decay, 0.0, 1.0, (p,)).value.backward()
    assert p.grad.dtype is torch.float32
    assert relative_error(p.grad, (2.7 * math.exp(-1.7) - 1) / 1.7**2) <= 1e-6


# -- functions of one number -------------------------------------------------------------------------


def test_scalar_function_receives_floats() -> None:
    types = set()

    def scalar(x: float, p: float) -> float:
        types.update((type(x), type(p)))
        return math.exp(-p * x) if x < 0.5 else math.sin(x)

    result = qg.quad(scalar, t64(0.0), t64(1.0), (t64([1.0, 2.0]),), points=0.5, vectorized=False, rtol=1e-10)
    exact = (1 - torch.exp(t64([-0.5, -1.0]))) / t64([1.0, 2.0]) + math.cos(0.5) - math.cos(1.0)
    assert types == {float}
    assert relative_error(result.value, exact) <= 1e-10


def test_scalar_function_with_arguments_that_require_grad() -> None:
    p = leaf([1.0, 2.0])
    f = lambda x, p: torch.exp(-p * x)
    scalar = qg.quad(f, t64(0.0), t64(1.0), (p,), vectorized=False).value
    tensor = qg.quad(f, t64(0.0), t64(1.0), (p,)).value
    slopes = [torch.autograd.grad(v.sum(), p)[0] for v in (scalar, tensor)]
    assert relative_error(scalar, tensor) <= 1e-14
    assert relative_error(*slopes) <= 1e-14


def test_complex_scalar_function() -> None:
    value = qg.quad(lambda x: complex(math.cos(x), math.sin(x)), t64(0.0), t64(pi), vectorized=False).value
    assert abs(complex(value) - 2j) <= 1e-12


# -- limits and breakpoints --------------------------------------------------------------------------


def test_ragged_breakpoints_are_padded_with_nan() -> None:
    # Element i has i jumps: at 0.3, then at 0.3 and 0.7.
    points = t64([[nan, nan], [0.3, nan], [0.7, 0.3]])
    count = t64([0.0, 1.0, 2.0])
    f = lambda x, k: ((x > 0.3) & (k > 0)).double() + ((x > 0.7) & (k > 1)).double() + torch.exp(x)
    result = qg.quad(f, t64(0.0), t64(1.0), (count,), points=points, rtol=1e-12)
    assert relative_error(result.value, math.e - 1 + t64([0.0, 0.7, 1.0])) <= 1e-13
    assert result.nfev.tolist() == [26, 52, 78]


FORMS_OF_POINTS = {
    "float": 0.3,
    "list": [0.3],
    "tuple": (0.3, 0.7),
    "tensor": t64(0.3),
    "vector": t64([0.3]),
    "each its own": t64([[0.3], [0.3], [0.3]]),
    "list of tensors": [t64(0.3), t64([0.7, 0.8, 0.9])],
}


@pytest.mark.parametrize("form", FORMS_OF_POINTS)
def test_forms_of_breakpoints(form: str) -> None:
    p, points = t64([1.0, 2.0, 3.0]), FORMS_OF_POINTS[form]
    result = qg.quad(lambda x, p: ((x > 0.3) + 1) * p, t64(0.0), t64(1.0), (p,), points=points)
    assert result.value.shape == (3,)
    assert relative_error(result.value, 1.7 * t64([1.0, 2.0, 3.0])) <= 1e-14
    assert int(result.nfev.max()) <= 78


def test_breakpoints_join_the_batch() -> None:
    s = t64([0.25, 0.5, 0.75])
    result = qg.quad(lambda x, s: (x > s).double() + 1, t64(0.0), t64(1.0), (s,), points=s[:, None])
    assert torch.equal(result.nfev, torch.full_like(result.nfev, 52))
    assert relative_error(result.value, 2 - s) <= 1e-14


# -- statuses and failure ----------------------------------------------------------------------------


def test_every_status_carries_a_sentence() -> None:
    names = [s.name for s in qg.Status]
    assert names == ["CONVERGED", "MAX_NFEV", "ROUNDOFF", "NONFINITE", "DIVERGENT", "SAMPLED"]
    assert qg.Status.CONVERGED == 0
    assert all(s.message.endswith(".") and len(s.message.split()) >= 5 for s in qg.Status)


def failing(**options) -> qg.Result:
    """Integrate three peaks of which the last does not converge within its budget."""
    return qg.quad(peak, t64(0.0), t64(1.0), (t64([1.0, 0.1, 1e-5]),), rtol=1e-8, max_nfev=210, **options)


def test_warning_says_how_many_and_what_to_do() -> None:
    with pytest.warns(qg.IntegrationWarning, match="1 of 3") as caught:
        result = failing()
    assert len(caught) == 1
    assert qg.Status.MAX_NFEV.message in str(caught[0].message)
    assert result.status.tolist() == [qg.Status.CONVERGED, qg.Status.CONVERGED, qg.Status.MAX_NFEV]
    assert result.converged.tolist() == [True, True, False]
    assert int(result.nfev.max()) <= 210


def test_warning_points_to_the_caller() -> None:
    with pytest.warns(qg.IntegrationWarning) as caught:
        failing()
    assert caught[0].filename == __file__


def test_failure_can_be_raised_or_ignored() -> None:
    with pytest.raises(qg.IntegrationError, match="1 of 3"):
        failing(on_failure="raise")
    assert "1 of 3" in failing(on_failure="ignore").message


def test_message_of_success() -> None:
    result = qg.quad(torch.exp, t64(0.0), t64(1.0))
    assert result.message == qg.Status.CONVERGED.message


def test_failed_value_still_has_its_gradient() -> None:
    e = leaf([1.0, 1e-2])
    value = qg.quad(peak, t64(0.0), t64(1.0), (e,), max_nfev=26, rtol=1e-6, on_failure="ignore").value
    value.sum().backward()
    assert relative_error(e.grad[0], -0.7 / 1.49 - 0.3 / 1.09) <= 1e-6


# -- what is refused ---------------------------------------------------------------------------------


@pytest.fixture
def seeded():
    """Fix torch's global generator, which dropout draws from, for one test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("seeded")
def test_dropout_of_features_is_refused() -> None:
    dropout, w = torch.nn.Dropout(0.5), leaf([2.0**i for i in range(16)])
    f = lambda x: (torch.sin(x)[..., None] * dropout(w)).sum(-1)
    with pytest.raises(qg.IntegrandError, match="deterministic"):
        qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore")


@pytest.mark.usefixtures("seeded")
def test_dropout_at_every_node_is_refused() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 1)
    )
    f = lambda x: network.double()(x[..., None])[..., 0]
    with pytest.raises(qg.IntegrandError, match="deterministic"):
        qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore")
    network.eval()
    assert qg.quad(f, t64(0.0), t64(1.0)).converged


@pytest.mark.usefixtures("seeded")
def test_noise_is_refused() -> None:
    p = leaf(1.0)
    f = lambda x, p: p * torch.exp(x) * (1 + torch.rand(()))
    with pytest.raises(qg.IntegrandError, match="deterministic"):
        qg.quad(f, t64(0.0), t64(1.0), (p,), on_failure="ignore")


def test_replay_that_disagrees_with_search_is_refused() -> None:
    # The same at every call without gradient, so that only the replayed value shows it.
    f = lambda x, p: p * torch.exp(x) * (1.0 + 0.1 * torch.is_grad_enabled())
    with pytest.raises(qg.IntegrandError, match="deterministic"):
        qg.quad(f, t64(0.0), t64([1.0, 2.0]), (leaf(1.0),))


# -- what a call leaves alone ------------------------------------------------------------------------


def global_state() -> tuple:
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is what must not change
        np.geterr(),
        list(warnings.filters),
        logging.getLogger().level,
        list(logging.getLogger().handlers),
    )


def raising(x: Tensor) -> Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize("f", [torch.exp, lambda x: 1 / x, raising], ids=["converges", "diverges", "raises"])
def test_no_global_side_effects(f) -> None:
    before = global_state()
    try:
        qg.quad(f, t64(0.0, requires_grad=True), t64(1.0), on_failure="ignore")
    except ZeroDivisionError:
        pass
    except qg.IntegrationWarning:
        pass
    assert global_state() == before


def test_inputs_are_not_modified() -> None:
    a, b, p, s = t64([0.0, 1.0]), t64([2.0, 0.5]), t64([1.0, 2.0]), t64([[0.7, nan], [0.9, 0.6]])
    copies = [t.clone() for t in (a, b, p, s)]
    qg.quad(decay, a, b, (p,), points=s)
    for tensor, copy in zip((a, b, p, s), copies, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()) and tensor._version == 0


# -- memory ------------------------------------------------------------------------------------------


def peak_memory(rule: str, chunk_size: int | None) -> int:
    """Return the bytes that value and gradient of 2,000 integrals of one cell each need at most."""
    p = torch.linspace(0.5, 1.0, 2000, dtype=torch.float64).requires_grad_()
    with PeakMemory() as memory:
        qg.quad(decay, t64(0.0), t64(1.0), (p,), rule=rule, chunk_size=chunk_size).value.sum().backward()
    return memory.peak


def memory_and_result(batch: int, gradient: bool, shape: tuple[int, ...] = ()) -> tuple[int, int]:
    """Return the peak, and the bytes of result, plan, input and gradient."""
    upper = torch.linspace(0.1, 2.0, batch, dtype=torch.float64)
    p = torch.full(shape, 1.3, dtype=torch.float64).requires_grad_(gradient)
    with PeakMemory() as memory:
        result = qg.quad(decay, 0.0, upper, (p,), chunk_size=420)
        if gradient:
            result.value.sum().backward()
    plan = result.plan
    kept = (
        upper, result.value, result.error, result.status, result.nfev,
        plan.row, plan.start, plan.stop, plan.error, plan.kind, p, *([p.grad] if gradient else []),
    )  # fmt: skip
    return memory.peak, sum(t.numel() * t.element_size() for t in kept)


@pytest.mark.parametrize("gradient", (False, True))
def test_memory_with_chunks_grows_with_the_result_only(gradient: bool) -> None:
    (low, small), (high, large) = memory_and_result(4_000, gradient), memory_and_result(16_000, gradient)
    assert high - low <= 1.02 * (large - small)


def test_memory_with_chunks_grows_with_a_gradient_for_each_integral_as_with_a_result() -> None:
    (low, small), (high, large) = (memory_and_result(batch, True, (batch,)) for batch in (12_000, 18_000))
    assert high - low <= 1.005 * (large - small)


def test_memory_with_chunks_does_not_grow_with_the_nodes() -> None:
    # Sixty-one nodes need what fifteen do, because only outputs and plan stay.
    one_array_of_the_extra_nodes = (61 - 15) * 2000 * 8
    grown = peak_memory("gk61", chunk_size=610) - peak_memory("gk15", chunk_size=610)
    whole = peak_memory("gk61", chunk_size=None) - peak_memory("gk15", chunk_size=None)
    assert grown <= one_array_of_the_extra_nodes / 10
    assert whole >= one_array_of_the_extra_nodes


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_converges_where_its_own_spacing_would_forbid_to_split_a_cell(dtype: torch.dtype) -> None:
    start = torch.linspace(0.0, 2.0, 8).to(dtype)
    result = qg.quad(lambda x: (1 + x) ** -1.5, start, torch.tensor(float("inf"), dtype=dtype))
    exact = 2.0 / (1.0 + start.float()).sqrt()
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()


def test_a_function_of_one_number_is_not_called_where_nothing_is_integrated() -> None:
    """In Python 1 / 0 raises, and a logarithm of 0 too, where a tensor would be infinite."""

    def f(x: float, c: float) -> float:
        assert x > 0.0
        return c / x

    c = t64([2.0, 2.0, 4.0]).requires_grad_()
    ends = t64([0.0, 1.0, 0.0]), t64([0.0, 2.0, 0.0])
    value = qg.quad(f, *ends, (c,), vectorized=False).value
    value.sum().backward()
    torch.testing.assert_close(value, t64([0.0, 2.0 * math.log(2.0), 0.0]))
    torch.testing.assert_close(c.grad, t64([0.0, math.log(2.0), 0.0]))
    assert qg.quad(f, 0.0, 0.0, 1.0, vectorized=False).value == 0.0
    single = c[0].detach().requires_grad_()
    qg.quad(f, 0.0, 0.0, (single,), vectorized=False).value.backward()
    assert single.grad == 0.0
    b = t64(3.0).requires_grad_()
    (slope,) = torch.autograd.grad(qg.quad(f, 3.0, b, 6.0, vectorized=False).value, b)
    torch.testing.assert_close(slope, t64(2.0))  # f(b), read beside it
