"""The processes that share a call: each computes some parts of a sum, and all hold the same bits of the whole.

Parts are fixed before it is known how many processes there are, and added in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["PARTS", "Ranks"]

PARTS = 64
"""Parts of a sum: so many processes can share one. Their sums are held one at a time."""

Compute = Callable[[int], Sequence[Tensor]]


class Ranks:
    """The ranks of a process group; one alone if there is no group.

    Parameters
    ----------
    group : ProcessGroup, optional
        Of ``torch.distributed``, whose ranks all make the same call.
    device : torch.device
        Where the tensors are.

    Raises
    ------
    ValueError
        If the group's backend cannot send tensors of this device, or this process is not in the group.
    """

    def __init__(self, group: Any = None, device: torch.device | None = None) -> None:
        self.group = group
        self.count, self.rank = 1, 0
        if group is None:
            return
        self.count, self.rank = distributed.get_world_size(group), distributed.get_rank(group)
        if self.rank < 0:
            raise ValueError("group: this process is not one of its ranks")
        backend = distributed.get_backend(group)
        if device is not None and device.type == "cpu" and backend == "nccl":
            raise ValueError(
                "group: its backend is nccl, which sends tensors of CUDA devices only, and the integral is on the "
                "CPU. Move its limits and arguments to the device, or make the group with backend='gloo'"
            )

    @property
    def alone(self) -> bool:
        """Whether no other process takes part."""
        return self.group is None

    def fold(self, count: int, compute: Compute, like: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Add up parts in their order: the same bits on every rank, however many there are.

        Parameters
        ----------
        count : int
            The number of parts.
        compute : callable
            Returns the tensors of a part; called for this rank's parts alone, in ascending order.
        like : callable
            Returns tensors of the same shapes, for what another rank computes.

        Raises
        ------
        Exception
            What ``compute`` raised here, or on the first rank on which it did: then on all.
        """
        whole: list[Tensor] | None = None
        for first in range(0, count, self.count):
            for part in self._exchange(min(self.count, count - first), first, compute, like):
                whole = list(part) if whole is None else [a + b for a, b in zip(whole, part, strict=True)]
        return list(like()) if whole is None else whole

    def _exchange(
        self, count: int, first: int, compute: Compute, like: Callable[[], Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]:
        """Return the parts from ``first`` on, one of each rank."""
        if self.alone:
            return [compute(first)]
        own, error = None, None
        if self.rank < count:
            try:
                own = compute(first + self.rank)
            except Exception as raised:  # which all ranks raise, instead of waiting for this one
                error = raised
        self.raise_together(error)
        parts: list[Sequence[Tensor]] = []
        for rank in range(count):
            tensors = own if rank == self.rank and own is not None else like()
            parts.append([self._broadcast(tensor, rank) for tensor in tensors])
        return parts

    def _broadcast(self, tensor: Tensor, rank: int) -> Tensor:
        source = distributed.get_global_rank(self.group, rank)
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        sent = real.detach().contiguous()
        distributed.broadcast(sent, source, group=self.group)
        return torch.view_as_complex(sent) if tensor.is_complex() else sent

    def raise_together(self, error: Exception | None) -> None:
        """Raise on all ranks what was raised on the first of those where something was."""
        if self.alone:
            if error is not None:
                raise error
            return
        text = None if error is None else f"{type(error).__name__}: {error}"
        reports = self.gather(text)
        if error is not None:
            raise error
        for rank, report in enumerate(reports):
            if report is not None:
                raise RuntimeError(f"rank {rank} of the group raised {report}")

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank has: something small that pickles."""
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def refuse_differences(self, tensors: dict[str, Tensor]) -> None:
        """Raise on all ranks if they were given different tensors.

        Raises
        ------
        ValueError
            Naming the first of them that differs, and the ranks.
        """
        if self.alone:
            return
        marks = {name: _fingerprint(t) for name, t in tensors.items()}
        each = self.gather(marks)
        for name in marks:
            others = [rank for rank, other in enumerate(each) if other.get(name) != each[0].get(name)]
            if others:
                raise ValueError(
                    f"{name} differs between the ranks of the group ({others} from rank 0): a group shares one "
                    "integral, so every rank passes the same limits and arguments. Ranks with data of their own "
                    "need no group"
                )


def _fingerprint(tensor: Tensor) -> tuple[Any, ...]:
    """Return something small that differs if tensors do."""
    import hashlib

    plain = tensor.detach().cpu().contiguous()
    return (
        tuple(plain.shape),
        str(plain.dtype),
        hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest(),
    )
