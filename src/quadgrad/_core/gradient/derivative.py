"""The derivative integrand: an integrand like any other, whose event is the derivative of f at x.

Its integral over the same limits is the derivative of the value with respect to everything but the limits. It
is only ever evaluated, without gradient, to search cells for it and to estimate its error; what is returned
to the caller is differentiated by replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.gradient.parameters import Parameters, is_variable
from quadgrad._core.integrand import Argument, Integrand

__all__ = ["Variables", "as_reals", "differentiate", "make_variables", "output_count", "variables_of"]


@dataclass(frozen=True)
class Variables:
    """What f is differentiated with respect to: some of its arguments, and some tensors that it closes over.

    Attributes
    ----------
    arguments : tuple of int
        Places of the arguments.
    parameters : Parameters
        The closed-over tensors to differentiate.
    names : tuple of str
        A name for each argument and parameter.
    sizes : tuple of int
        Real numbers in each: of an argument those of one integral.
    """

    arguments: tuple[int, ...]
    parameters: Parameters
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def groups(self, count: int) -> list[Tensor]:
        """Return for each variable the columns of the derivative integrand, for ``count`` real outputs of f."""
        width = sum(self.sizes)
        columns = torch.arange(count * width, device="cpu").reshape(count, width)
        return [group.flatten() for group in columns.split(self.sizes, dim=1)]


def variables_of(integrand: Integrand, parameters: Parameters) -> Variables:
    """Return everything declared that a derivative is asked of."""
    arguments = tuple(i for i, a in enumerate(integrand.arguments) if is_variable(a.value))
    return make_variables(integrand, arguments, parameters.differentiated())


def make_variables(integrand: Integrand, arguments: tuple[int, ...], parameters: Parameters) -> Variables:
    """Name and count what is to be differentiated."""
    sizes = [_reals(_core(integrand.arguments[i]).numel(), integrand.arguments[i].value) for i in arguments]
    sizes += [_reals(tensor.numel(), tensor) for tensor in parameters.tensors]
    names = (*(f"args[{i}]" for i in arguments), *parameters.names)
    return Variables(arguments, parameters, names, tuple(sizes))


def _reals(count: int, tensor: Tensor) -> int:
    return 2 * count if tensor.is_complex() else count


def _core(argument: Argument) -> torch.Size:
    return argument.value.shape[argument.value.ndim - argument.element_ndim :]


def output_count(integrand: Integrand) -> int:
    """Return how many real numbers f returns at a node."""
    count = torch.Size(integrand.event or ()).numel()
    dtype = integrand.output_dtype
    return 2 * count if dtype is not None and dtype.is_complex else count


def differentiate(
    integrand: Integrand, variables: Variables, declared: Parameters, cotangent: Tensor | None = None
) -> Integrand:
    """Return the derivative of f at x as an integrand with event ``(outputs * sum(variables.sizes),)``.

    Parameters
    ----------
    integrand : Integrand
        After its probe.
    variables : Variables
    declared : Parameters
        All tensors that f closes over; those that are no variable are held still.
    cotangent : Tensor, shape ``(batch, *event)``, optional
        Weights of f's outputs for each integral: the derivative of their weighted sum is taken, one output.
    """
    count, arguments = output_count(integrand), integrand.with_still_arguments().arguments
    if cotangent is not None:
        flat = as_reals(cotangent.detach(), 1)
        count, arguments = 1, (*arguments, Argument(flat, shared=False, element_ndim=1))
    nodewise = bool(variables.parameters.tensors) or in_transform() or integrand.stack is not None
    way, core = _nodewise if nodewise else _elementwise, replace(integrand, stack=None, captured=None)
    function = partial(way, core, variables, declared, cotangent is not None)
    sums = integrand.sum_dtype if integrand.output_dtype is None else integrand.output_dtype
    return replace(
        integrand,
        function=function,
        arguments=arguments,
        vectorized=True,
        event=(count * sum(variables.sizes),),
        output_dtype=sums.to_real() if sums.is_complex else sums,
    )


def as_reals(y: Tensor, lead: int) -> Tensor:
    """Return complex numbers as pairs, and everything after the leading dimensions as one."""
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    return y.reshape(*y.shape[:lead], -1)


def _elementwise(
    core: Integrand, variables: Variables, declared: Parameters, weighted: bool, x: Tensor, *args: Any
) -> Tensor:
    """Differentiate by one backward pass for each output: f is elementwise, so its arguments may differ by node."""
    own, leaves = list(args[: len(core.arguments)]), list[Tensor]()
    with torch.enable_grad():
        for i in variables.arguments:
            shape = core.grid(x) + _core(core.arguments[i])
            leaves.append(own[i].detach().expand(shape).clone().requires_grad_())
            own[i] = leaves[-1]
        with declared.held_still():
            y = as_reals(core.evaluate(x, own), 2)
        outputs = [(y * args[-1]).sum()] if weighted else list(y.flatten(0, 1).sum(0))
        rows = [_gradient(output, leaves) for output in outputs]
    return torch.cat([as_reals(part, 2) for row in rows for part in row], dim=2)


def _gradient(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True))


def _nodewise(
    core: Integrand, variables: Variables, declared: Parameters, weighted: bool, x: Tensor, *args: Any
) -> Tensor:
    """Differentiate at each node by itself, all nodes under ``vmap``: what f closes over is shared by them."""
    grid = core.grid(x)
    count, point = grid.numel(), x.shape[len(grid) :]
    spread = [_spread(value, grid, kind) for value, kind in zip(args, core.arguments, strict=False)]
    dims = [None if value is None else 0 for value in spread]
    weights = args[-1].expand(*grid, args[-1].shape[-1]).reshape(count, -1) if weighted else None
    inner = [tensor.detach() for tensor in variables.parameters.tensors]
    rest = [tensor.detach() for tensor in declared.tensors]

    def at_node(x: Tensor, tensors: list[Any], weight: Tensor | None) -> Tensor:
        def outputs(*leaves: Tensor) -> Tensor:
            full = [args[i] if value is None else value for i, value in enumerate(tensors)]
            for place, leaf in zip(variables.arguments, leaves, strict=False):
                full[place] = leaf
            own = leaves[len(variables.arguments) :]
            with declared.replaced(rest), variables.parameters.replaced(own):
                y = as_reals(core.evaluate(x.reshape(1, 1, *point), full), 2).reshape(-1)
            return y if weight is None else (y * weight).sum(0, keepdim=True)

        y, pull, *_ = torch.func.vjp(outputs, *(tensors[i] for i in variables.arguments), *inner)
        rows = [pull(one) for one in torch.eye(y.shape[0], dtype=y.dtype, device=y.device)]
        return torch.cat([as_reals(part, 0) for row in rows for part in row])

    every = torch.func.vmap(at_node, in_dims=(0, dims, None if weights is None else 0))
    return every(x.reshape(count, *point), spread, weights).reshape(*grid, -1)


def _spread(value: Any, grid: torch.Size, kind: Argument) -> Tensor | None:
    """Return an argument with one entry for each node, in the rank that f expects beside x of shape (1, 1)."""
    if not isinstance(value, Tensor):
        return None
    core = _core(kind)
    lead = () if value.ndim == 0 else (1,)
    return value.detach().expand(grid + core).reshape(grid.numel(), *lead, *core)
