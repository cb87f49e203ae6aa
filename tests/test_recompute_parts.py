"""With ``chunk_size`` values are replaced, and evaluated again, part by part: noise is told, one part is held."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import PeakMemory, integral, leaf, relative_error, t64
from test_recompute import SMALL, UPPER, P, Twice

# --------------------------------------------------------------------------------- noise, told part by part


def noisy(where: Callable[[Tensor, Tensor], Tensor], size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a peak at 0.3 whose values are other ones in some places where they are differentiated."""

    def f(x: Tensor, w: Tensor) -> Tensor:
        change = size * where(x, w) if torch.is_grad_enabled() else 0.0
        return w / ((x - 0.3) ** 2 + w**2) * (1.0 + change)

    return f


NOISES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[float]]] = {
    "in the first part": (lambda x, w: (w > 0.8) & (x > 0.1), [0.9] + [0.5] * 20),
    "in a middle part": (lambda x, w: w == 0.7, [0.5] * 10 + [0.7] + [0.5] * 10),
    "in the last part": (lambda x, w: w > 0.8, [0.5] * 20 + [0.9]),
    "in one of the parts of an integral": (lambda x, w: (w < 0.1) & (x > 0.9), [0.5, 1e-3, 0.5]),
    "in one of the parts of the last integral": (lambda x, w: (w < 0.1) & (x > 0.9), [0.5, 1e-3]),
    "in one of the parts of the only integral": (lambda x, w: (x > 0.2) & (x < 0.25), [1e-3]),
}


@pytest.mark.parametrize("chunk", (21, SMALL, 10**6))
@pytest.mark.parametrize(("where", "rates"), NOISES.values(), ids=NOISES)
def test_a_noisy_integrand_is_refused_with_chunk_too(
    where: Callable[[Tensor, Tensor], Tensor], rates: list[float], chunk: int
) -> None:
    w = leaf(rates)
    for size in (1e-3, -1e-3, float("nan")):
        with pytest.raises(qg.IntegrandError, match="not deterministic"):
            integral(noisy(where, size), t64(0.0), 1.0, w, chunk_size=chunk, rtol=1e-9)
    assert integral(noisy(where, 1e-14), t64(0.0), 1.0, w, chunk_size=chunk, rtol=1e-9).requires_grad


def test_values_of_which_some_have_been_replaced_are_compared_too() -> None:
    """Where f does not bear the stand-ins in a late part, all parts are evaluated again, with checkpoints."""
    hidden, p, shift = leaf(0.7), leaf(P["p"]), [0.0, 0.0]

    def f(x: Tensor, p: Tensor) -> Tensor:
        y = torch.exp(-p * x) * (1.0 + shift[0])
        if torch.is_grad_enabled() and bool((p == P["p"][-1]).any()):
            shift[0] = shift[1]
            return y + Twice.apply(x, hidden)
        return y + x * hidden**2

    value = integral(f, 0.0, 1.0, p, chunk_size=21)
    assert "Recomputed" not in type(value.grad_fn).__name__
    shift[:] = [0.0, 1e-6]
    with pytest.raises(qg.IntegrandError, match="not deterministic"):
        integral(f, 0.0, 1.0, p, chunk_size=21)


def test_values_are_those_of_the_replay() -> None:
    """Not those of the search, of which they take the memory."""
    w, options = leaf([1e-3, 2e-3, 3e-3, 4e-3]), {"chunk_size": 21, "rtol": 1e-4}
    slightly = noisy(lambda x, w: torch.ones_like(w), 1e-11)
    with torch.no_grad():
        searched = integral(slightly, t64(0.0), 1.0, w, **options)
    replayed = integral(slightly, t64(0.0), 1.0, w, **options)
    assert relative_error(replayed / searched, t64([1.0 + 1e-11] * 4)) <= 1e-14


def test_a_gradient_mode_may_replay_more_than_once() -> None:
    class Both(qg.GradientMode):
        def apply(self, primal: Any) -> Any:
            once, again = (qg.Reuse().apply(primal).value for _ in range(2))
            return type(qg.Reuse().apply(primal))(0.25 * once + 0.75 * again)

    def value(mode: qg.GradientMode, rates: list[float]) -> list[Tensor]:
        w = leaf(rates)
        f = noisy(lambda x, w: torch.zeros_like(w), 0.0)
        value = integral(f, t64(0.0), 1.0, w, chunk_size=21, rtol=1e-9, gradient=mode)
        return [value.detach(), *torch.autograd.grad(value.sum(), w)]

    for rates in ([1e-3], [0.5, 1e-3, 0.7]):
        for both, one in zip(value(Both(), rates), value(qg.Reuse(), rates), strict=True):
            assert relative_error(both, one) <= 1e-12


# ------------------------------------------------------------------------------------------------- what it holds


def graph_size(tensor: Tensor) -> int:
    """Return the number of nodes of the graph behind a tensor."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)


def test_the_graph_does_not_grow_with_the_batch() -> None:
    w, v = leaf(0.7), leaf(0.4)
    f = lambda x, p: torch.exp(-w * p * x) + torch.sin(v * x)
    sizes = [
        graph_size(integral(f, 0.0, 1.0, torch.linspace(0.5, 1.0, n), chunk_size=SMALL)) for n in (10, 500)
    ]  # fmt: skip
    assert sizes[0] == sizes[1] < 20


def test_one_part_is_held_at_a_time() -> None:
    held: weakref.WeakSet[Any] = weakref.WeakSet()
    most, w = [0], leaf(0.7)

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            held.add(ctx)
            most[0] = max(most[0], len(held))
            return torch.exp(y)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    gc.collect()
    value = integral(lambda x: Held.apply(-w * x), 0.0, UPPER, chunk_size=21)
    assert len(held) == 0 and most[0] <= 2  # the first value that f returns is kept during the call
    most[0] = 0
    value.sum().backward()
    assert len(held) == 0 and most[0] == 1


def memory_of_a_hard_integral(chunk: int | None) -> tuple[int, int]:
    """Return the most bytes that value and gradient of one integral need, and its cells."""
    w = leaf(1e-3)
    f = lambda x: sum(w / ((x - k / 50) ** 2 + w**2) for k in range(50))
    with PeakMemory() as memory:
        result = qg.quad(f, 0.0, t64(1.0), rtol=1e-9, chunk_size=chunk)
        result.value.backward()
    return memory.peak, len(result.plan)


def test_one_integral_with_many_cells_does_not_hold_them_all() -> None:
    (chunked, cells), (whole, _) = memory_of_a_hard_integral(84), memory_of_a_hard_integral(None)
    one_array_of_all_nodes = 21 * 8 * cells
    assert chunked <= 5 * one_array_of_all_nodes
    assert whole >= 50 * one_array_of_all_nodes
