"""How results, plans and integrators print: a heading and a few facts, whatever the batch."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from quadgrad._core.lanes import plain

__all__ = ["Printed", "counted", "show_numbers"]

FEW = 6
"""So many numbers are shown one by one."""


class Printed(ABC):
    """What prints in a few lines, and as a table in a notebook."""

    @abstractmethod
    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return a heading, and what is to be told, by name."""

    def __repr__(self) -> str:
        heading, facts = self._facts()
        width = max(map(len, facts), default=0) + 2
        return "\n".join([heading, *(f"{name:>{width}}: {fact}" for name, fact in facts.items())])

    def _repr_html_(self) -> str:
        heading, facts = self._facts()
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in facts.items())
        return f"<table><caption>{html.escape(heading)}</caption>{rows}</table>"


def counted(number: int, what: str) -> str:
    """Return the number with its noun."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def show_numbers(tensor: Tensor, digits: int) -> str:
    """Return the numbers of a tensor if they are few, else its shape and their range."""
    numbers = plain(tensor)
    if 0 < numbers.numel() <= FEW:
        return _nested(numbers.tolist(), digits)
    shape = f"{tuple(numbers.shape)}, {str(numbers.dtype).removeprefix('torch.')}"
    sizes = (numbers.abs() if numbers.is_complex() else numbers)[numbers.isfinite()]
    if sizes.numel() == 0:
        return f"shape {shape}"
    low, high = torch.aminmax(sizes)
    return f"{'modulus ' * numbers.is_complex()}{low:.{digits}g} to {high:.{digits}g}, shape {shape}"


def _nested(numbers: object, digits: int) -> str:
    if isinstance(numbers, list):
        return f"[{', '.join(_nested(number, digits) for number in numbers)}]"
    return f"{numbers:.{digits}g}"
