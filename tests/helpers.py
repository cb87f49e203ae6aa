"""What several test files need: the naive integral, recorders of what f saw, comparisons of plans."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import quadgrad as qg
from quadgrad._core.search.kernel.memory import spare

t64 = partial(torch.tensor, dtype=torch.float64)
Function = Callable[..., Any]


def leaf(value: Any) -> Tensor:
    """Return a float64 tensor that requires grad."""
    return torch.as_tensor(value, dtype=torch.float64).clone().requires_grad_()


def integral(f: Function, a: Any, b: Any, *args: Any, **options: Any) -> Tensor:
    """Return the value of ``qg.quad`` in float64, at a tolerance tight enough for finite differences."""
    options.setdefault("rtol", 1e-12)
    a, b = (torch.as_tensor(limit, dtype=torch.float64) for limit in (a, b))
    return qg.quad(f, a, b, args, **options).value


def declaring(mode: qg.GradientMode, params: Any) -> qg.GradientMode:
    """Return the mode with what f closes over, if it is one that asks for it."""
    return replace(mode, params=params) if isinstance(mode, qg.Resolve) else mode


def naive_sum(
    f: Function, plan: qg.Plan, a: Tensor, b: Tensor, args: Sequence[Tensor] = (), points: Any = None
) -> Tensor:
    """Return the unrolled sum over a plan's nodes, without anything of quadgrad's replay: the oracle.

    Autograd sees every operation of it; ``f`` must have no event dimensions.
    """
    batch = torch.Size(plan.batch_shape)
    a, b = a.expand(batch), b.expand(batch)
    columns = [arg.expand(batch).reshape(-1)[plan.owner] for arg in args]
    terms = plan.weights(a, b, points) * f(plan.nodes(a, b, points), *columns)
    total = torch.zeros(batch.numel(), dtype=terms.dtype).index_add(0, plan.owner, terms.sum(0))
    return total.reshape(batch) * torch.sign(b - a)


@dataclass
class Recorder:
    """An integrand that remembers every x it saw and how it was called."""

    f: Function
    seen: list[Tensor] = field(default_factory=list)
    args: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, x: Tensor, *args: Any) -> Any:
        self.seen.append(x.detach().clone())
        self.args.append(args)
        return self.f(x, *args)

    @property
    def calls(self) -> int:
        return len(self.seen)

    @property
    def largest_call(self) -> int:
        """The number of nodes in the largest single call."""
        return max(x.numel() for x in self.seen)

    @property
    def nodes(self) -> Tensor:
        """Every x seen, in one dimension."""
        return torch.cat([x.reshape(-1) for x in self.seen])


class PeakMemory(TorchDispatchMode):
    """Count the bytes of all storages alive that were made inside; ``peak`` is the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        spare.clear()  # what an earlier search has left was made before
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)


def same_plan(one: qg.Plan, other: qg.Plan) -> bool:
    """Whether two plans hold the same cells, to the last bit."""
    names = ("owner", "piece", "start", "stop")
    return one.rule == other.rule and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


def cells_of(plan: qg.Plan, element: int) -> Tensor:
    """Return piece, start and stop of the cells of one element of the batch, as rows."""
    mine = plan.owner == element
    return torch.stack((plan.piece[mine].to(plan.start.dtype), plan.start[mine], plan.stop[mine]))


def relative_error(value: Any, exact: Any) -> float:
    """Return the largest error relative to the exact value (absolute where that is 0)."""
    value, exact = value.detach(), torch.as_tensor(exact, dtype=value.dtype).detach()
    scale = torch.where(exact == 0, torch.ones_like(exact.abs()), exact.abs())
    return float(((value - exact).abs() / scale).max())
