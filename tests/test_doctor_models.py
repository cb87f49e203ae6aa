"""Healthy models, of which the doctor has nothing to say: in double and in single precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import quadgrad as qg
from quadgrad.doctor import Report

Model = tuple[Callable[..., Any], list[Any]]
F64, F32 = torch.float64, torch.float32


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def weighted(module: nn.Module, dtype: torch.dtype, seed: int = 0) -> Any:
    """Return the module with weights from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        spread = 1.0 / math.sqrt(max(1, p.shape[-1])) if p.ndim > 1 else 0.3
        p.data = spread * torch.randn(p.shape, generator=generator, dtype=F64) + (p.ndim == 1) * 0.5
    return module.to(dtype)


class Block(nn.Module):
    """A block of a residual network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def residual_network(dtype: torch.dtype) -> Model:
    layers = (
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), Block(4), Block(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 5),
    )  # fmt: skip
    network, x = weighted(nn.Sequential(*layers), dtype).train(), randn(4, 3, 8, 8, dtype=dtype)
    return lambda: F.cross_entropy(network(x), torch.tensor([0, 3, 1, 4])), []


def transformer_block(dtype: torch.dtype) -> Model:
    layer = weighted(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), dtype)
    x, mask = randn(2, 5, 8, dtype=dtype), nn.Transformer.generate_square_subsequent_mask(5, dtype=dtype)
    return lambda: (layer(x, src_mask=mask, is_causal=True) ** 2 * randn(2, 5, 8, seed=1, dtype=dtype)).mean(), []


def recurrent(dtype: torch.dtype) -> Model:
    gru = weighted(nn.GRU(3, 5, batch_first=True), dtype)
    return lambda x: gru(x)[0][:, -1], [randn(2, 4, 3, dtype=dtype).requires_grad_()]


def normalising_flow(dtype: torch.dtype) -> Model:
    network, x = (
        weighted(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)), dtype),
        randn(9, 4, dtype=dtype),
    )
    base = torch.distributions.Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype))

    def loss() -> Tensor:
        shift, log_scale = network(x[:, :2]).chunk(2, 1)
        z = x[:, 2:] * torch.exp(log_scale) + shift
        return -(base.log_prob(z).sum(1) + log_scale.sum(1)).mean()

    return loss, []


def gaussian_process(dtype: torch.dtype) -> Model:
    x = torch.linspace(0.0, 1.0, 9, dtype=dtype)[:, None]
    y, eye = torch.sin(6.0 * x), torch.eye(9, dtype=dtype)

    def loss(log_length: Tensor, log_noise: Tensor) -> Tensor:
        k = torch.exp(-0.5 * ((x - x.T) / log_length.exp()) ** 2) + log_noise.exp() * eye
        factor = torch.linalg.cholesky(k)
        return 0.5 * (y * torch.cholesky_solve(y, factor)).sum() + factor.diagonal().log().sum()

    return loss, [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (-1.0, -2.0)]


def neural_ode(dtype: torch.dtype) -> Model:
    field = weighted(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), dtype)

    def end(y: Tensor, h: float = 0.1) -> Tensor:
        for _ in range(3):
            k1 = field(y)
            k2 = field(y + 0.5 * h * k1)
            y = y + h * checkpoint(field, y + 0.5 * h * k2, use_reentrant=False)
        return (y**2).sum()

    return end, [randn(2, 3, dtype=dtype).requires_grad_()]


def marginal_likelihood(dtype: torch.dtype) -> Model:
    counts = torch.tensor([0.0, 1.0, 3.0], dtype=dtype)

    def loss(mean: Tensor, log_spread: Tensor) -> Tensor:
        def log_f(u: Tensor, k: Tensor, m: Tensor, s: Tensor) -> Tensor:
            return k * (m + s * u) - torch.exp(m + s * u) - torch.lgamma(k + 1.0) - 0.5 * u * u

        args = (counts, mean, log_spread.exp())
        return -qg.quad(log_f, -8.0, 8.0, args, log=True).value.sum()

    return loss, [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.3, 0.1)]


def integral_with_moving_limits(dtype: torch.dtype) -> Model:
    level = lambda x, c: x**2 - c

    def loss(a: Tensor, c: Tensor) -> Tensor:
        value = qg.quad(lambda x, c: (x**2 > c).to(x.dtype) * torch.cos(x), -a, a, (c,), jumps=level).value
        return value + qg.quad(lambda x: torch.exp(-c * x), a, 2.0).value

    return loss, [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (1.2, 0.4)]


def bridge_model(dtype: torch.dtype) -> Model:
    simulator = qg.bridge.wrap(lambda a: np.sin(a) * np.exp(-(a**2)))
    layer = weighted(nn.Linear(4, 4), dtype)
    return lambda x: (simulator(layer(x)) ** 2).sum(), [randn(4, dtype=dtype).requires_grad_()]


def training_step(dtype: torch.dtype) -> Model:
    network, x = (
        weighted(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), dtype),
        randn(7, 4, dtype=dtype),
    )
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses: list[float] = []

    def step() -> float:
        for _ in range(2):
            optimiser.zero_grad()
            loss = ((network(x) - 1.0) ** 2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        return losses[-1]

    return step, []


def logged(dtype: torch.dtype) -> Model:
    log: list[str] = []

    def loss(w: Tensor) -> tuple[Tensor, float, Tensor]:
        y = (w**2).sum()
        log.append(f"{y.item():.3f} {w.detach().numpy().max()}")
        if torch.isnan(y) or y.item() > 1e6:
            raise ValueError("diverged")
        return y, y.item(), (w > 0).sum()

    return loss, [randn(3, dtype=dtype).requires_grad_()]


MODELS = [
    residual_network, transformer_block, recurrent, normalising_flow, gaussian_process, neural_ode,
    marginal_likelihood, integral_with_moving_limits, bridge_model, training_step, logged,
]  # fmt: skip


def examined(model: Model) -> Report:
    function, inputs = model
    return qg.doctor.check(function, *inputs)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["double", "single"])
@pytest.mark.parametrize("make", [pytest.param(make, id=make.__name__) for make in MODELS])
def test_nothing_is_found_in_healthy_models(make: Callable[[torch.dtype], Model], dtype: torch.dtype) -> None:
    report = examined(make(dtype))
    assert report.ok and not report.findings, str(report)
    assert abs(report.true - report.autograd) <= 3 * report.error
    assert report.runs <= 60


@pytest.mark.parametrize("dtype", [F64, F32], ids=["double", "single"])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_found_in_wide_networks_of_relus_at_a_kink(seed: int, dtype: torch.dtype) -> None:
    """Zero biases behind padding of zeros: many units stand exactly at their kink."""
    layers = (
        nn.Conv1d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 256),
        nn.ReLU(),
        nn.Linear(256, 1),
    )
    network = weighted(nn.Sequential(*layers), dtype, seed)
    x = randn(3, 1, 12, seed=seed, dtype=dtype)
    x[0], x[1, :, 5:] = 0.0, 0.0
    for layer in network:
        if hasattr(layer, "bias"):
            nn.init.zeros_(layer.bias)
    report = qg.doctor.check(lambda: F.mse_loss(network(x), torch.ones(3, 1, dtype=dtype)))
    assert report.ok, str(report)


def test_nothing_that_an_examination_changes_stays_changed() -> None:
    step, _ = training_step(F32)
    network = step.__closure__ and next(
        c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, nn.Module)
    )
    assert isinstance(network, nn.Module)
    optimiser = next(
        c.cell_contents for c in step.__closure__ or () if isinstance(c.cell_contents, torch.optim.Adam)
    )
    step()
    state = lambda: [
        *(p.detach().clone() for p in network.parameters()), *(p.grad.clone() for p in network.parameters()),
        *(v.clone() for entry in optimiser.state.values() for v in entry.values()),
        torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
    ]  # fmt: skip
    before = state()
    assert qg.doctor.check(step).ok
    for a, b in zip(before, state(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert torch.autograd.Function.apply.__qualname__ == "Function.apply"
    assert torch.nn.Parameter.__new__.__qualname__ == "Parameter.__new__"


def test_a_compiled_function_is_seen_through() -> None:
    w, function = randn(3).requires_grad_(), lambda w: (w.detach() * w).sum()
    if sys.version_info >= (3, 15):  # torch 2.13 refuses to compile there; when it does not, this fails, and goes
        with pytest.raises(RuntimeError, match="not supported on Python 3.15"):
            torch.compile(function, backend="eager")
        return
    compiled = torch.compile(function, backend="eager")
    report = qg.doctor.check(compiled, w)
    assert report.verdict == "SEVERED" and report.findings[0].file == __file__
