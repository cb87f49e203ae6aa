"""TensorFlow functions beside the same functions in torch: what one integral takes, and a batch of peaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import Seconds, interleave

__all__ = ["measure"]

PEAKS = 2_000
BLOCK = 2**20
"""Numbers in a block that crosses the border."""


def _wave(sin: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, scale, rate: scale * sin(rate * x)


def _peak(square: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, c, w: w / (square(x - c) + square(w))


class _Twins:
    """An integral from 0 to 1 in TensorFlow and in torch, and its gradient by its arguments."""

    def __init__(self, f: Callable[..., Any], g: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> None:
        import tensorflow as tf

        import quadgrad.tensorflow as qgt

        self.g, self.args = g, tuple(arg.clone().requires_grad_() for arg in args)
        given = tuple(tf.constant(arg.numpy()) for arg in args)
        variables = tuple(map(tf.Variable, given))
        one = tf.constant(1.0, tf.float64)

        def value(args: Any) -> Any:
            return qgt.quad(f, 0.0, one, args).value

        def gradient(args: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(args)
                total = tf.reduce_sum(value(args))
            return tape.gradient(total, args)

        compiled, compiled_gradient = (tf.function(one, autograph=False) for one in (value, gradient))
        self.tasks: dict[str, Callable[[], Any]] = {
            "TensorFlow": lambda: value(given),
            "TensorFlow, gradient": lambda: gradient(variables),
            "tf.function": lambda: compiled(given),
            "tf.function, gradient": lambda: compiled_gradient(given),
            "torch": self.torch_value,
            "torch, gradient": self.torch_gradient,
        }

    def torch_value(self) -> Any:
        with torch.no_grad():
            return qg.quad(self.g, 0.0, 1.0, self.args).value

    def torch_gradient(self) -> Any:
        return torch.autograd.grad(qg.quad(self.g, 0.0, 1.0, self.args).value.sum(), self.args)

    def difference(self) -> float:
        """Return the largest relative difference of the gradients."""
        pairs = zip(self.tasks["TensorFlow, gradient"](), self.torch_gradient(), strict=True)
        return max(float(abs(ours.numpy() / theirs.numpy() - 1).max()) for ours, theirs in pairs)


def _cross(repeats: int) -> dict[str, Seconds]:
    from quadgrad.tensorflow._crossing import to_tensorflow, to_torch

    block = torch.rand(BLOCK, dtype=torch.float64)
    return interleave({"there and back": lambda: to_torch(to_tensorflow(block)), "a copy": block.clone}, repeats)


def measure(scale: float = 1.0) -> Findings:
    """Time one integral and a batch of peaks, eager and compiled, and a block that crosses the border."""
    import tensorflow as tf

    repeats = max(3, round(20 * scale))
    one, two = (torch.tensor(v, dtype=torch.float64) for v in (1.0, 2.0))
    wave = _Twins(_wave(tf.sin), _wave(torch.sin), (one, two))
    generator = torch.Generator().manual_seed(0)
    c = 0.1 + 0.8 * torch.rand(PEAKS, dtype=torch.float64, generator=generator)
    w = 10 ** (-3 + 2 * torch.rand(PEAKS, dtype=torch.float64, generator=generator))
    peaks = _Twins(_peak(tf.square), _peak(torch.square), (c, w))
    powers = _Twins(_peak(lambda t: t**2), _peak(lambda t: t**2), (c, w))
    single = interleave(wave.tasks, 5 * repeats, warm_up=3)
    many, dear = interleave(peaks.tasks, repeats), interleave(powers.tasks, repeats)
    crossing = _cross(repeats)
    measured = [Measured(f"one integral, {name}", s, 1, 1) for name, s in single.items()]
    measured += [Measured(f"{PEAKS:,} peaks, {name}", s, PEAKS, PEAKS) for name, s in many.items()]
    measured += [Measured(f"the same by x**2, {name}", s, PEAKS, PEAKS) for name, s in dear.items()]

    def milliseconds(name: str, bound: float) -> Figure:
        seconds = single[name]
        return Figure(f"one integral, {name}", 1e3 * seconds.median, 1e3 * seconds.best, Target(bound), "ms")

    def ratio(label: str, seconds: dict[str, Seconds], name: str, bound: float | None) -> Figure:
        target = None if bound is None else Target(bound)
        return compare(label, seconds[name], seconds["torch, gradient"], target)

    return Findings(
        "TensorFlow beside torch",
        f"float64. One integral of a sin(b x) over [0, 1]; {PEAKS:,} peaks w / ((x - c)^2 + w^2) over [0, 1] with "
        "w from 1e-3 to 0.1, gradient by c and w; the squares by tf.square and torch.square, or by x**2. Nodes are "
        "not counted: one stands for each integral.",
        [show_seconds(measured, ())],
        [
            milliseconds("TensorFlow", 5.0),
            milliseconds("TensorFlow, gradient", 8.0),
            milliseconds("tf.function", 5.0),
            ratio(f"{PEAKS:,} peaks with gradient over torch", many, "TensorFlow, gradient", 4.0),
            ratio("the same in a tf.function", many, "tf.function, gradient", None),
            ratio("with x**2, which TensorFlow takes for a power", dear, "TensorFlow, gradient", None),
            ratio("the same in a tf.function, which rewrites it", dear, "tf.function, gradient", None),
            compare(
                f"{BLOCK:,} numbers there and back over a copy", crossing["there and back"], crossing["a copy"]
            ),
        ],
        [f"Gradients of the peaks differ by at most {peaks.difference():.1e} of themselves: rtol is 1.5e-8."],
    )
