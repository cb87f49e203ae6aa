"""The mean of a loss over perturbations, chunk by chunk: gradients are summed while the value is.

A chunk's graph lives as long as the chunk is differentiated, and no chunk is evaluated twice: a network that draws
random numbers or keeps running statistics does what it does in a loop over the same chunks. The backward pass
multiplies the sums. Where it has to be differentiable itself, it evaluates everything again, as a single graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core._torch import forward_mode_open, in_transform, pull_back
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.closure import Closure, stand_in, uncompiled
from quadgrad._core.errors import IntegrandError, SeveredGradientWarning, prescription, warn
from quadgrad._core.perturbations.again import RandomState, once_more
from quadgrad._core.perturbations.noise import Noise
from quadgrad._core.perturbations.transport import Transport
from quadgrad._core.rehearsal import current_rehearsal

__all__ = ["PerturbedMean"]

_Chunk = tuple[int, int, int, int]
"""Which perturbations of which items: first and behind the last, of each."""

_Evaluate = Callable[..., Tensor]


@dataclass(frozen=True)
class PerturbedMean:
    """The mean of a loss over perturbed items.

    Attributes
    ----------
    loss : callable
        ``loss(xs, targets)``, one number for each of ``xs``.
    x, target : Tensor, shape ``(B, ...)``
    transport, noise, shifts
        From points to perturbations, and the points of each item.
    n : int
        Perturbations of each item.
    size : int
        Perturbed items in one call of ``loss``, at most.
    """

    loss: Callable[..., Any]
    x: Tensor
    target: Tensor
    transport: Transport
    noise: Noise
    shifts: list[Tensor]
    n: int
    size: int

    def value(self) -> Tensor:
        """Return the mean, differentiable by whatever the loss depends on."""
        with WithoutAutocast() as unaided:  # gradients are not to be taken under autocast; loss has its own state
            mean = replace(self, loss=unaided.restore(self.loss))
            plain_torch = in_transform() or forward_mode_open() or current_rehearsal() is not None
            if plain_torch or not torch.is_grad_enabled():
                return mean._summed_up(mean.evaluate)
            return mean._with_gradients()

    @property
    def count(self) -> int:
        """Perturbed items in all."""
        return self.n * self.x.shape[0]

    def chunks(self) -> Iterator[_Chunk]:
        """Return the chunks in order: as many perturbations of all items as fit, or of some of them one."""
        count = self.x.shape[0]
        together = max(1, self.size // count)
        for j in range(0, self.n, together):
            for b in range(0, count, self.size) if self.size < count else (0,):
                yield j, min(self.n, j + together), b, min(count, b + self.size)

    def evaluate(self, chunk: _Chunk) -> Tensor:
        """Return the sum of a chunk's losses."""
        j, k, b, c = chunk
        points = self.noise.points([shift[b:c] for shift in self.shifts], j, k)
        perturbations = self.transport.perturbations(points).to(self.x.dtype)
        xs = (self.x[b:c] + perturbations).flatten(0, 1)
        targets = self.target[b:c]
        targets = targets.expand(k - j, *targets.shape).flatten(0, 1)
        try:
            losses = self.loss(xs, targets)
        except Exception as error:
            error.add_note(
                f"quadgrad: raised by loss(xs, targets) with xs of shape {tuple(xs.shape)}, {xs.dtype}, targets of "
                f"shape {tuple(targets.shape)}, {targets.dtype}. It calls the model itself: lambda xs, targets: "
                "torch.nn.functional.cross_entropy(model(xs), targets, reduction='none')"
            )
            raise
        return _checked(losses, xs).sum()

    def _summed_up(self, evaluate: _Evaluate, done: int = 0, state: RandomState | None = None) -> Tensor:
        """Return the mean in ordinary torch; the first ``done`` chunks were evaluated before, from ``state`` on."""
        parts: list[Tensor] = []
        chunks = list(self.chunks())
        if state is not None:
            with once_more(state):
                parts += map(evaluate, chunks[:done])
        parts += map(evaluate, chunks[done:])
        return self._mean(parts)

    def _mean(self, parts: list[Tensor]) -> Tensor:
        return (torch.stack([_widened(p) for p in parts]).sum() / self.count).to(parts[0].dtype)

    def _with_gradients(self) -> Tensor:
        state = RandomState.now(self.x.device)
        closure = Closure()
        names = [name for name in ("x", "target") if getattr(self, name).requires_grad]
        inputs: list[Tensor] = [getattr(self, name) for name in names]
        with torch.enable_grad():
            given = [stand_in(t, connected=False) for t in inputs]
        still = replace(self, **dict(zip(names, given, strict=True)))
        sums, parts, leaves = _Sums(), list[Tensor](), list[Tensor]()
        evaluate = closure.around(still.evaluate)
        for number, chunk in enumerate(self.chunks()):
            with torch.enable_grad(), uncompiled:
                part = cast(Tensor, evaluate(chunk))
            parts.append(part.detach())
            if not closure.separable:
                return self._summed_up(self.evaluate, number + 1, state)
            known = {id(t) for t in leaves}
            leaves += [t for t in closure.foreign(part, given) if id(t) not in known]
            if part.requires_grad:
                sums.add(part, [*given, *closure.stand_ins, *leaves], keep_graph=bool(leaves))
            del part  # with what is left of its graph
        value, found = self._mean(parts), sums.of([*given, *closure.stand_ins, *leaves])
        if "x" in names and found[0] is None:
            warn(_SEVERED + prescription(), SeveredGradientWarning)
        if all(s is None for s in found):
            return value
        # Views, which a closure around this one sees, unlike what a Function is given. What is sparse cannot pass.
        tensors = [*inputs, *closure.tensors]
        sparse = [s is not None and s.is_sparse for s in found]
        views = [t if skip else t.view_as(t) for t, skip in zip(tensors, sparse, strict=False)]
        still = replace(self, x=self.x.detach(), target=self.target.detach())
        return _Scaled.apply(_Recipe(still, names, closure.tensors, state, value), found, *views, *leaves)


_SEVERED = (
    "x requires grad, but the loss does not depend on it through torch: its gradient is zero. Look for .item(), "
    ".detach(), NumPy or a hard decision (argmax, >) in the loss"
)


class _Sums:
    """Sums of gradients over chunks, by the tensors with respect to which they are."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._own: set[int] = set()

    def add(self, part: Tensor, tensors: Sequence[Tensor], keep_graph: bool) -> None:
        """Add the gradients of one part; a graph that goes on behind the tensors is kept."""
        # The sum's and not the mean's: a small gradient would underflow in half precision.
        found = torch.autograd.grad(part, tensors, retain_graph=keep_graph or None, allow_unused=True)
        for tensor, gradient in zip(tensors, cast("tuple[Tensor | None, ...]", found), strict=True):
            if gradient is None:
                continue
            gradient, key = _widened(gradient), id(tensor)
            if key in self._own and not gradient.is_sparse:
                self._sums[key].add_(gradient)
            elif key in self._sums:
                self._sums[key] = self._sums[key] + gradient
                self._own.add(key)
            else:  # autograd may have given the same to others
                self._sums[key] = gradient

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the sums by these tensors, None where nothing depends on one."""
        return [self._sums.get(id(t)) for t in tensors]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: _Recipe, sums: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.recipe, ctx.sums = recipe, sums
        ctx.save_for_backward(*inputs)
        return recipe.value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        if torch.is_grad_enabled():
            with WithoutAutocast():  # as it was in the forward pass; loss has a state of its own
                return None, None, *ctx.recipe.differentiate(ctx.saved_tensors, gradient)
        scale = gradient / ctx.recipe.mean.count
        return None, None, *(None if s is None else s * scale.to(s.dtype) for s in ctx.sums)


@dataclass(frozen=True)
class _Recipe:
    """How to take a mean once more: its tensors of these names are given anew, and what loss closed over."""

    mean: PerturbedMean
    names: list[str]
    closed: list[Tensor]
    state: RandomState
    value: Tensor

    def differentiate(self, saved: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the products with the gradient as differentiable tensors.

        Raises
        ------
        IntegrandError
            If the loss is not what it was.
        """
        count = len(self.names)
        stop = count + len(self.closed)
        tensors = [*(stand_in(t, connected=True) for t in saved[:stop]), *saved[stop:]]
        mean = replace(self.mean, **dict(zip(self.names, tensors[:count], strict=True)))
        closure = Closure(zip(self.closed, tensors[count:stop], strict=True))
        with once_more(self.state), uncompiled:
            value = mean._summed_up(closure.around(mean.evaluate))  # pyright: ignore[reportPrivateUsage]
        close = float(torch.finfo(value.dtype).eps) ** 0.5
        now = value.detach()
        if not torch.allclose(now, self.value, rtol=close, atol=close, equal_nan=True):
            raise IntegrandError(
                f"the loss was {float(self.value):.9g} and, for a derivative of its gradient, {float(now):.9g} on "
                "the same noise: it depends on what changes from call to call and is no random number of torch"
            )
        return pull_back([value], tensors, [gradient], create_graph=True)


def _checked(losses: Any, xs: Tensor) -> Tensor:
    """Return the losses of a chunk, which must be one real number for each of ``xs``."""
    count = xs.shape[0]
    if not isinstance(losses, Tensor):
        raise IntegrandError(f"loss returned {type(losses).__name__}: it must return a tensor of shape ({count},)")
    if losses.shape != (count,):
        raise IntegrandError(
            f"loss returned shape {tuple(losses.shape)} for xs of shape {tuple(xs.shape)}: it must return one "
            f"number for each, shape ({count},)"
            + (", for example with reduction='none'" if losses.ndim == 0 else "")
        )
    if not losses.is_floating_point():
        raise IntegrandError(f"loss returned {losses.dtype}: it must return real floating numbers")
    return losses


def _widened(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, in which sums of many are formed."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
