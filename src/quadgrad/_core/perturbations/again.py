"""Calling a function that draws random numbers and keeps statistics once more, as if it had been called once.

Dropout then drops the same, and a batch normalisation's running statistics are what the first call left.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

__all__ = ["RandomState", "once_more"]

NORMALISATIONS = ("batch_norm", "instance_norm")
"""Functions that write running statistics into their arguments, which their names do not say."""


@dataclass(frozen=True)
class RandomState:
    """Of the global generators of the host and of a device; they are read, and put back."""

    device: torch.device
    states: tuple[Tensor, ...]

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return the state in which they are."""
        states = [torch.get_rng_state()]
        if device.type != "cpu":
            states.append(torch.get_device_module(device).get_rng_state(*_named(device)))
        return cls(device, tuple(states))

    def put_back(self) -> None:
        """Let them go on from here."""
        torch.set_rng_state(self.states[0])
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(self.states[1], *_named(self.device))


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of those there is one


@contextmanager
def once_more(state: RandomState) -> Generator[None]:
    """Return a context in which random numbers are those after ``state``; it leaves no trace when it ends."""
    now = RandomState.now(state.device)
    state.put_back()
    written = _Written()
    try:
        with written:
            yield
    finally:
        now.put_back()
        written.put_back()


class _Written(TorchFunctionMode):
    """Keeps the values of tensors without gradient before they are first written to in place.

    Those that the function made itself are among them: they are small, or rare.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in NORMALISATIONS:
            # Autograd keeps running statistics: copies are written to, as values put back would not be those kept.
            args, kwargs = tuple(map(_statistics, args)), {name: _statistics(v) for name, v in kwargs.items()}
        elif name.startswith("__i") or name == "__setitem__" or name[-1:] == "_" and name[-2:] != "__":
            self._keep(args[0])
        return func(*args, **kwargs)

    def put_back(self) -> None:
        """Write the values back."""
        with torch.no_grad():
            for tensor, value in self._before.values():
                tensor.copy_(value)

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and not tensor.requires_grad and id(tensor) not in self._before:
            self._before[id(tensor)] = tensor, tensor.clone()


def _statistics(value: Any) -> Any:
    """Return a copy of what may be running statistics, anything else as it is."""
    plain = isinstance(value, Tensor) and value.ndim == 1 and not value.requires_grad
    return value.clone() if plain else value
