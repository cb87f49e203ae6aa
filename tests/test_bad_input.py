"""Every row of the design's table of bad and odd input: what happens, and what the message says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import Recorder, leaf, relative_error, t64

EULER = torch.e


def exponential(x: Tensor) -> Tensor:
    return torch.exp(x)


def weighted(x: Tensor, w: Tensor) -> Tensor:
    return w * torch.exp(x)


# -- limits ------------------------------------------------------------------------------------------


def test_equal_limits_give_zero_without_search() -> None:
    a, b = leaf(0.5), leaf(0.5)
    result = qg.quad(exponential, a, b)
    result.value.backward()
    assert float(result.value.detach()) == 0.0
    assert int(result.nfev) == 0
    assert result.converged
    assert relative_error(b.grad, EULER**0.5) <= 1e-14
    assert relative_error(a.grad, -(EULER**0.5)) <= 1e-14


def test_equal_limits_beside_others_in_a_batch() -> None:
    b = leaf([0.0, 1.0])
    result = qg.quad(exponential, t64(0.0), b)
    result.value.sum().backward()
    assert float(result.value[0].detach()) == 0.0
    assert result.nfev.tolist() == [0, 26]
    assert relative_error(b.grad, t64([1.0, EULER])) <= 1e-14


def test_limits_in_descending_order_give_minus_the_integral() -> None:
    up, down = (qg.quad(exponential, *map(t64, limits)) for limits in ((0.0, 1.0), (1.0, 0.0)))
    assert float(down.value) == -float(up.value)
    assert float(down.error) == float(up.error)
    assert int(down.nfev) == int(up.nfev)


def test_infinite_limits_of_all_kinds_in_one_batch() -> None:
    a, b = t64([0.0, -inf, -inf, 1.0, inf]), t64([inf, inf, 0.0, 2.0, 0.0])
    result = qg.quad(lambda x: torch.exp(-(x**2)), a, b, rtol=1e-10)
    exact = torch.pi**0.5 / 2 * (torch.erf(b) - torch.erf(a))
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()


@pytest.mark.parametrize("name", ("a", "b"))
@pytest.mark.parametrize(
    ("limit", "where"), [(nan, None), (t64([0.5, nan, nan]), "1"), (t64([[0.5], [nan]]), "1, 0")]
)
def test_nan_limit_is_named_with_its_first_index(name: str, limit: float | Tensor, where: str | None) -> None:
    limits = {"a": t64(0.0), "b": t64(1.0), name: limit}
    with pytest.raises(ValueError, match=rf"\b{name}\b.*NaN") as caught:
        qg.quad(exponential, **limits)
    assert where is None or re.search(rf"[(\[]{where},?[)\]]", str(caught.value))


@pytest.mark.parametrize("name", ("a", "b"))
def test_complex_limits_are_refused(name: str) -> None:
    limits = {"a": t64(0.0), "b": t64(1.0), name: torch.tensor(1j)}
    with pytest.raises(TypeError, match=rf"\b{name}\b.*complex.*order"):
        qg.quad(exponential, **limits)


@pytest.mark.parametrize(
    "limits", [(0, 2), (torch.tensor(0), torch.tensor(2)), (torch.tensor(0, dtype=torch.int16), 2)]
)
def test_integer_limits_become_the_working_dtype(limits: tuple) -> None:
    narrow = qg.quad(exponential, *limits)
    wide = qg.quad(weighted, *limits, args=(t64(1.0),))
    assert narrow.value.dtype is torch.get_default_dtype()
    assert wide.value.dtype is torch.float64
    assert relative_error(narrow.value, EULER**2 - 1) <= 1e-6
    assert relative_error(wide.value, EULER**2 - 1) <= 1e-14


def test_shapes_that_do_not_broadcast_are_all_shown() -> None:
    with pytest.raises(ValueError, match="broadcast") as caught:
        qg.quad(weighted, torch.zeros(17), torch.ones(1, 19), args=(torch.ones(23, 1, 1),))
    assert all(re.search(rf"\b{size}\b", str(caught.value)) for size in (17, 19, 23))


# -- breakpoints -------------------------------------------------------------------------------------

ODD_POINTS = {
    "outside": [3.0, -7.0],
    "at the limits": [0.0, 2.0],
    "equal": [0.7, 0.7, 0.7],
    "unsorted": [1.5, 0.3, 0.9],
    "infinite": [inf, -inf],
    "not a number": [nan, 0.7],
}


@pytest.mark.parametrize("kind", ODD_POINTS)
@pytest.mark.parametrize("limits", [(0.0, 2.0), (2.0, 0.0)])
def test_odd_breakpoints_are_never_an_error(kind: str, limits: tuple[float, float]) -> None:
    plain = qg.quad(exponential, *map(t64, limits), rtol=1e-10)
    odd = qg.quad(exponential, *map(t64, limits), rtol=1e-10, points=t64(ODD_POINTS[kind]))
    assert odd.converged
    assert abs(float(odd.value - plain.value)) <= float(odd.error + plain.error)


@pytest.mark.parametrize("kind", ("outside", "at the limits", "infinite"))
def test_breakpoints_outside_cost_nothing(kind: str) -> None:
    result = qg.quad(exponential, t64(0.0), t64(2.0), points=t64(ODD_POINTS[kind]))
    assert int(result.nfev) == 26


def test_order_of_breakpoints_does_not_matter() -> None:
    points = t64([1.5, 0.3, 0.9])
    one = qg.quad(exponential, t64(0.0), t64(2.0), points=points)
    other = qg.quad(exponential, t64(0.0), t64(2.0), points=points.sort().values)
    assert torch.equal(one.value, other.value)


# -- what f returns ----------------------------------------------------------------------------------


def check_shape_message(message: str) -> None:
    assert "shape" in message
    assert "args" in message
    assert "element" in message


@pytest.mark.parametrize(
    "f", [lambda x: x.sum(), lambda x: x[..., 0], lambda x: torch.ones(4, dtype=x.dtype), lambda x: t64(1.0)],
    ids=["sum", "slice", "constant vector", "constant"],
)  # fmt: skip
def test_wrong_output_shape_names_both_shapes_and_the_cause(f) -> None:
    with pytest.raises(qg.IntegrandError, match=r"\(1, 1\)") as caught:
        qg.quad(f, t64([0.0, 0.5, 0.6]), t64(1.0))
    check_shape_message(str(caught.value))


@pytest.mark.parametrize("batch", (2, 5, 21, 42))
def test_closed_over_batch_tensor_is_refused_whatever_its_length(batch: int) -> None:
    w = torch.linspace(0.0, 1.0, batch, dtype=torch.float64)
    with pytest.raises(qg.IntegrandError, match=rf"\(1, {batch}\)") as caught:
        qg.quad(lambda x: w * torch.exp(x), t64(0.0), torch.ones(batch, dtype=torch.float64))
    check_shape_message(str(caught.value))


def test_closed_over_tensor_of_a_batch_of_two_dimensions_is_refused() -> None:
    w = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(qg.IntegrandError, match="args"):
        qg.quad(lambda x: w * torch.exp(x), t64(0.0), torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.ones((1,)), "bridge.wrap"),
        (None, "return missing"),
        ((torch.ones(1),), "torch.stack"),
        ("text", r"a constant is a float: float\("),
    ],
    ids=lambda v: type(v).__name__,
)
def test_output_that_is_no_tensor_points_to_the_remedies(value: object, says: str) -> None:
    with pytest.raises(qg.IntegrandError, match=says) as caught:
        qg.quad(lambda x: value, t64(0.0), t64(1.0))
    assert type(value).__name__ in str(caught.value)


class OwnError(Exception):
    """An exception of the caller's own."""


@pytest.mark.parametrize("late", (False, True), ids=["in the probe", "in search"])
def test_exception_of_f_passes_with_a_note(late: bool) -> None:
    own = OwnError("mine")

    def f(x: Tensor, w: Tensor) -> Tensor:
        if x.numel() > 1 or not late:
            raise own
        return w * x

    with pytest.raises(OwnError) as caught:
        qg.quad(f, t64(2.0), t64(2.5), args=(t64([1.0, 2.0, 3.0]),))
    assert caught.value is own
    (note,) = own.__notes__
    assert "shape" in note
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", note)]
    assert any(2.0 <= n <= 2.5 for n in numbers)  # the interval


# -- not finite --------------------------------------------------------------------------------------


def test_nan_at_an_isolated_node_is_refined() -> None:
    # The rule's middle node is 0.5: 0/0 there. Summed as zero the first round would be 7 % off.
    f = Recorder(lambda x: torch.sin(x - 0.5) / (x - 0.5))
    result = qg.quad(f, t64(0.0), t64(1.0), rtol=1e-10)
    assert (f.nodes == 0.5).any()
    assert result.converged
    assert abs(float(result.value) - 0.986214836086133) <= float(result.error)  # 2 Si(1/2)


@pytest.mark.parametrize("low", (0.0, 0.25))
def test_infinite_at_an_isolated_node_next_to_a_singular_end(low: float) -> None:
    # In float32 nodes near 1 round to 1, where the integrand is infinite.
    f = Recorder(lambda x: (1 - x) ** -0.5)
    result = qg.quad(f, torch.tensor(low), torch.tensor(1.0), rtol=1e-4, on_failure="ignore")
    error = abs(float(result.value) - 2 * (1 - low) ** 0.5)
    assert bool(result.converged) <= (error <= float(result.error))
    assert error <= 1e-2


@pytest.mark.parametrize("low", (0.0, 0.4, 0.9))
def test_nan_on_a_region_is_a_status_and_names_an_x(low: float) -> None:
    f = lambda x: torch.where((x > low) & (x < low + 0.1), nan, torch.exp(x))
    with pytest.warns(qg.IntegrationWarning) as caught:
        result = qg.quad(f, t64(0.0), t64(1.0))
    assert result.status == qg.Status.NONFINITE
    text = str(caught[0].message)
    places = [float(n) for n in re.findall(r"\bx\W{1,4}(\d+\.?\d*(?:e-?\d+)?)", text)]
    assert places and all(low < place < low + 0.1 for place in places)


def test_infinity_on_a_region_is_a_status() -> None:
    with pytest.warns(qg.IntegrationWarning, match="NONFINITE|NaN|infinite"):
        result = qg.quad(lambda x: torch.where(x > 0.7, inf, x), t64(0.0), t64(1.0))
    assert result.status == qg.Status.NONFINITE


def test_nan_in_one_element_leaves_the_others_alone() -> None:
    shift = t64([0.0, 0.5, -1.0])
    result = qg.quad(lambda x, s: torch.sqrt(x - s), t64(0.0), t64(1.0), (shift,), rtol=1e-8, on_failure="ignore")
    assert result.status.tolist() == [qg.Status.CONVERGED, qg.Status.NONFINITE, qg.Status.CONVERGED]
    assert relative_error(result.value[::2], t64([2 / 3, (2**1.5 - 1) / 1.5])) <= 1e-8


# -- gradients that are lost -------------------------------------------------------------------------

SEVERED = {
    "item": lambda x, p: p.sum().item() * torch.exp(x),
    "detach": lambda x, p: p.detach() * torch.exp(x),
    "numpy": lambda x, p: torch.from_numpy(np.exp(p.detach().numpy() * x.detach().numpy())),
}


@pytest.mark.parametrize("kind", SEVERED)
def test_severed_gradient_is_warned_about(kind: str) -> None:
    with pytest.warns(qg.SeveredGradientWarning, match="leaves torch"):
        result = qg.quad(SEVERED[kind], t64(0.0), t64(1.0), (leaf(1.0),))
    assert not result.value.requires_grad
    assert relative_error(result.value, EULER - 1) <= 1e-12


def test_no_warning_where_no_gradient_is_wanted() -> None:
    p = leaf(1.0)
    with torch.no_grad():
        assert relative_error(qg.quad(SEVERED["item"], t64(0.0), t64(1.0), (p,)).value, EULER - 1) <= 1e-12


# -- tolerances and options --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_tolerance_below_rounding_stops_early_with_the_best_value(dtype: torch.dtype) -> None:
    runge = Recorder(lambda x: 1 / (1 + 25 * x**2))
    limits = torch.tensor([-1.0, 1.0], dtype=dtype)
    with pytest.warns(qg.IntegrationWarning, match="(?i)round"):
        result = qg.quad(runge, limits[0], limits[1], rtol=1e-18)
    assert result.status == qg.Status.ROUNDOFF
    assert relative_error(result.value, 0.549360306778006) <= 4 * torch.finfo(dtype).eps
    assert runge.calls <= 20
    assert int(result.nfev) <= 2000


@pytest.mark.parametrize("tolerances", [{"rtol": 0.0}, {"rtol": 0.0, "atol": 0.0}])
def test_tolerances_both_zero_are_refused(tolerances: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rtol.*atol.*0"):
        qg.quad(exponential, t64(0.0), t64(1.0), **tolerances)


@pytest.mark.parametrize("name", ("rtol", "atol"))
@pytest.mark.parametrize("value", (-1e-3, nan, inf))
def test_senseless_tolerances_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        qg.quad(exponential, t64(0.0), t64(1.0), **{name: value})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rule": "gk22"}, "gk22.*gk21"),
        ({"on_failure": "explode"}, "explode.*warn"),
        ({"max_nfev": 20}, "max_nfev.*20"),
        ({"limit_gradient": "sometimes"}, "limit_gradient.*sometimes"),
        ({"chunk_size": 0}, "chunk_size.*0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_senseless_options_are_refused_by_name(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qg.quad(exponential, t64(0.0), t64(1.0), **option)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x, c: c * x * math.exp(x), "vectorized=False"),
        (lambda x, c: x if x > 0.5 else 0 * x, "torch.where decides for each"),
        (lambda x, c: c[0] * x + c[1], "quadgrad.element"),
    ],
)
def test_an_error_of_f_itself_gets_a_remedy(f: Callable[..., Tensor], says: str) -> None:
    with pytest.raises(Exception) as caught:
        qg.quad(f, 0.0, 1.0, (t64([1.0, 2.0]),))
    (note,) = caught.value.__notes__
    assert says in note
