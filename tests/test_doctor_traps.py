"""Traps: programs whose gradient is lost or wrong in a way that is easy to miss. None of them may be called OK."""

from __future__ import annotations

import functools
import itertools
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quadgrad as qg
from helpers import leaf, t64

START = [0.8, -0.4, 1.3]
TABLE = t64([0.3, 1.7, -0.6])
Trap = Callable[[Tensor], Callable[[Tensor], Any]]


def hidden_by_the_sum(x: Tensor) -> Any:
    return lambda b: torch.softmax(3 * b.detach(), 0) + 0.1 * b


def comparison(x: Tensor) -> Any:
    return lambda b: (b > 0).sum() + b.sum()


def table(x: Tensor) -> Any:
    return lambda b: TABLE[b.argmax()] + b.sum()


def rounded(x: Tensor) -> Any:
    return lambda b: torch.round(3 * b).sum() + b.sum()


def cast(x: Tensor) -> Any:
    return lambda b: (4 * b).long().sum() + b.sum()


def memoised(x: Tensor) -> Any:
    cache: dict[str, Tensor] = {}

    def f(b: Tensor) -> Tensor:
        if "w" not in cache:
            cache["w"] = (b**2).detach()
        return (cache["w"] * b).sum()

    return f


def cached_by_the_tensor(x: Tensor) -> Any:
    square = functools.lru_cache(lambda b: (b**2).detach())
    return lambda b: (square(b) * b).sum()


def cached_by_the_number(x: Tensor) -> Any:
    square = functools.lru_cache(lambda v: v**2)
    return lambda b: square(b[0].item()) * b.sum()


def not_among_the_inputs(x: Tensor) -> Any:
    h = leaf([1.0, 2.0, 3.0])
    return lambda b: (h.detach() * b).sum()


def in_a_thread(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(b.detach() ** 2))
        thread.start()
        thread.join()
        return (found[0] * b).sum()

    return f


def in_a_hook(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        y = b.exp()
        y.register_hook(lambda g: 0.5 * g)
        return y.sum()

    return f


def in_a_module_hook(x: Tensor) -> Any:
    layer = nn.Linear(3, 3).double()
    layer.register_full_backward_hook(lambda module, into, out_of: (2.0 * into[0],))
    return lambda b: layer(b).exp().sum()


def through_a_numpy_alias(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        b.detach().numpy()[:] *= 2.0
        return (b**2).sum()

    return f


def array_behind_the_leaf(x: Tensor) -> Any:
    array = np.array(START)
    shared = torch.from_numpy(array).requires_grad_()
    return lambda b: (shared * float(array[0]) + b).sum()


def data(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        b.data.clamp_(min=0.0)
        return (b**2).sum() + b.sum()

    return f


def written_to_data(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        buffer = torch.zeros(3, dtype=torch.float64)
        buffer.data.copy_(b**2)
        return (buffer * b).sum()

    return f


def parameter(x: Tensor) -> Any:
    return lambda b: (nn.Parameter(2 * b) ** 2).sum() + b.sum()


def iterator(x: Tensor) -> Any:
    numbers = iter(itertools.count(1.0))
    return lambda b: next(numbers) * b.sum()


def unknown_randomness(x: Tensor) -> Any:
    return lambda b: float(int.from_bytes(os.urandom(4), "big")) * b.sum()


def counter(x: Tensor) -> Any:
    count = 0

    def f(b: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return (b**count).sum()

    return f


def branch(x: Tensor) -> Any:
    return lambda b: (2.0 if b.sum().item() > 1.0 else 1.0) * b.sum()


def decided_in_numpy(x: Tensor) -> Any:
    return lambda b: torch.from_numpy((b.detach().numpy() > 0).astype(float)).sum() + b.sum()


def decided_by_a_float(x: Tensor) -> Any:
    return lambda b: (
        (2.0 if float(b.detach().sum()) > 1.0 else 1.0) * torch.ones(3, dtype=torch.float64).sum() + b.sum()
    )


def torchscript(x: Tensor) -> Any:
    compiled = torch.jit.script(scripted)
    return lambda b: compiled(b)


def scripted(b: Tensor) -> Tensor:
    return (b.detach() * b).sum()


def drawn(x: Tensor) -> Any:
    return lambda b: torch.distributions.Normal(b, 1.0).sample().sum() * b.sum()


def thrown(x: Tensor) -> Any:
    return lambda b: torch.bernoulli(torch.sigmoid(b)).sum() * b.sum()


def straight_through(x: Tensor) -> Any:
    return lambda b: ((b.round() - b).detach() + b).sum()


def rewrapped(x: Tensor) -> Any:
    return lambda b: (
        torch.tensor([v.item() ** 2 for v in b], dtype=torch.float64, requires_grad=True).sum() + b.sum()
    )


def inner_gradient(x: Tensor) -> Any:
    return lambda b: torch.autograd.grad((b**3).sum(), b, retain_graph=True)[0].sum() + b.sum()


def the_grad_of_a_leaf(x: Tensor) -> Any:
    def f(b: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((b**3).sum(), b)
        b.grad = gradient
        return (b.grad * b).sum()

    return f


def through_text(x: Tensor) -> Any:
    return lambda b: torch.tensor(json.loads(json.dumps(b.tolist())), dtype=torch.float64).sum() * b.sum()


def in_a_custom_function(x: Tensor) -> Any:
    class Scaled(torch.autograd.Function):
        weight = x

        @staticmethod
        def forward(ctx: Any, b: Tensor) -> Tensor:
            return b * Scaled.weight

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] * Scaled.weight

    return lambda b: Scaled.apply(b).sum()


def second_output(x: Tensor) -> Any:
    return lambda b: {"loss": b.sum(), "penalty": [(b**2).sum().detach()]}


def a_number(x: Tensor) -> Any:
    return lambda b: (b**2).sum().item()


def saturated(x: Tensor) -> Any:
    return lambda b: torch.sigmoid(60.0 + b).sum()


def not_a_number(x: Tensor) -> Any:
    return lambda b: torch.where(b > 0, torch.sqrt(b), 0.0).sum()


def computed_before(x: Tensor) -> Any:
    y = x**2
    return lambda b: (y * b).sum()


def computed_before_from_a_leaf(x: Tensor) -> Any:
    leaf_of_another = leaf(START)
    y = 2.0 * leaf_of_another
    return lambda b: (y * leaf_of_another.detach() * b).sum()


def hard_gumbel(x: Tensor) -> Any:
    return lambda b: torch.nn.functional.gumbel_softmax(b, hard=True) @ TABLE


TRAPS: dict[Trap, set[str]] = {
    hidden_by_the_sum: {"SEVERED"},
    comparison: {"STEP"},
    table: {"STEP"},
    rounded: {"STEP"},
    cast: {"STEP"},
    memoised: {"SEVERED"},
    cached_by_the_tensor: {"INCONCLUSIVE"},
    cached_by_the_number: {"SEVERED"},
    not_among_the_inputs: {"SEVERED"},
    in_a_thread: {"SEVERED OR WRONG"},
    in_a_hook: {"SEVERED OR WRONG"},
    in_a_module_hook: {"SEVERED OR WRONG"},
    through_a_numpy_alias: {"EDITED"},
    array_behind_the_leaf: {"SEVERED OR WRONG"},
    data: {"EDITED"},
    written_to_data: {"SEVERED"},
    parameter: {"SEVERED"},
    iterator: {"INCONCLUSIVE"},
    unknown_randomness: {"INCONCLUSIVE"},
    counter: {"INCONCLUSIVE"},
    branch: {"STEP"},
    decided_in_numpy: {"STEP"},
    decided_by_a_float: {"STEP"},
    torchscript: {"SEVERED OR WRONG"},
    drawn: {"SEVERED"},
    thrown: {"STEP"},
    straight_through: {"SEVERED"},
    rewrapped: {"SEVERED"},
    inner_gradient: {"SEVERED"},
    the_grad_of_a_leaf: {"SEVERED"},
    through_text: {"SEVERED"},
    in_a_custom_function: {"WRONG"},
    second_output: {"SEVERED"},
    a_number: {"SEVERED"},
    saturated: {"ZERO"},
    not_a_number: {"NAN"},
    computed_before: {"INCONCLUSIVE"},
    computed_before_from_a_leaf: {"INCONCLUSIVE"},
    hard_gumbel: {"SEVERED"},
}


@pytest.mark.parametrize("trap", [pytest.param(trap, id=trap.__name__) for trap in TRAPS])
def test_no_trap_is_called_ok(trap: Trap) -> None:
    x = leaf(START)
    before = x.detach().clone()
    report = qg.doctor.check(trap(x), x)
    assert not report.ok
    assert report.verdict.value in TRAPS[trap], str(report)
    assert torch.equal(x, before)
    if report.verdict.value in ("SEVERED", "STEP", "EDITED", "NAN", "WRONG"):
        first = report.findings[0]
        assert os.path.samefile(first.file, __file__) and first.source and first.remedy
    else:
        assert report.cause or report.verdict.value == "ZERO"
