"""The program that is examined: run with its sources moved, contracted to one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import flatten_tree, leaves_behind, pull_back, unflatten_tree
from quadgrad._core.rehearsal import Rehearsal
from quadgrad._core.result import Result
from quadgrad.doctor.hooks import watching
from quadgrad.doctor.numbers import Number
from quadgrad.doctor.state import State
from quadgrad.doctor.trace import Met, Order, Trace
from quadgrad.doctor.watch import Watch
from quadgrad.doctor.wide import NARROW, wider

__all__ = ["BackwardFailed", "Program", "Run"]


class BackwardFailed(Exception):
    """A backward pass raised; ``error`` is what it raised."""

    def __init__(self, error: Exception, trace: Trace) -> None:
        super().__init__(str(error))
        self.error, self.trace = error, trace


@dataclass(eq=False)
class Run:
    """What came of one run: the contracted value, what was seen, and the gradient if it was asked for."""

    value: float
    size: float
    trace: Trace
    gradient: list[Tensor | None] | None = None
    narrow: bool = False
    """Whether an output is in single precision."""


class Program:
    """A function with its inputs, and the tensors that are varied.

    Outputs that are no single number are contracted with random cotangents, which are the same in every run.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any], modules: Sequence[Any], seed: int,
        told: Callable[[], None],
    ) -> None:  # fmt: skip
        self.function, self.inputs, self.seed, self._told = function, inputs, seed, told
        self.state = State([*inputs, *modules, function])
        self.runs = 0
        self.rehearsal = Rehearsal()
        self.wide = False
        self.last: Trace | None = None
        self._rehearsed = False
        self.excluded: list[str] = []
        for tensor in _sources(inputs, modules):
            self.state.add_source(Met.now(tensor))

    @property
    def sources(self) -> list[Tensor]:
        """What is varied."""
        return self.state.sources

    def direction(self, number: int, scale: str = "tensor") -> list[Tensor]:
        """Return a random direction, in which every tensor moves by about its own size."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + number)
        return [_step(base, generator, scale) for base in self.state.bases]

    def run(self, order: Order, steps: Sequence[Tensor] | None = None, t: float = 0.0) -> Run:
        """Run with the sources moved by ``t`` times the steps."""
        self.runs += 1
        self._told()
        order.wide = self.wide
        self.state.restore(steps, t)
        watch = Watch(order, self.sources)
        self.last = watch.trace
        rehearsal = self.rehearsal.again() if self._rehearsed else self.rehearsal
        inputs = self._inputs()
        with torch.enable_grad(), rehearsal.open():
            with watching(watch, self.state.see_module, self.state.see_optimiser):
                result = self.function(*inputs)
            watch.read(flatten_tree(result)[0])
            self._rehearsed = True
            if order.base is None:
                watch.close()
            elif not watch.trace.parted:
                watch.trace.parted = order.base.missing(watch.trace)
            for generator, state in watch.trace.generators:
                self.state.keep_generator(generator, state)
            return self._contract(result, watch, order)

    def widen(self) -> None:
        """Run in double precision from now on."""
        self.wide = True
        self.state.widen()
        self.rehearsal, self._rehearsed = Rehearsal(), False

    def narrow(self) -> None:
        """Run as the program is written again."""
        self.wide = False
        self.state.narrow()
        self.rehearsal, self._rehearsed = Rehearsal(), False

    def _inputs(self) -> list[Any]:
        if not self.wide:
            return list(self.inputs)
        varied = {id(t) for t in self.sources}
        leaves, form = flatten_tree(list(self.inputs))
        wide = [leaf if id(leaf) in varied or not isinstance(leaf, Tensor) else wider(leaf) for leaf in leaves]
        return unflatten_tree(wide, form)

    def _contract(self, result: Any, watch: Watch, order: Order) -> Run:
        if watch.trace.objectives:
            pairs = [(out, self._cotangent(i, out) if g is None else g)
                     for i, (out, g) in enumerate(watch.trace.objectives)]  # fmt: skip
            value = sum(_contracted(out, g) for out, g in pairs)
            return Run(value, _size(pairs), watch.trace, watch.slopes if order.gradient else None)
        outputs = self._outputs(result)
        pairs = [(out, self._cotangent(i, out, len(outputs))) for i, out in enumerate(outputs)]
        value = sum(_contracted(out, g) for out, g in pairs)
        narrow = any(isinstance(out, Tensor) and out.dtype in NARROW for out in outputs)
        run = Run(value, _size(pairs), watch.trace, narrow=narrow)
        if order.gradient:
            run.gradient = self._differentiate(pairs, watch)
        return run

    def _outputs(self, result: Any) -> list[Any]:
        """Return what is differentiated: tensors, or where there is none that carries a gradient all numbers."""
        leaves = flatten_tree(_values(result))[0]
        tensors = [o for o in leaves if isinstance(o, Tensor) and (o.is_floating_point() or o.is_complex())]
        self.excluded = []
        if any(t.requires_grad for t in tensors):
            others = [type(o).__name__ for o in leaves if isinstance(o, float | np.ndarray | np.floating)]
            self.excluded = others
            return tensors
        numbers = [o for o in leaves if isinstance(o, float | complex | np.ndarray | np.floating) or _counts(o)]
        return tensors + numbers

    def _cotangent(self, number: int, out: Any, count: int = 1) -> Tensor:
        shape = tuple(getattr(out, "shape", ()))
        if count == 1 and math.prod(shape) == 1:
            return torch.ones(shape, dtype=torch.float64, device="cpu")
        generator = torch.Generator().manual_seed(self.seed * 7919 + number)
        kind = torch.complex128 if isinstance(out, Tensor) and out.is_complex() else torch.float64
        return torch.randn(shape, generator=generator, dtype=kind, device="cpu")

    def _differentiate(self, pairs: list[tuple[Any, Tensor]], watch: Watch) -> list[Tensor | None]:
        outs = [(o, g) for o, g in pairs if isinstance(o, Tensor) and o.requires_grad]
        if not outs or not self.sources:
            return [None] * len(self.sources)
        watch.collecting = True
        try:
            return list(pull_back([o for o, _ in outs], self.sources, [g.to(o.device, o.dtype) for o, g in outs]))
        except Exception as error:
            raise BackwardFailed(error, watch.trace) from error

    def depends(self, outer: Tensor) -> bool:
        """Whether a tensor that was computed before the program ran depends on what is varied."""
        return any(leaf is source for leaf in leaves_behind(outer) for source in self.sources)


def _values(result: Any) -> Any:
    """Return the value where the program returns an integral: its error estimate is no part of what is examined."""
    if isinstance(result, Result):
        return result.value
    return [_values(each) for each in result] if type(result) in (tuple, list) else result


def _counts(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()


def _contracted(out: Any, g: Tensor) -> float:
    if isinstance(out, Number):
        out = float(out)
    value = torch.as_tensor(out, device="cpu").detach()
    g = g.detach().to("cpu")
    if value.is_complex() or g.is_complex():
        return float((g.conj().to(torch.complex128) * value.to(torch.complex128)).sum().real)
    return float((g.double() * value.double()).sum())


def _size(pairs: list[tuple[Any, Tensor]]) -> float:
    """Return the sum of the moduli that are summed up: of it a value is rounded."""
    return sum(float((torch.as_tensor(out, device="cpu").detach().abs().double() * g.cpu().abs().double()).sum())
               for out, g in pairs)  # fmt: skip


def _step(base: Tensor, generator: torch.Generator, scale: str) -> Tensor:
    kind, drawn = (torch.complex128, torch.complex64) if base.is_complex() else (torch.float64, torch.float32)
    # Drawn in single precision: in double that takes four times as long, of large models longer than a run.
    step = torch.randn(base.shape, generator=generator, dtype=drawn, device="cpu").to(kind)
    size = base.detach().to("cpu", kind).abs()
    if scale == "element":
        step *= torch.where(size > 0.0, size, 1e-3 * size.mean() if size.numel() else 1.0)
    elif size.numel():
        typical = float(size.square().mean().sqrt())
        step *= typical if 0.0 < typical < math.inf else 1.0
    return step.to(base.device, base.dtype)


def _sources(inputs: Sequence[Any], modules: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among inputs and modules that require grad."""
    found = [t for t in flatten_tree(list(inputs))[0] if isinstance(t, Tensor) and t.requires_grad]
    for module in [*modules, *(m for m in flatten_tree(list(inputs))[0] if isinstance(m, torch.nn.Module))]:
        found += [p for p in module.parameters() if p.requires_grad]
    return found
