"""A training step under noise beside the naive one: time, live tensors, and how far off gradients are.

Naive is what people write down: every image `repeat_interleave`d, independent noise added, one forward and one
backward pass. A loop by hand runs the same in chunks. Live tensors are counted as operators make and drop them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.timing import Seconds, Task, interleave

__all__ = ["Live", "gradient_errors", "measure"]

N = 16
SIGMA = 0.25
SIZES = (64, 128, 256)
CHANNELS = 16
SEEDS = 40
MEBIBYTE = 2.0**20
cross_entropy = nn.CrossEntropyLoss(reduction="none")
NOISE = torch.distributions.Normal(0.0, SIGMA)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make, and the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.now += size
                    weakref.finalize(storage, self.gone, key, size)
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int, size: int) -> None:
        """Take off what was dropped."""
        self.known.discard(key)
        self.now -= size


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return handwritten digits ``(count, 1, 8, 8)`` between 0 and 1, and which they are."""
    data = load_digits()
    return torch.from_numpy(data.images[:count] / 16.0).float()[:, None], torch.from_numpy(data.target[:count])


def make_model(channels: int = CHANNELS) -> nn.Sequential:
    """Return a small convolutional classifier with weights from a generator of its own."""
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * channels, 10),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / max(1, p[0].numel()) ** 0.5)
    return model


def naive(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Make the step that is written down first."""
    model.zero_grad()
    xs = x.repeat_interleave(N, 0)
    xs = xs + SIGMA * torch.randn_like(xs)
    cross_entropy(model(xs), y.repeat_interleave(N)).mean().backward()


def by_hand(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> None:
    """Make it in chunks, as a careful person does."""
    model.zero_grad()
    together = max(1, chunk // len(x))
    for _ in range(N // together):
        xs = x.repeat(together, 1, 1, 1)
        xs = xs + SIGMA * torch.randn_like(xs)
        (cross_entropy(model(xs), y.repeat(together)).sum() / (N * len(x))).backward()


def ours(model: nn.Module, x: Tensor, y: Tensor, n: int = N, seed: int = 0) -> None:
    """Make it with quadgrad."""
    model.zero_grad()
    qg.perturbation_loss(lambda xs, ys: cross_entropy(model(xs), ys), x, y, NOISE, n=n, seed=seed).backward()


def peak(step: Callable[..., None], *args: Any) -> float:
    """Return the most bytes that lived at once in a step, gradients included."""
    with Live() as live:
        step(*args)
    return float(live.peak)


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 30) -> nn.Module:
    """Return the model after some steps: one that decides nothing yet has an easy gradient."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        ours(model, x, y, seed=step)
        optimizer.step()
    return model


def gradient_errors(model: nn.Module, count: int = 64, seeds: int = SEEDS, many: int = 2048) -> dict[str, float]:
    """Return the rms error over the norm of a model's gradient, for three ways to draw noise."""
    x, y = digits(count)
    draw, parameters = torch.Generator().manual_seed(0), list(model.parameters())
    loss = lambda xs, ys: cross_entropy(model(xs), ys)

    def gradient(n: int, seed: int, way: str) -> Tensor:
        if way == "independent":
            xs = x.repeat(n, 1, 1, 1)
            value = loss(xs + SIGMA * torch.randn(xs.shape, generator=draw), y.repeat(n)).mean()
        else:
            index = torch.zeros(count, dtype=torch.int64) if way == "one for all" else None
            value = qg.perturbation_loss(loss, x, y, NOISE, n=n, seed=seed, index=index, chunk_size=1024)
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    def error(way: str) -> float:
        squares = [(gradient(N, seed, way) - exact).square().sum() for seed in range(seeds)]
        return float(torch.stack(squares).mean().sqrt() / exact.norm())

    exact = gradient(many, -1, "shifted")
    return {way: error(way) for way in ("shifted", "independent", "one for all")}


def measure(scale: float = 1.0) -> Findings:
    """Time steps in turn, count their tensors, and compare their gradients."""
    rows: list[tuple[str, ...]] = []
    figures: list[Figure] = []
    for size in SIZES:
        x, y = digits(size)
        steps: dict[str, Callable[..., None]] = {
            "naive": naive, "by hand": lambda m, a, b: by_hand(m, a, b, 256), "quadgrad": ours,
        }  # fmt: skip
        tasks: dict[str, Task] = {name: partial(step, make_model(), x, y) for name, step in steps.items()}
        seconds = interleave(tasks, max(5, round(25 * scale)), warm_up=2)
        peaks = {name: peak(step, make_model(), x, y) for name, step in steps.items()}
        rows += [
            (f"{name}, {size} images", show_time(s.best), show_time(s.median), f"{peaks[name] / MEBIBYTE:.1f} MiB")
            for name, s in seconds.items()
        ]
        figures += _figures(size, seconds, peaks)
    model = trained(make_model(4), *digits(256))
    errors = gradient_errors(model, seeds=max(10, round(SEEDS * scale)))
    ratio = errors["shifted"] / errors["independent"]
    figures += [
        Figure("gradient's rms error over that of independent noise", ratio, target=Target(0.8)),
        Figure("perturbations that independent noise needs for it, over ours", 1 / ratio**2),
        Figure("rms error of one noise for all images over ours", errors["one for all"] / errors["shifted"]),
    ]
    found = [(way, f"{error:.3f}") for way, error in errors.items()]
    return Findings(
        "Perturbation losses",
        f"A training step of a convolutional net on digits, {N} perturbations of each image, 192 or 256 perturbed "
        "images in one call of the net. Naive: repeat_interleave, one pass. By hand: the same in a loop. Live "
        "tensors are those of the step at its peak, without the weights.",
        [Sheet(("", "best", "median", "live tensors"), rows),
         Sheet(("noise, after 30 steps", "gradient's rms error over its norm"), found)],
        figures,
    )  # fmt: skip


def _figures(size: int, seconds: dict[str, Seconds], peaks: dict[str, float]) -> list[Figure]:
    return [
        compare(f"step over the naive one, {size} images", seconds["quadgrad"], seconds["naive"], Target(1.0)),
        compare(f"step over a loop by hand, {size} images", seconds["quadgrad"], seconds["by hand"]),
        Figure(
            f"live tensors over the naive step's, {size} images", peaks["quadgrad"] / peaks["naive"],
            target=Target(0.2),
        ),
    ]  # fmt: skip
