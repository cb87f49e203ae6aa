"""Keep the blocks of nodes on which quad calls an integrand, to time the integrand alone on exactly these."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Recorder"]


@dataclass
class Recorder:
    """An integrand that keeps a copy of everything it is called with.

    Attributes
    ----------
    f : callable
        The integrand, ``f(x, *args)`` with tensors only.
    blocks : list of tuple of Tensor
        ``(x, *args)`` of each call, in the memory layout in which they arrived.
    """

    f: Callable[..., Tensor]
    blocks: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, *block: Tensor) -> Tensor:
        self.blocks.append(tuple(copy_layout(tensor) for tensor in block))
        return self.f(*block)

    def drop_probe(self) -> None:
        """Forget the first call if it was the probe: one node, which belongs to no round."""
        if self.blocks[0][0].numel() == 1:
            self.blocks.pop(0)

    @property
    def nodes(self) -> int:
        """How many nodes were asked for in all."""
        return sum(block[0].numel() for block in self.blocks)

    def evaluate(self, f: Callable[..., Tensor] | None = None) -> None:
        """Call the integrand, or another one, on all blocks."""
        f = f or self.f
        for block in self.blocks:
            f(*block)

    def evaluate_cached(self) -> float:
        """Call the integrand twice on each block; return the seconds of the second calls.

        Read one after the other, the blocks come from main memory; in quad they were written a moment
        before they are used.
        """
        seconds = 0.0
        for block in self.blocks:
            self.f(*block)
            start = time.perf_counter()
            self.f(*block)
            seconds += time.perf_counter() - start
        return seconds


def copy_layout(tensor: Tensor) -> Tensor:
    """Copy a tensor; dimensions that repeat the same memory still do."""
    core = tensor
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            core = core.narrow(dim, 0, 1)
    return core.clone().expand(tensor.shape)
