"""All that a run may change, found, and put back before the next one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from quadgrad.doctor.trace import Met
from quadgrad.doctor.wide import NARROW, wider

__all__ = ["State"]

_DEPTH = 4
"""So many steps from the function and its inputs things are looked for that have a state."""

_PLAIN = (int, float, str, bytes, bool, complex, type(None), Tensor, np.ndarray, type, ModuleType, torch.dtype)


class State:
    """What is put back before each run.

    The tensors that are varied, their ``.grad``, the buffers of modules, what optimisers keep, the generators of
    random numbers (torch's, NumPy's and Python's, global ones and those found), and what lists, dictionaries and
    objects within reach hold (a cache that a run fills is empty again for the next one).
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.sources: list[Tensor] = []
        self._originals: list[tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]] = []
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}
        self._wide = False
        self._global_random()
        for root in roots:
            self._look(root, _DEPTH)

    # ------------------------------------------------------------------------------------- what is varied

    def add_source(self, met: Met) -> None:
        """Vary a tensor from now on, and put it back to what it was when it was met."""
        if any(met.tensor is t for t in self.sources):
            return
        self.sources.append(met.tensor)
        self._originals.append((met.tensor, met.tensor.data, met.value, met.gradient, met.kept))
        self.bases = [wider(base) if self._wide else base.clone() for _, _, base, _, _ in self._originals]

    bases: list[Tensor] = []
    """Where the sources stand at the point that is examined."""

    def widen(self) -> None:
        """Run in double precision from now on."""
        self._wide = True
        self.bases = [wider(base) for base in self.bases]

    def narrow(self) -> None:
        """Run as the program is written again."""
        self._wide = False
        self.bases = [base.clone() for _, _, base, _, _ in self._originals]

    # ------------------------------------------------------------------------------------- putting back

    def restore(self, steps: Sequence[Tensor] | None = None, t: float = 0.0) -> None:
        """Put everything back, the sources moved by ``t`` times these steps."""
        for undo in reversed(self._undo):
            undo()
        with torch.no_grad():
            for i, (tensor, original, _, gradient, kept) in enumerate(self._originals):
                value = self.bases[i] if steps is None or t == 0.0 else torch.add(self.bases[i], steps[i], alpha=t)
                _put(tensor, original, value)
                if tensor.is_leaf:
                    if gradient is not None and kept is not None:
                        gradient.copy_(kept)
                    tensor.grad = gradient if not self._wide else None
            if self._wide:
                self._widen_buffers()

    def close(self) -> None:
        """Leave everything as it was found."""
        self._wide = False
        for undo in reversed(self._undo):
            undo()
        with torch.no_grad():
            for tensor, original, base, gradient, kept in self._originals:
                _put(tensor, original, base)
                if tensor.is_leaf:
                    if gradient is not None and kept is not None:
                        gradient.copy_(kept)
                    tensor.grad = gradient

    def _widen_buffers(self) -> None:
        for thing in self._seen.values():
            if isinstance(thing, Module):
                for name, buffer in list(thing.named_buffers(recurse=False)):
                    if buffer.dtype in NARROW:
                        setattr(thing, name, wider(buffer))

    # ------------------------------------------------------------------------------------- finding

    def see_module(self, module: Module) -> None:
        """Remember the buffers of a module that is about to run, and of those in it."""
        for each in module.modules():
            if id(each) not in self._seen:
                self._seen[id(each)] = each
                self._keep_buffers(each)
                self._keep_attributes(each)
                if self._wide:
                    self._widen_buffers()

    def see_optimiser(self, optimiser: Optimizer) -> None:
        """Remember the state of an optimiser that is about to step."""
        if id(optimiser) in self._seen:
            return
        self._seen[id(optimiser)] = optimiser
        kept = {key: {k: _copied(v) for k, v in entry.items()} for key, entry in optimiser.state.items()}
        groups = [dict(group) for group in optimiser.param_groups]

        def undo() -> None:
            optimiser.state.clear()
            for key, entry in kept.items():
                optimiser.state[key] = {k: _copied(v) for k, v in entry.items()}
            for group, was in zip(optimiser.param_groups, groups, strict=True):
                group.update(was)

        self._undo.append(undo)

    def keep_generator(self, generator: Any, state: Any = None) -> None:
        """Remember the state of a generator of random numbers, or this one, of an earlier time."""
        if id(generator) in self._seen:
            return
        self._seen[id(generator)] = generator
        if isinstance(generator, torch.Generator):
            state = generator.get_state() if state is None else state
            self._undo.append(lambda: _ignore(generator.set_state(state)))
        elif isinstance(generator, np.random.Generator):
            inner = generator.bit_generator.state
            self._undo.append(lambda: setattr(generator.bit_generator, "state", inner))
        elif isinstance(generator, np.random.RandomState):
            legacy = generator.get_state()
            self._undo.append(lambda: generator.set_state(legacy))
        else:
            python = generator.getstate()
            self._undo.append(lambda: generator.setstate(python))

    def _global_random(self) -> None:
        self.keep_generator(torch.default_generator)
        legacy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
        self._undo.append(lambda: np.random.set_state(legacy))  # noqa: NPY002
        self._undo.append(lambda: random.setstate(python))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states = torch.cuda.get_rng_state_all()
            self._undo.append(lambda: torch.cuda.set_rng_state_all(states))

    def _look(self, thing: Any, depth: int) -> None:
        if depth < 0 or isinstance(thing, _PLAIN) or id(thing) in self._seen:
            return
        if isinstance(thing, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            self.keep_generator(thing)
        elif isinstance(thing, Module):
            self.see_module(thing)
            self._look_into(thing.__dict__.values(), depth)
        elif isinstance(thing, Optimizer):
            self.see_optimiser(thing)
        elif isinstance(thing, FunctionType | MethodType | functools.partial):
            self._seen[id(thing)] = thing
            self._look_into(_reached(thing), depth)
        elif isinstance(thing, dict | list | set):
            self._seen[id(thing)] = thing
            self._keep_container(thing)
            self._look_into(thing.values() if isinstance(thing, dict) else thing, depth)
        elif isinstance(thing, tuple):
            self._look_into(thing, depth)
        elif _is_object(thing):
            self._seen[id(thing)] = thing
            self._keep_attributes(thing)
            self._look_into(thing.__dict__.values(), depth)

    def _look_into(self, things: Iterable[Any], depth: int) -> None:
        for each in list(things)[:1000]:
            self._look(each, depth - 1)

    def _keep_container(self, thing: Any) -> None:
        kept = thing.copy()

        def undo() -> None:
            thing.clear()
            thing.extend(kept) if isinstance(thing, list) else thing.update(kept)

        self._undo.append(undo)

    def _keep_buffers(self, module: Module) -> None:
        kept = [(name, b, b.detach().clone()) for name, b in module.named_buffers(recurse=False)]

        def undo() -> None:
            with torch.no_grad():
                for name, buffer, copy in kept:
                    buffer.data.copy_(copy)
                    setattr(module, name, buffer)

        if kept:
            self._undo.append(undo)

    def _keep_attributes(self, thing: Any) -> None:
        kept = {k: v for k, v in thing.__dict__.items() if k not in ("_buffers", "_parameters", "_modules")}

        def undo() -> None:
            for name in [k for k in thing.__dict__ if k not in kept and k[:1] + k[-1:] != "__"]:
                if name not in ("_buffers", "_parameters", "_modules"):
                    del thing.__dict__[name]
            thing.__dict__.update(kept)

        self._undo.append(undo)


def _put(tensor: Tensor, original: Tensor, value: Tensor) -> None:
    """Let a tensor have this value, in its own memory where the value fits: others may look into it."""
    try:
        original.copy_(value)
    except RuntimeError:  # several elements share one place
        tensor.data = value.clone()
        return
    tensor.data = original if value.dtype == original.dtype else value.clone()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _ignore(value: Any) -> None:
    """Return nothing."""


def _is_object(thing: Any) -> bool:
    """Whether something is an object of a class that somebody wrote, with attributes."""
    return hasattr(thing, "__dict__") and type(thing).__module__.partition(".")[0] not in (
        "torch", "numpy", "builtins", "scipy", "quadgrad", "threading", "logging", "pytest", "_pytest",
        "tensorflow",
    )  # fmt: skip


def _reached(function: Any) -> list[Any]:
    """Return what a function closes over, was made from, and reads of its module."""
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    found = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    found += list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    names = function.__code__.co_names
    return found + [function.__globals__[name] for name in names if name in function.__globals__]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
