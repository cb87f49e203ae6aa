"""Count what a device would be asked for: operations, and reads that the host has to wait for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Counting"]

READS = {"_local_scalar_dense", "equal", "is_nonzero", "item"}
"""Operators whose result the host waits for."""

CONVERSIONS = {"tolist", "numpy", "cpu", "__array__"}
"""Methods of tensors that copy to the host: on the CPU they run no operator."""

SIZES = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "bincount"}
"""Operators whose output has a size that only the device knows."""

FREE = {
    "alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as_real",
    "_reshape_alias", "_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
}  # fmt: skip
"""Operators that start nothing on a device: views, and memory that is not written."""


class Counting(TorchDispatchMode):
    """Count operators while entered; the compiled kernel does not run then.

    Attributes
    ----------
    operations : Counter
        Operators by name, views and memory that is not written among them.
    reads : Counter
        What the host waits for, by name: numbers, and sizes that only the device knows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self._conversions = _Conversions(self.reads)
        self._paused = False

    def __enter__(self) -> Counting:
        self._conversions.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._conversions.__exit__(*exception)

    @property
    def launches(self) -> int:
        """How many operators start work on a device."""
        return sum(count for name, count in self.operations.items() if name not in FREE | READS)

    def uncounted(self, f: Any) -> Any:
        """Return a function whose own operations are not counted."""

        def call(*args: Any) -> Any:
            self._paused, before = True, self._paused
            try:
                return f(*args)
            finally:
                self._paused = before

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self._paused:
            if name in READS or name in SIZES or (name in ("index", "index_put_") and _has_mask(args[1])):
                self.reads[name] += 1
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    """Whether an index is a mask, whose number of true entries has to be read."""
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


class _Conversions(TorchFunctionMode):
    """Counts the methods that copy a tensor to the host."""

    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").rpartition(".")[2]
        if name in CONVERSIONS:
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))
