"""What a wrapped function inside an integrand tells the integral: how wrong its values and its derivatives are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core._torch import carries_derivative, in_transform
from quadgrad._core.gradient.derivative import as_reals
from quadgrad._core.gradient.rows import weighted_rows, zeros
from quadgrad._core.lanes import plain
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad.bridge.contract import array_of
from quadgrad.bridge.task import Task

__all__ = ["UncertainCall", "tell_integral"]


@dataclass(frozen=True)
class UncertainCall:
    """One call of a wrapped function; see :class:`quadgrad._core.nesting.Uncertain`."""

    task: Task
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    @property
    def errors(self) -> list[Tensor | None]:
        """How wrong the outputs are, where that was declared."""
        noise = self.task.options.noise
        return [None if noise is None else _off(y, noise) for y in self.outputs]

    def gradient_errors(self, cotangents: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return how wrong the gradients by tensors are, from the bars of those by the inputs."""
        errors = [zeros(t) for t in tensors]
        wanted = [i for i, x in enumerate(self.inputs) if x.requires_grad]
        arrays = [array_of(x) for x in self.inputs]
        rows = [g.detach().cpu().numpy() for g in cotangents]
        bars = self.task.gradient_error(wanted, arrays, rows, [self.inputs[i].dtype for i in wanted])
        for i, bar in zip(wanted, bars or (), strict=False):
            source, known = self.inputs[i], torch.from_numpy(bar).to(self.inputs[i].device)
            for k, tensor in enumerate(tensors):
                errors[k] = errors[k] + weighted_rows(as_reals(source, 0).flatten(), tensor, known.flatten())
        return errors


def tell_integral(task: Task, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Tell the integral inside whose integrand a function was called, if there is one."""
    record = current_record()
    if record is None:
        return
    noise = task.options.noise
    if noise is not None:
        for y in outputs:
            value = plain(y).detach()
            record.hear(_off(value, noise), value, {})
    if record.uncertain is not None and any(map(carries_derivative, outputs)):
        _show(record, UncertainCall(task, inputs, outputs))


def _show(record: InnerRecord, call: UncertainCall) -> None:
    if not in_transform():
        assert record.uncertain is not None
        record.uncertain.append(call)
    elif call.task.options.given is None:
        record.hidden = True


def _off(value: Tensor, noise: tuple[float, float]) -> Tensor:
    """Return how wrong values are, by a relative and an absolute noise level."""
    relative, absolute = noise
    return relative * value.detach().abs().double() + absolute
