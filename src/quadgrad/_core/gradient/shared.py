"""Derivatives that ranks share: each differentiates its own parts, and all hold the same bits of the whole.

The derivative of a sum over parts is again one, and is shared in the same way, as often as one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core._torch import pull_back
from quadgrad._core.closure import stand_in
from quadgrad._core.ranks import Ranks

__all__ = ["SharedGradient"]

Graph = Callable[[int, Sequence[Tensor], bool], tuple[list[Tensor], list[Tensor]]]
"""From a part, what it is given, and whether derivatives will be taken, to stand-ins for what it is given and the
part's gradient with respect to the first of them."""


@dataclass(frozen=True)
class SharedGradient:
    """The gradient of parts, each of which sees some rows of some tensors and all of others.

    Attributes
    ----------
    ranks : Ranks
        Who shares the parts.
    spans : sequence of (int, int)
        For each part which rows it sees of the tensors that are dealt: from the first to before the last. They
        follow each other.
    dealt : tuple of bool
        For each tensor of which the parts are made whether it is dealt.
    graph : callable
        The gradient of a part.
    outputs : int
        With respect to how many of these tensors, the first ones, it is.
    """

    ranks: Ranks
    spans: Sequence[tuple[int, int]]
    dealt: tuple[bool, ...]
    graph: Graph
    outputs: int

    def of(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient, differentiable if the grad mode says so."""
        if torch.is_grad_enabled():
            return list(cast("tuple[Tensor, ...]", _Gradient.apply(self, *inputs)))
        return self.compute(inputs)

    def differentiate(self, saved: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return the same of parts whose last tensor is what their gradient is multiplied by."""
        return self.of([*saved, gradient])

    def compute(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient without derivatives; what is dealt is joined, what is not is added up."""
        places = [i for i in range(self.outputs) if self.dealt[i]]
        common = [i for i in range(self.outputs) if not self.dealt[i]]
        own: dict[int, list[Tensor]] = {}

        def part(number: int) -> list[Tensor]:
            _, gradient = self.graph(number, self._given(number, inputs), False)
            own[number] = [gradient[i].detach().cpu() for i in places]
            return [gradient[i] for i in common]

        with self.ranks as ranks:
            added = ranks.fold(len(self.spans), part, lambda: [torch.zeros_like(inputs[i]) for i in common])
            each = ranks.gather(own) if places else []
        found = dict(zip(common, added, strict=True))
        rows = {number: row for one in each for number, row in one.items()}
        for column, i in enumerate(places):
            joined = torch.cat([rows[number][column] for number in range(len(self.spans))])
            found[i] = joined.to(inputs[i].device)
        return [found[i] for i in range(self.outputs)]

    def _given(self, number: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return what a part sees."""
        low, high = self.spans[number]
        return [t[low:high] if dealt else t for t, dealt in zip(inputs, self.dealt, strict=True)]

    def derivative(self) -> SharedGradient:
        """Return the gradient of this one's product with weights, which are further tensors of the parts."""
        count = len(self.dealt)

        def graph(number: int, given: Sequence[Tensor], connected: bool) -> tuple[list[Tensor], list[Tensor]]:
            variables, products = self.graph(number, given[:count], True)
            with torch.enable_grad():
                weights = [stand_in(t, connected=False) for t in given[count:]]
            chosen = [(p, w) for p, w in zip(products, weights, strict=True) if p.requires_grad]
            return [*variables, *weights], gradient_of(chosen, variables, connected)

        return SharedGradient(self.ranks, self.spans, self.dealt + self.dealt[: self.outputs], graph, count)


def gradient_of(pairs: list[tuple[Tensor, Tensor]], variables: list[Tensor], connected: bool) -> list[Tensor]:
    """Return the gradient of the sum of products of outputs and weights; zero where there is none."""
    if not pairs:
        return [torch.zeros_like(t) for t in variables]
    outputs, weights = zip(*pairs, strict=True)
    # The graph belongs to whoever made it, and may be wanted again.
    gradients = pull_back(outputs, variables, weights, retain_graph=True, create_graph=connected)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(variables, gradients, strict=True)]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: SharedGradient, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        ctx.save_for_backward(*inputs)
        return tuple(gradient.compute(inputs))

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> Any:
        return None, *ctx.gradient.derivative().of([*ctx.saved_tensors, *weights])
