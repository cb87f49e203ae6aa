"""The calling contract: how f is called, what it may return, and what is said when it does not.

Search and replay call :class:`Integrand`; they never call the user's function themselves. It knows
nothing of limits, rules or tolerances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import is_batched, within_transforms
from quadgrad._core.advice import Called, remedy, spread
from quadgrad._core.errors import IntegrandError
from quadgrad._core.lanes import Lanes, plain

__all__ = ["Argument", "Element", "Integrand", "element", "make_argument", "take_arguments", "tensor_and_ndim"]


@dataclass(frozen=True, eq=False)
class Element:
    """A tensor whose last ``ndim`` dimensions belong to each element of the batch; see :func:`element`."""

    tensor: Tensor
    ndim: int


def element(t: Tensor, ndim: int) -> Element:
    """Mark an argument that carries a vector, matrix or sequence for each element of the batch.

    Parameters
    ----------
    t : Tensor, shape ``(*batch, *element)``
        The leading dimensions broadcast with the batch, the last ``ndim`` arrive whole in f.
    ndim : int
        How many trailing dimensions belong to one element.

    Raises
    ------
    TypeError
        If ``t`` is no tensor and no array can be made of it, as of rows of several lengths.
    ValueError
        If ``t`` has fewer than ``ndim`` dimensions or ``ndim`` is negative.

    Examples
    --------
    A polynomial with three coefficients for each of two integrals:

    >>> import torch, quadgrad as qg
    >>> c = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])
    >>> f = lambda x, c: (c * x[..., None] ** torch.arange(3)).sum(-1)
    >>> qg.quad(f, 0.0, 1.0, args=(qg.element(c, ndim=1),)).value.round(decimals=4)
    tensor([2., 1.])
    """
    if not isinstance(t, Tensor):
        try:
            t = torch.as_tensor(t, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"element: no tensor can be made of {type(t).__name__}: {error}. Stack tensors, torch.stack(rows); "
                "rows of several lengths are first filled up to one, with a weight of 0 in a second element"
            ) from None
    if not 0 <= ndim <= t.ndim:
        raise ValueError(f"element: ndim={ndim} does not fit a tensor of shape {tuple(t.shape)}")
    return Element(t, ndim)


def take_arguments(args: Any) -> tuple[Any, ...]:
    """Return what a caller passed as arguments, one or several, arrays as tensors of the host."""
    args = args if isinstance(args, tuple | list) else (args,)
    plain = [
        v if isinstance(v, Tensor) or not hasattr(v, "__array__") else torch.as_tensor(v, device="cpu")
        for v in args
    ]
    return tuple(plain)


def tensor_and_ndim(value: Any) -> tuple[Any, int]:
    """Return what is passed to f, and how many of its last dimensions belong to each element of the batch."""
    return (value.tensor, value.ndim) if isinstance(value, Element) else (value, 0)


@dataclass(slots=True)
class Argument:
    """One of ``args``, flattened over the batch: a number, or ``(batch or 1, *element)``."""

    value: Any
    shared: bool
    element_ndim: int = 0

    def at(self, owner: Tensor | slice) -> Any:
        """Return the argument of each cell's integral, shape ``(n, *element)``, or the shared one."""
        if self.shared:
            return self.value
        return self.value[owner] if isinstance(owner, slice) else self.value.index_select(0, owner)

    def one(self, rank: int, index: int = 0) -> Any:
        """Return the argument of one integral with ``rank`` leading dimensions of size 1."""
        if not isinstance(self.value, Tensor):
            return self.value
        if self.value.ndim == 0 == rank:
            return self.value
        core = tuple(self.value.shape[self.value.ndim - self.element_ndim :])
        if self.value.shape[:1] == (0,):
            # An empty batch has no first integral; any value shows f's output shape, and whether it has a gradient.
            return self.value.new_ones((1,) * rank + core) + _nothing_of(self.value)
        one = self.value if self.shared else self.value[index : index + 1]
        return one.reshape((1,) * rank + core)


def _nothing_of(value: Tensor) -> Tensor:
    """Return 0, of shape ``(1,)``, with the derivatives of what was computed from ``value``, of any order.

    No scalar: in no lanes, as under ``jacfwd`` by an empty tensor, torch forms neither sums nor products of these.
    """
    return value.flatten()[:0].exp().sum(0, keepdim=True)


def make_argument(given: Any, batch_shape: tuple[int, ...]) -> Argument:
    """Broadcast an argument over the batch and flatten it."""
    tensor, ndim = tensor_and_ndim(given)
    if not isinstance(tensor, Tensor):
        return Argument(given, shared=True)
    if tensor.ndim == 0:
        return Argument(tensor, shared=True)
    split = tensor.ndim - ndim
    lead, core = tensor.shape[:split], tensor.shape[split:]
    if all(size == 1 for size in lead):
        return Argument(tensor.reshape((1, *core) if core else ()), shared=True, element_ndim=ndim)
    tensor = tensor.expand((*batch_shape, *core)).reshape((math.prod(batch_shape), *core))
    return Argument(tensor, shared=False, element_ndim=ndim)


@dataclass(frozen=True)
class Captured:
    """Calls of an f that captures tensors with lanes: each lane gets the nodes of its own integrals, padded.

    Attributes
    ----------
    lanes : Lanes
    batch : int
        The number of integrals in each lane.
    rest : Tensor, shape (lanes, *point)
        A harmless point of each lane, for one that no node belongs to.
    block : int
        Nodes at which f is called at a time, those of all lanes and the padding counted.
    first : int
        The number of the integral from which owners are counted.
    """

    lanes: Lanes
    batch: int
    rest: Tensor
    block: int
    first: int = 0

    def evaluate(self, integrand: Integrand, x: Tensor, owner: Tensor | slice) -> Tensor:
        """Return the integrand at x of shape ``(m, n, *point)``, in the order of the columns."""
        count, device, n = self.lanes.count, x.device, x.shape[1]
        whose = owner
        if isinstance(whose, slice):  # of one integral alone, or of one for each column
            whose = torch.arange(whose.start, whose.stop, device=device).expand(n)
        lane = (whose + self.first) // self.batch
        counts = torch.bincount(lane, minlength=count)
        order = lane.argsort(stable=True)
        # The place of each column among those of its lane, and for each lane a column to pad with: its own first
        # one, where f is as finite as it is anywhere, or else the harmless point.
        begins = counts.cumsum(0) - counts
        place = torch.empty_like(order).index_copy(0, order, torch.arange(n, device=device) - begins[lane[order]])
        own = order[begins.clamp_max(n - 1)]
        if integrand.stack is not None:
            # search drops what it is padded with, and has the arguments of a tile alone
            spare = torch.where(counts > 0, own, 0)
        else:
            lanes = torch.arange(count, device=device)
            spare = torch.where(counts > 0, own, n + lanes)
            x = torch.cat((x, self.rest.to(x.dtype).expand(x.shape[0], *self.rest.shape)), dim=1)
            whose = torch.cat((whose, lanes * self.batch))
        step = max(1, self.block // (count * x.shape[0]))
        parts: list[Tensor] = []
        for low in range(0, int(counts.max()), step):
            here = (place >= low) & (place < low + step)
            width = int((counts.max() - low).clamp_max(step))
            columns = spare[:, None].repeat(1, width)
            mine = here.nonzero().squeeze(1)
            columns[lane[mine], place[mine] - low] = mine
            y = self._in_lanes(integrand, x[:, columns], whose[columns])
            parts.append(y[:, lane[mine], place[mine] - low])
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1)[:, (place // step).argsort(stable=True).argsort()]

    def _in_lanes(self, integrand: Integrand, x: Tensor, owner: Tensor) -> Tensor:
        """Return f at x ``(m, lanes, w, *point)``, each lane's own columns."""
        within = nullcontext() if integrand.stack is None else within_transforms(integrand.stack)
        with within:
            args = [
                a.value if a.shared else self.lanes.lower(a.value[owner.flatten()].unflatten(0, owner.shape))
                for a in integrand.arguments
            ]
            y = integrand.call(self.lanes.lower(x.movedim(1, 0)), args)
            lifted = self.lanes.lift(y) if integrand.stack is None else None
        if lifted is None:
            lifted = plain(y).reshape(self.lanes.count, *y.shape)
        return lifted.movedim(0, 1)


@dataclass(slots=True)
class Integrand:
    """The user's function with its arguments.

    Parameters
    ----------
    function : callable
        ``f(x, *args)``.
    arguments : tuple of Argument
    rank : int
        Number of batch dimensions the caller sees.
    call_dtype, sum_dtype : torch.dtype
        Real dtype of the x that f sees; dtype of places and sums, which is wider.
    vectorized : bool
        Whether f accepts tensors; otherwise it is called once for each node with Python floats.
    event : tuple of int or None
        Trailing dimensions that f's output must have; None allows any.
    output_dtype : torch.dtype or None
        The dtype of the output in sums, once known.
    name : str
        What the function is called in messages.
    point_ndim : int
        Dimensions of one point: 0 where x is a number, 1 where it is a vector, the last dimension of x.
    captured : Captured or None
        How f is called if it captures tensors that have lanes.
    stack : list or None
        The transforms that f is called under, where those who ask are outside of all: they get plain values.
    """

    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    rank: int
    call_dtype: torch.dtype
    sum_dtype: torch.dtype
    vectorized: bool
    event: tuple[int, ...] | None = None
    output_dtype: torch.dtype | None = None
    name: str = "integrand"
    point_ndim: int = 0
    captured: Captured | None = None
    stack: list[Any] | None = None

    def grid(self, x: Tensor) -> torch.Size:
        """Return the shape of x without the dimensions of one point."""
        return x.shape[: x.ndim - self.point_ndim]

    def part(self, first: int, last: int) -> Integrand:
        """Return the integrand of the integrals from ``first`` to before ``last``."""
        parts = (a if a.shared else replace(a, value=a.value[first:last]) for a in self.arguments)
        captured = self.captured and replace(self.captured, first=self.captured.first + first)
        return replace(self, arguments=tuple(parts), captured=captured)

    def with_still_arguments(self) -> Integrand:
        """Return the integrand with arguments that carry no gradient."""
        still = (replace(a, value=a.value.detach()) if isinstance(a.value, Tensor) else a for a in self.arguments)
        return replace(self, arguments=tuple(still))

    def outside(self, stack: list[Any]) -> Integrand:
        """Return the integrand for those who are outside of the transforms ``stack``."""
        arguments = (replace(a, value=plain(a.value)) if isinstance(a.value, Tensor) else a for a in self.arguments)
        return replace(self, arguments=tuple(arguments), stack=stack)

    def probe(self, x: Tensor, index: int = 0) -> tuple[Integrand, Tensor]:
        """Call f at nodes of one integral; return the integrand knowing its output, and the output.

        ``x`` is one node of shape ``(1, *point)``, or, of a single integral, nodes of shape ``(m, 1, *point)``.
        """
        grid = x.ndim - self.point_ndim
        if self.rank and grid == 1:
            x = x.reshape((1,) * (self.rank + 1) + x.shape[1:])
            grid = self.rank + 1
        y = self._call(x, [a.one(self.rank, index) for a in self.arguments])
        return self.returning(y, tuple(y.shape[grid:])), y

    def unprobed(self) -> tuple[Integrand, Tensor]:
        """Return the same where f is never called: it is taken for a number, with the gradient of its arguments."""
        y = self._connected(torch.zeros(1, dtype=self.call_dtype, device="cpu")).sum()
        return self.returning(y, ()), y

    def returning(self, y: Tensor, event: tuple[int, ...]) -> Integrand:
        """Return the integrand knowing its output."""
        return Integrand(  # quicker than `replace`, which a single integral would notice
            self.function, self.arguments, self.rank, self.call_dtype, self.sum_dtype, self.vectorized,
            event, self._widen(y).dtype, self.name, self.point_ndim, self.captured, self.stack,
        )  # fmt: skip

    def _connected(self, y: Tensor) -> Tensor:
        """Return y as it is, with derivatives by all arguments, of any order, which are zero, or empty."""
        for argument in self.arguments:
            if isinstance(argument.value, Tensor):
                nothing = _nothing_of(argument.value)
                y = y + (nothing.real if nothing.is_complex() else nothing).to(y.dtype)
        return y

    def __call__(self, x: Tensor, owner: Tensor | slice) -> Tensor:
        """Return f at x of shape ``(m, n, *point)``: ``(m, n, *event)``; ``owner`` names each column's integral."""
        if x.shape[1] == 0 and self.event is not None:
            return self._connected(x.new_zeros((*self.grid(x), *self.event), dtype=self.output_dtype))
        if self.captured is not None:
            return self.captured.evaluate(self, x, owner)
        return self.evaluate(x, [a.at(owner) for a in self.arguments])

    def evaluate(self, x: Tensor, args: list[Any]) -> Tensor:
        """Return f at x of shape ``(m, n, *point)`` with other arguments than its own, broadcastable against x."""
        if self.stack is None:
            return self.call(x, args)
        with within_transforms(self.stack):
            y = self.call(x, args)
        return plain(y)

    def call(self, x: Tensor, args: list[Any]) -> Tensor:
        """Return the same to one who is under the transforms."""
        return self._widen(self._call(x, args))

    def _widen(self, y: Tensor) -> Tensor:
        """Return the values in the dtype of the sums; conjugates as they are, not as a view of what they are of."""
        if y.is_complex() and not torch.compiler.is_compiling():  # which cannot ask
            y = y.resolve_conj()
        return y if y.dtype == self.sum_dtype else y.to(torch.promote_types(self.sum_dtype, y.dtype))

    def _call(self, x: Tensor, args: list[Any]) -> Tensor:
        x, event = x if x.dtype == self.call_dtype else x.to(self.call_dtype), self.event
        try:
            if self.vectorized:
                y = self.function(x, *args)
            else:
                columns = [_column(a, self.grid(x), kind) for a, kind in zip(args, self.arguments, strict=True)]
                y = _one_by_one(self.function, x, self.grid(x), columns)
        except Exception as error:
            note = f"quadgrad: raised by the {self.name} {_interval(x)}{_shapes(x, args)}"
            if self.point_ndim:
                note += ". Coordinate i is x[..., i]; beside x an argument is c[..., None], or an element"
            if not any(said.startswith("quadgrad") for said in getattr(error, "__notes__", ())):  # nearer to f
                note += remedy(error, self._called(x, args))
            error.add_note(note)
            raise
        if not isinstance(y, Tensor):
            y = spread(f"the {self.name}", y, self._called(x, args))
        if y.layout is not torch.strided:
            raise IntegrandError(f"the {self.name} returned a tensor of {y.layout}: make it dense, .to_dense()")
        grid = self.grid(x)
        if y.shape != grid + (y.shape[len(grid) :] if event is None else event):
            raise IntegrandError(_wrong_shape(self.name, x, y, args, event, self.point_ndim))
        return y

    def _called(self, x: Tensor, args: list[Any]) -> Called:
        return Called(self.function, x, args, self.vectorized, self.point_ndim)


def _one_by_one(function: Callable[..., Any], x: Tensor, grid: torch.Size, columns: list[Sequence[Any]]) -> Tensor:
    """Call a function of one number, or of the list of one point's coordinates, at every node."""
    try:
        nodes = x.detach().reshape(-1, *x.shape[len(grid) :]).tolist()
    except RuntimeError as error:
        raise IntegrandError(
            "vectorized=False calls f with Python floats, which torch.func transforms do not allow: "
            "write f with torch operations, or wrap it with quadgrad.bridge.wrap"
        ) from error
    values = [function(*one) for one in zip(nodes, *columns, strict=True)]
    if any(isinstance(value, Tensor) for value in values):
        y = torch.stack([torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in values])
    else:
        y = torch.from_numpy(np.asarray(values))
        y = y.to(x.dtype.to_complex() if y.is_complex() else x.dtype)
    return y.reshape(grid + y.shape[1:]).to(x.device)


def _column(argument: Any, grid: torch.Size, kind: Argument) -> Sequence[Any]:
    """Return the argument's entry for each node: a float, or a tensor if it requires grad or is no scalar."""
    if not isinstance(argument, Tensor):
        return [argument] * grid.numel()
    core = argument.shape[argument.ndim - kind.element_ndim :]
    spread = argument.expand(grid + core).reshape((grid.numel(), *core))
    return spread.unbind(0) if core or kind.value.requires_grad or is_batched(spread) else spread.tolist()


def _interval(x: Tensor) -> str:
    try:
        return f"for x in [{x.min().item():.6g}, {x.max().item():.6g}]"
    except RuntimeError:  # hidden lanes of vmap have no single interval
        return "under a transform"


def _shapes(x: Tensor, args: Sequence[Any]) -> str:
    shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in args)
    return (
        f"; x of shape {tuple(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}, args of shapes [{shapes}]"
    )


def _wrong_shape(
    name: str, x: Tensor, y: Tensor, args: Sequence[Any], event: tuple[int, ...] | None, point_ndim: int
) -> str:
    tail = "any event shape" if event is None else f"the event shape {event}"
    grid, columns, like = tuple(x.shape), "one column for each cell", "x"
    if point_ndim:
        grid, columns, like = grid[:-1], "points along the last dimension of x", "x[..., 0]"
    text = (
        f"the {name} returned shape {tuple(y.shape)}; expected x.shape{'[:-1]' * point_ndim} = {grid} "
        f"followed by {tail}"
    )
    text += f"{_shapes(x, args)}. "
    if y.ndim == 0:
        text += (
            "It is one number for all x: leave out .sum(), .mean() and x[0], which go over x; a constant that is a "
            f"tensor is spread to x's shape, c.expand({like}.shape). "
        )
    elif y.numel() == math.prod(grid) * math.prod(event or ()) > 1:
        text += f"The values are as many as x: give them x's shape again, .reshape({like}.shape). "
    if point_ndim:
        text += "Coordinate i is x[..., i], the sum of all x.sum(-1). "
    return text + (
        f"The integrand is called with {columns}, so a tensor with the batch "
        "shape must not be closed over: pass it in args; pass a vector, matrix or sequence for each element as "
        "quadgrad.element(t, ndim=k), or, if each of its entries gives a value (an event), put it behind x, "
        f"v * g({like}[..., None]). A constant integrand is a number or torch.full_like({like}, c)"
    )
