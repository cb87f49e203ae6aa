"""More traps, healthy models and sick programs: hooks, wrappers, buffers, views, tables, compiled functions."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quadgrad as qg
from helpers import leaf, t64

F64, F32 = torch.float64, torch.float32
TABLE = t64([0.3, 1.7, -0.6])
Program = Callable[..., Any]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def weighted(module: nn.Module, dtype: torch.dtype = F64) -> Any:
    for i, p in enumerate(module.parameters()):
        p.data = 0.4 * randn(*p.shape, seed=i)
    return module.to(dtype)


# -- traps


def hook_that_detaches() -> Program:
    layer = weighted(nn.Linear(3, 3))
    layer.register_forward_hook(lambda module, into, out_of: out_of.detach())
    return lambda b: (layer(b) * b).sum()


def hook_that_clips() -> Program:
    def f(b: Tensor) -> Tensor:
        y = b.sin() * b
        y.register_hook(lambda g: g.clamp(-0.1, 0.1))
        return y.sum()

    return f


def saved_in_half_precision() -> Program:
    def f(b: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: 0.9 * t.double()):
            return (b**3).sum()

    return f


def mean_over_processes() -> Program:
    layer = weighted(nn.Linear(3, 3))

    def f(b: Tensor) -> Tensor:
        y = layer(b).sum()
        with torch.no_grad():  # as an all_reduce does
            mean = torch.stack([y, 2 * y]).mean()
        return mean * b.sum()

    return f


def view_written_under_no_grad() -> Program:
    def f(b: Tensor) -> Tensor:
        y = 2 * b
        with torch.no_grad():
            y[:2].mul_(b[0])
        return (y * b).sum()

    return f


def running_statistics() -> Program:
    norm = nn.BatchNorm1d(3).double()

    def f(b: Tensor) -> Tensor:
        norm.train()(torch.stack([b, 2 * b, b**2]))
        return norm.eval()(torch.stack([b, b * b])).sum()

    return f


def weights_from_a_dictionary() -> Program:
    layer = nn.Linear(3, 3).double()

    def f(b: Tensor) -> Tensor:
        layer.load_state_dict({"weight": torch.outer(b, b), "bias": b})
        return layer(torch.ones(3, dtype=F64)).sum() + b.sum()

    return f


def through_a_queue() -> Program:
    def f(b: Tensor) -> Tensor:
        waiting: queue.Queue[Tensor] = queue.Queue()
        waiting.put(b.detach().clone())
        return (waiting.get() * b).sum()

    return f


def compiled() -> Program:
    return torch.compile(lambda b: (b.detach() ** 2 * b).sum(), backend="eager")


def embedding() -> Program:
    layer = weighted(nn.Embedding(9, 2))
    return lambda b: layer((3 * b).round().long() + 4).sum() + b.sum()


def histogram() -> Program:
    return lambda b: torch.histc(b, 4, -2.0, 2.0)[2] + b.sum()


def suppressed() -> Program:
    def f(b: Tensor) -> Tensor:
        s, _ = b.sort(descending=True)
        return (s[:-1] * (s[:-1] - s[1:] > 0.3)).sum() + b.sum()

    return f


def halved_until_small() -> Program:
    def f(b: Tensor) -> Tensor:
        y = b.abs().sum()
        while y.item() > 1.0:
            y = 0.5 * y
        return y + b.sum()

    return f


def best_of_each() -> Program:
    return lambda b: TABLE[b.topk(1).indices].sum() + b.sum()


def printed() -> Program:
    return lambda b: float(f"{b[0]:.17g}") * b.sum()


TRAPS: dict[Callable[[], Program], str] = {
    hook_that_detaches: "SEVERED",
    hook_that_clips: "SEVERED OR WRONG",
    saved_in_half_precision: "SEVERED OR WRONG",
    mean_over_processes: "SEVERED",
    view_written_under_no_grad: "EDITED",
    running_statistics: "SEVERED OR WRONG",
    weights_from_a_dictionary: "EDITED",
    through_a_queue: "SEVERED",
    compiled: "SEVERED",
    embedding: "STEP",
    histogram: "STEP",
    suppressed: "STEP",
    halved_until_small: "STEP",
    best_of_each: "STEP",
    printed: "SEVERED OR WRONG",
}


@pytest.mark.parametrize("trap", [pytest.param(trap, id=trap.__name__) for trap in TRAPS])
def test_no_trap_is_called_ok(trap: Callable[[], Program]) -> None:
    report = qg.doctor.check(trap(), leaf([0.8, -0.4, 1.3]))
    assert report.verdict.value == TRAPS[trap], str(report)
    assert report.cause or report.findings[0].file == __file__


# -- healthy models


def packed(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    lstm = weighted(nn.LSTM(3, 4, 2, batch_first=True, dropout=0.2), dtype)
    x = nn.utils.rnn.pack_padded_sequence(randn(3, 5, 3, dtype=dtype), torch.tensor([5, 3, 2]), batch_first=True)
    return lambda: lstm(x)[0].data.pow(2).sum(), []


def bag(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    layer = weighted(nn.EmbeddingBag(10, 4, mode="mean"), dtype)
    return lambda: layer(torch.tensor([1, 2, 4, 5, 4, 3, 2, 9]), torch.tensor([0, 4])).sin().sum(), []


def straight_through(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    def f(x: Tensor) -> Tensor:
        with qg.doctor.intended("straight-through"):
            left = (torch.round(4 * x) / 4 - x).detach()
        return (x + left).sum() + (x**2).sum()

    return f, [randn(3, dtype=dtype)]


def both_branches_safe(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    def f(x: Tensor) -> Tensor:
        safe = torch.where(x > 0, x, torch.ones_like(x))
        return torch.where(x > 0, safe.log1p(), x).sum() + x.pow(2).sum()

    return f, [randn(5, dtype=dtype)]


class Cube(torch.autograd.Function):
    """Right, with its context set apart."""

    factor = 3.0

    @staticmethod
    def forward(b: Tensor) -> Tensor:  # type: ignore[override]
        return b**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        return cls.factor * grads[0] * ctx.saved_tensors[0] ** 2


class WrongCube(Cube):
    """Wrong by a third."""

    factor = 2.0


def context_set_apart(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    return lambda b: Cube.apply(b).sum(), [randn(4, dtype=dtype)]


def written_in_place(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    def f(x: Tensor) -> Tensor:
        y = 2 * x
        y[0] = x[1] * x[2]
        y[1:].mul_(x[1:])
        y.view(-1).sin_()
        return y.sum()

    return f, [randn(4, dtype=dtype)]


def hook_that_logs(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    seen: list[float] = []

    def f(x: Tensor) -> Tensor:
        y = x.sin()
        y.register_hook(lambda g: seen.append(float(g.norm())))
        return (y * x).sum()

    return f, [randn(4, dtype=dtype)]


def stable_losses(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    y, ones = randn(6, seed=2, dtype=dtype), torch.ones(6, dtype=dtype)
    return lambda x: F.huber_loss(x, y) + F.margin_ranking_loss(x, y, ones, 0.1), [randn(6, dtype=dtype)]


def sampled_grid(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    image = randn(1, 2, 6, 6, dtype=dtype)

    def f(theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta[None], [1, 2, 5, 5], align_corners=False)
        return F.grid_sample(image, grid, align_corners=False).pow(2).sum()

    return f, [torch.tensor([[0.8, 0.1, 0.05], [-0.1, 0.7, 0.02]], dtype=dtype)]


def momentum_and_schedule(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    layer, x = weighted(nn.Linear(3, 1), dtype), randn(6, 3, dtype=dtype)
    optimiser = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9)

    def f() -> Tensor:
        optimiser.zero_grad()
        loss = (layer(x) - 1).pow(2).mean()
        loss.backward()
        optimiser.step()
        return loss

    return f, []


def best_so_far(dtype: torch.dtype) -> tuple[Program, list[Tensor]]:
    best = [1e9]

    def f(x: Tensor) -> Tensor:
        loss = (x**2).sum()
        if loss.item() < best[0]:
            best[0] = loss.item()
        return loss

    return f, [randn(3, dtype=dtype)]


HEALTHY = [
    packed, bag, straight_through, both_branches_safe, context_set_apart, written_in_place, hook_that_logs,
    stable_losses, sampled_grid, momentum_and_schedule, best_so_far,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [F64, F32], ids=["double", "single"])
@pytest.mark.parametrize("make", [pytest.param(make, id=make.__name__) for make in HEALTHY])
def test_nothing_is_found_in_healthy_models(make: Callable[[torch.dtype], Any], dtype: torch.dtype) -> None:
    function, inputs = make(dtype)
    report = qg.doctor.check(function, *(x.requires_grad_() for x in inputs))
    assert report.ok and not report.findings, str(report)
    assert report.runs <= 40


# -- sick programs, and what they are after the remedy

LABELS = torch.tensor([0, 2, 1, 0])
IMAGE = randn(4, 4, seed=5)
blur = qg.bridge.wrap(lambda a: scipy.ndimage.gaussian_filter(a, 1.0))


def accuracy(x: Tensor) -> Tensor:
    return (x.argmax(1) == LABELS).double().mean() + 0.1 * x.sum()


def eight_bits(x: Tensor) -> Tensor:
    return ((255 * torch.sigmoid(x)).byte().double() / 255).sum() + x.sum()


def attention_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        weights = torch.softmax(x @ x.T, -1)
    return (weights @ x).pow(2).sum()


def clamped_in_data(x: Tensor) -> Tensor:
    x.data = x.data.clamp(-0.5, 0.5)
    return (x**3).sum() + x.sum()


def blurred(x: Tensor) -> Tensor:
    return (torch.from_numpy(scipy.ndimage.gaussian_filter(x.detach().numpy(), 1.0)) * x).sum()


def averaged_in_numpy(x: Tensor) -> Tensor:
    return float(np.mean(x.detach().numpy())) * x.pow(2).sum()


def thrown(x: Tensor) -> Tensor:
    return (torch.bernoulli(torch.sigmoid(x)) * x).sum()


def relaxed(x: Tensor) -> Tensor:
    sample = torch.distributions.RelaxedBernoulli(torch.tensor(0.5, dtype=F64), logits=x).rsample()
    return (sample * x).sum()


def truncated(x: Tensor, detach: bool = True) -> Tensor:
    state = torch.zeros(4, dtype=F64)
    for row in x:
        state = torch.tanh((state.detach() if detach else state) + row)
    return state.sum()


def nearest_of_a_table(x: Tensor) -> Tensor:
    grid = torch.linspace(-3.0, 3.0, 7, dtype=F64)
    return (grid**2)[torch.searchsorted(grid, x)].sum() + x.sum()


def interpolated(x: Tensor) -> Tensor:
    grid = torch.linspace(-3.0, 3.0, 7, dtype=F64)
    return qg.spline(grid**2, grid)(x).sum() + x.sum()


SICK: dict[str, tuple[Program, str, str, str, Program]] = {
    "accuracy": (accuracy, "STEP", "argmax(1)", "softmax", lambda x: F.cross_entropy(x, LABELS)),
    "bytes": (eight_bits, "STEP", ".byte()", "straight-through", lambda x: torch.sigmoid(x).sum() + x.sum()),
    "attention": (
        attention_without_gradient, "SEVERED", "softmax(x @ x.T", "no_grad",
        lambda x: (torch.softmax(x @ x.T, -1) @ x).pow(2).sum(),
    ),
    "data": (
        clamped_in_data, "EDITED", "x.data = ", "compute a new tensor",
        lambda x: (x.clamp(-0.5, 0.5) ** 3).sum() + x.clamp(-0.5, 0.5).sum(),
    ),
    "filter": (blurred, "SEVERED", "gaussian_filter", "bridge.wrap", lambda x: (blur(x) * x).sum()),
    "mean": (averaged_in_numpy, "SEVERED", "np.mean", "torch.mean", lambda x: x.mean() * x.pow(2).sum()),
    "draw": (thrown, "STEP", "bernoulli", "relaxed distribution", relaxed),
    "state": (truncated, "SEVERED", "state.detach()", "leave out .detach()", lambda x: truncated(x, False)),
    "table": (nearest_of_a_table, "STEP", "searchsorted", "quadgrad.spline", interpolated),
    "context": (
        lambda x: WrongCube.apply(x).sum(), "WRONG", "WrongCube.apply", "gradcheck", lambda x: Cube.apply(x).sum(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_line_and_remedy_are_named_and_the_remedy_helps(name: str) -> None:
    sick, verdict, line, remedy, mended = SICK[name]
    report = qg.doctor.check(sick, randn(4, 4, seed=3).requires_grad_())
    assert report.verdict.value == verdict, str(report)
    first = report.findings[0]
    assert line in first.source and remedy in first.remedy, str(report)
    report = qg.doctor.check(mended, randn(4, 4, seed=3).requires_grad_())
    assert report.ok, str(report)
