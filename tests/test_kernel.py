"""The compiled kernel makes the decisions that the tensor operations make: the same plans, counts and statuses."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.problems import PROBLEMS, Problem
from helpers import t64
from quadgrad._core.search.kernel import library, opening
from quadgrad._core.search.kernel.library import load

INF = float("inf")

ROUNDED = {("x^-0.9 log(1/x)", 1e-12), ("x^-1.01 from 1", 1e-12), ("sin(x)/x", 1e-12)}
"""Where two orders of summation decide differently: the columns are equal to rounding, or nothing converges."""


def in_order(plan: qg.Plan) -> tuple[Tensor, ...]:
    """Return the cells in ascending order: row, start, stop and kind."""
    return tuple(t[plan.order] for t in (plan.row, plan.start, plan.stop, plan.kind))


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[qg.Result, qg.Result]]:
    """Return what calls quad with the kernel, then without it."""
    if load() is None:
        pytest.skip("the package was installed without its compiled kernel")

    def call(*args: object, **options: object) -> tuple[qg.Result, qg.Result]:
        run = partial(qg.quad, *args, on_failure="ignore", **options)
        compiled = run()
        with monkeypatch.context() as patch:
            patch.setattr(opening, "load", lambda: None)
            return compiled, run()

    return call


def assert_same(compiled: qg.Result, plain: qg.Result) -> None:
    """Values and geometric means to what rounding allows, everything else exactly."""
    for one, other in zip(in_order(compiled.plan), in_order(plain.plan), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-15, atol=0.0)
    assert torch.equal(compiled.status, plain.status)
    assert torch.equal(compiled.nfev, plain.nfev)
    known = plain.error.isfinite()
    assert torch.equal(known, compiled.error.isfinite())
    eps, event = torch.finfo(plain.value.dtype).eps, plain.value.shape[plain.error.ndim :].numel()
    apart, size = (t.abs().reshape(-1, event)[known.flatten()] for t in (compiled.value - plain.value, plain.value))
    assert (apart <= 0.1 * plain.error[known][:, None] + 8 * eps * size).all()


@pytest.mark.parametrize("limits", ((0.1, 0.7), (-3e5, 3e5 + 0.1), (1e-9, 1e3)))
def test_nodes_are_those_of_replay(limits: tuple[float, float]) -> None:
    # To the last bit: what replay finds is compared with what search has found.
    if load() is None:
        pytest.skip("the package was installed without its compiled kernel")
    seen: list[Tensor] = []

    def f(x: Tensor, c: Tensor) -> Tensor:
        seen.append(x.flatten())
        return 1.0 / (1.0 + ((x - c) * 1e2) ** 2)

    c = torch.linspace(*limits, 300, dtype=torch.float64)
    plan = qg.quad(f, *(t64(end) for end in limits), (c,), rtol=1e-6, on_failure="ignore").plan
    called = torch.cat(seen).unique()
    nodes = plan.nodes(*(t64(end) for end in limits))[:, plan.kind == 0].flatten()
    assert torch.isin(nodes, called).all()


def test_it_is_there_where_there_is_a_compiler() -> None:
    # An installation without one is allowed, but not one that silently failed to build.
    assert load() is not None or not any(map(shutil.which, ("cc", "gcc", "clang")))


@pytest.mark.parametrize("rtol", (1e-4, 1e-8, 1e-12))
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_problems_of_the_table(problem: Problem, rtol: float, both) -> None:
    points = t64(list(problem.points)) if problem.points else None
    compiled, plain = both(problem.f, t64(problem.a), t64(problem.b), points=points, rtol=rtol, atol=rtol)
    if (problem.name, rtol) in ROUNDED:
        # Where both errors are the tolerance, nearly, rounding decides which one is below it.
        tolerance = rtol * plain.value.abs().clamp_min(1.0)
        near = all(0.5 <= float(result.error / tolerance) <= 2.0 for result in (compiled, plain))
        assert compiled.converged == plain.converged or near
    else:
        assert_same(compiled, plain)


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def random_peaks(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    c, decades = torch.rand((2, n), generator=generator, dtype=torch.float64)
    return c, 10 ** (4 * decades - 5)


def test_a_batch_that_threads_share(both) -> None:
    # Among so many some are reopened after all their cells had settled.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(*both(peak, 0.0, 1.0, random_peaks(5_000), rtol=1e-8))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("chunk_size", (1, 7, 1_000))
def test_chunks(chunk_size: int, both) -> None:
    assert_same(*both(peak, 0.0, 1.0, random_peaks(40), rtol=1e-8, chunk_size=chunk_size))


@pytest.mark.parametrize("rule", ("gk15", "gk61", "cc11", "cc255"))
def test_rules(rule: str, both) -> None:
    c, e = random_peaks(40)
    assert_same(*both(peak, 0.0, 1.0, (c, e), rtol=1e-8, rule=rule))
    f = lambda x, c, decades: peak(x, c - 8.0, 10.0**decades)  # no argument is between the limits: see ADR 57
    assert_same(*both(f, 0.0, 1.0, (c + 8.0, e.log10()), rtol=1e-8, rule=rule))


@pytest.mark.parametrize("max_nfev", (26, 100, 1_000))
def test_budgets(max_nfev: int, both) -> None:
    assert_same(*both(peak, 0.0, 1.0, random_peaks(40), rtol=1e-8, max_nfev=max_nfev))


def test_kinds_of_limits_in_one_batch(both) -> None:
    lower, upper = t64([0.0, -INF, -INF, 0.0, 2.0, 1.0]), t64([INF, 0.0, INF, 3.0, -1.0, 1.0])
    f = lambda x, s: torch.exp(-((x - s) ** 2)) / (1.0 + x * x)
    assert_same(*both(f, lower, upper, (t64([0.3, -2.0, 1e-3, 1.0, 0.0, 0.0]),), rtol=1e-10))


def test_singular_ends_and_ragged_breakpoints(both) -> None:
    points = t64([[0.25, 0.75], [0.5, float("nan")], [2.0, 0.5]])
    f = lambda x, p: (x - p).abs() ** -0.4 + x.log() + (1.0 - x) ** -0.3
    assert_same(*both(f, 0.0, 1.0, (t64([0.25, 0.5, 0.5]),), points=points, rtol=1e-9))


def test_singular_ends_at_infinity(both) -> None:
    f = lambda x, p: x**-p
    assert_same(*both(f, 1.0, INF, (t64([1.1, 1.5, 2.0, 1.05]),), rtol=1e-9))


def test_not_finite_on_a_region(both) -> None:
    f = lambda x, p: torch.where(x > p, torch.nan, x)
    compiled, plain = both(f, 0.0, 1.0, (t64([0.5, 2.0]),))
    assert_same(compiled, plain)
    assert compiled.status.tolist() == [qg.Status.NONFINITE, qg.Status.CONVERGED]


def test_a_warm_start(both) -> None:
    c, e = random_peaks(40)
    plan = qg.quad(peak, 0.0, 1.0, (c, e), rtol=1e-4).plan
    assert_same(*both(peak, 0.0, 1.0, (c + 1e-3, e), rtol=1e-9, plan=plan))
    f = lambda x, p: x**-p
    plan = qg.quad(f, 0.0, 1.0, (t64([0.5, 0.9]),), rtol=1e-4).plan
    assert_same(*both(f, 0.0, 1.0, (t64([0.6, 0.8]),), rtol=1e-9, plan=plan))


def test_single_precision_is_summed_in_double(both) -> None:
    c, e = (t.to(torch.float32) for t in random_peaks(200))
    compiled, plain = both(peak, 0.0, 1.0, (c, e), rtol=1e-3)
    assert compiled.value.dtype == compiled.error.dtype == torch.float32
    assert compiled.converged.sum() >= plain.converged.sum()
    agree = (compiled.value - plain.value).abs() <= plain.error + compiled.error
    assert (agree | ~(compiled.converged & plain.converged)).all()


def test_a_function_of_one_number(both) -> None:
    f = lambda x, a: 0.0 if x < a else 1.0 / (1.0 + x)
    assert_same(*both(f, 0.0, 4.0, (t64([0.5, 1.0]),), points=t64([[0.5], [1.0]]), vectorized=False))


def test_what_f_returns_need_not_be_contiguous(both) -> None:
    f = lambda x, c: torch.ones_like(c).expand(x.shape)
    assert_same(*both(f, 0.0, t64([1.0, 2.0, 3.0]), (t64([1.0, 1.0, 1.0]),)))
    conjugate = lambda x: torch.view_as_complex(torch.stack((x, x), -1)).conj().imag
    assert_same(*both(conjugate, 0.0, t64(1.0)))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_peaks_that_are_closed_in_on(both, dtype: torch.dtype) -> None:
    """Beside the end of the piece, at it, at a middle, two of one height: wherever the spot is looked for."""
    centre = torch.tensor([0.0, 1e-3, 0.02, 0.25, 0.5, 0.61, 0.97, 1.0], dtype=dtype)
    two = lambda x, c: 1.0 / ((x - c) ** 2 + 1e-5) + 1.0 / ((x - 1.0 + c) ** 2 + 1e-5)
    for g in (two, lambda x, c: torch.exp(-1e5 * (x - c) ** 2) + 1.0, lambda x, c: torch.exp(-1e3 * (x - c).abs())):
        f = lambda x, c, g=g: g(x, c - 8.0)  # where the argument itself is not between the limits, and no witness
        compiled, plain = both(f, 0.0, 1.0, (centre + 8.0,), rtol=1e-9 if dtype == torch.float64 else 1e-3)
        if dtype == torch.float64:
            assert_same(compiled, plain)
        assert (compiled.value - plain.value).abs().le(compiled.error + plain.error).all()


def test_memory_is_taken_over_from_search_to_search(both) -> None:
    def again(x: Tensor, c: Tensor, e: Tensor) -> Tensor:  # a search inside, of another size
        inner = qg.quad(peak, 0.0, 1.0, random_peaks(3), rtol=1e-3, on_failure="ignore").value
        return peak(x, c, e) * (inner / inner)[0]

    c, e = random_peaks(50)
    with torch.inference_mode():
        qg.quad(peak, 0.0, 1.0, (c, e))
    assert_same(*both(peak, 0.0, 1.0, (c[:20], e[:20])))
    compiled, plain = both(again, 0.0, 1.0, (c, e), rtol=1e-4)
    assert_same(compiled, plain)
    with pytest.raises(ZeroDivisionError):
        qg.quad(lambda x: 1 / 0, 0.0, 1.0)
    assert_same(*both(peak, 0.0, 1.0, (c, e)))


def test_an_empty_batch(both) -> None:
    compiled, plain = both(torch.exp, 0.0, torch.zeros(0, dtype=torch.float64))
    assert compiled.value.shape == plain.value.shape == (0,)


def test_logarithmic_nodes_that_are_given_up_again(both) -> None:
    # What was known at the cell's edges still tells of a step between an edge and the outermost node.
    assert_same(*both(lambda x: (4.0 * x).to(torch.int64), 0.0, t64([1.0, 2.0])))


def test_a_limit_that_is_lazily_negated(both) -> None:
    limit = torch.complex(t64([2.0]), t64([-3.0])).conj().imag
    assert limit.is_neg()
    compiled, plain = both(lambda x: x**2, 0.0, limit)
    assert_same(compiled, plain)
    assert compiled.value.allclose(t64([9.0]))


def test_complex_values_where_the_first_was_real(both) -> None:
    power = lambda x: (x - 0.3) ** 0.5  # of Python's numbers: complex below 0.3
    compiled, plain = both(power, 0.0, t64(1.0), vectorized=False)
    assert_same(compiled, plain)
    assert compiled.value.imag > 0.1


def test_values_that_are_not_in_memory(both) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        both(lambda x: torch.empty_like(x, device="meta"), 0.0, t64(1.0))


def test_a_warm_start_where_new_tensors_are_elsewhere(both) -> None:
    limit = t64(1.0)
    plan = qg.quad(lambda x: x**-0.5, 0.0, limit).plan
    with torch.device("meta"):
        assert_same(*both(lambda x: x**-0.5, 0.0, limit, plan=plan))


@pytest.mark.parametrize("size", (1e-60, 1e60))
def test_values_of_a_wider_dtype_than_the_nodes(size: float, both) -> None:
    f = lambda x: size * (x.double() - 0.3).abs().sqrt()
    compiled, plain = both(f, 0.0, torch.tensor([1.0, 2.0]))
    assert compiled.error.dtype == compiled.plan.error.dtype == plain.error.dtype == torch.float64
    exact = size / 1.5 * (0.3**1.5 + (t64([1.0, 2.0]) - 0.3) ** 1.5)
    assert compiled.converged.all()
    assert ((compiled.value - exact).abs() <= compiled.error).all()


def test_a_budget_without_bounds(both) -> None:
    assert_same(*both(peak, 0.0, 1.0, random_peaks(5), max_nfev=float("inf")))


@pytest.mark.parametrize("budget", (100, 250, 400))
def test_budgets_that_are_too_small_for_what_a_pole_asks_for(budget: int, both) -> None:
    assert_same(*both(peak, 0.0, 1.0, random_peaks(200), max_nfev=budget))


def test_arguments_that_the_kernel_spreads_and_others(both) -> None:
    """Plain numbers of eight bytes are spread over cells by the kernel, everything else by torch."""
    c, e = random_peaks(40)
    strided = c[:, None].expand(40, 2)[:, 0]
    kinds = (
        (100 * c).round().long(),
        e,
        e.float(),
        torch.complex(c, e),
        qg.element(torch.stack((c, e), -1), ndim=1),
    )

    def f(x: Tensor, whole: Tensor, e: Tensor, *others: Tensor) -> Tensor:
        single, complex_, pair, strided = others
        assert whole.dtype == torch.int64 and single.dtype == torch.float32
        assert torch.equal(pair[..., 1].expand_as(x), e.expand_as(x)) and torch.equal(complex_.real, strided)
        return peak(x, whole / 100, e) + 0.0 * single

    assert_same(*both(f, 0.0, 1.0, (*kinds, strided)))


def test_what_f_is_given_is_its_own(both) -> None:
    """Neither the nodes nor the arguments of one call are overwritten by the next."""
    c, e = random_peaks(300)
    kept: list[tuple[Tensor, ...]] = []

    def f(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        kept.append((x, c, e, *(t.clone() for t in (x, c, e))))
        return peak(x, c, e)

    assert_same(*both(f, 0.0, 1.0, (c, e)))
    assert all(torch.equal(now, then) for call in kept for now, then in zip(call[:3], call[3:], strict=True))


def vector(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    # All converge alike: where one were smooth to rounding, rounding would tell how the others are refined.
    return torch.stack((peak(x, c, e), -2.0 * peak(x, c, e), (3.0 + x) * peak(x, c, e)), -1)


def rotated(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return peak(x, c, e) * torch.exp(5j * x)


def matrix(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return torch.stack((vector(x, c, e), rotated(x, c, e)[..., None] * torch.ones(3)), -2)


@pytest.mark.parametrize("options", ({}, {"chunk_size": 9}, {"max_nfev": 300}, {"rule": "gk15"}), ids=str)
@pytest.mark.parametrize("f", (vector, rotated, matrix))
def test_events_and_complex_values(f: Callable[..., Tensor], options: dict[str, int | str], both) -> None:
    assert_same(*both(f, 0.0, 1.0, random_peaks(40), rtol=1e-8, **options))


@pytest.mark.parametrize("f", (vector, rotated, matrix))
def test_events_and_complex_values_shared_by_threads_and_from_a_plan(f: Callable[..., Tensor], both) -> None:
    # Among so many some are reopened after all their cells had settled.
    c, e = random_peaks(600)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compiled, plain = both(f, 0.0, 1.0, (c, e), rtol=1e-7)
        assert_same(compiled, plain)
        assert_same(*both(f, 0.0, 1.0, (c + 1e-3, e), rtol=1e-8, plan=compiled.plan))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("f", (vector, rotated, matrix))
def test_events_and_complex_values_on_infinite_pieces(f: Callable[..., Tensor], both) -> None:
    lower, upper = t64([0.0, -INF, -INF, 0.0, 2.0, 1.0]), t64([INF, 0.0, INF, 3.0, -1.0, 1.0])
    decaying = lambda x, c, e: f(x, c, e) * torch.exp(-x.abs()).reshape(x.shape + (1,) * (f(x, c, e).ndim - x.ndim))
    assert_same(*both(decaying, lower, upper, random_peaks(6), rtol=1e-8))


def test_single_integrals_of_any_kind_have_no_probe(both) -> None:
    """Their first call of f is that on the first cell, whatever it returns and wherever the limits are."""
    for f in (vector, rotated, matrix):
        for a, b in ((0.0, 1.0), (0.0, INF), (-INF, INF)):
            calls: list[torch.Size] = []

            def g(x: Tensor, f=f, calls=calls) -> Tensor:
                calls.append(x.shape)
                y = f(x, t64(0.3), t64(0.01))
                return y * torch.exp(-x * x).reshape(x.shape + (1,) * (y.ndim - x.ndim))

            qg.quad(g, t64(a), b)
            assert calls[0] == (26, 1)
            assert_same(*both(lambda x: g(x), t64(a), b))


def test_an_event_without_components(both) -> None:
    compiled, plain = both(lambda x: x[..., None][..., :0], 0.0, t64([1.0, 2.0]))
    assert compiled.value.shape == plain.value.shape == (2, 0)


@pytest.mark.parametrize("b", [1.0, float("inf"), [1.0, 2.0]], ids=str)
def test_a_search_keeps_its_rule_where_the_cache_does_not(b: float | list[float], monkeypatch) -> None:
    """As where two threads fill the cache at once: it keeps what one of them made."""
    make, made = library._rule_numbers.__wrapped__, []

    def uncached(rule: object) -> object:
        numbers = make(rule)
        made.append(weakref.ref(numbers))
        return numbers

    def f(x: Tensor) -> Tensor:
        assert not made or made[-1]() is not None
        return torch.exp(-100.0 * x)

    monkeypatch.setattr(library, "_rule_numbers", uncached)
    assert qg.quad(f, 0.0, t64(b)).converged.all() and made
