"""A NumPy function as a layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quadgrad.bridge.wrap import Wrapped, wrap

__all__ = ["NumpyLayer", "numpy_layer"]


def numpy_layer(fn: Callable[..., Any], parameters: Mapping[str, Any] | None = None, **options: Any) -> NumpyLayer:
    """Make a NumPy function a module.

    Parameters
    ----------
    fn : callable or Wrapped
        ``fn(*inputs, *parameters)``: what the module is called with comes first, its parameters follow.
    parameters : mapping from names to tensors, arrays or numbers, optional
        Initial values, in the order in which fn takes them. They become ``nn.Parameter``.
    **options
        Of :func:`quadgrad.bridge.wrap`, if fn is not wrapped yet.

    Returns
    -------
    NumpyLayer

    Raises
    ------
    TypeError
        If options are given for a function that is wrapped already.

    Examples
    --------
    >>> import numpy as np, torch
    >>> import quadgrad as qg
    >>> layer = qg.bridge.numpy_layer(lambda x, w: np.tanh(x @ w), {"w": np.ones((2, 3))})
    >>> y = layer(torch.zeros(4, 2, dtype=torch.float64))
    >>> y.shape, [name for name, _ in layer.named_parameters()]
    (torch.Size([4, 3]), ['w'])
    """
    return NumpyLayer(fn, parameters or {}, options)


class NumpyLayer(nn.Module):
    """A module whose forward is a wrapped function; made by :func:`numpy_layer`."""

    def __init__(self, fn: Callable[..., Any], parameters: Mapping[str, Any], options: dict[str, Any]) -> None:
        super().__init__()
        if isinstance(fn, Wrapped) and options:
            raise TypeError(f"numpy_layer: {fn!r} is wrapped already; give {', '.join(options)} to wrap")
        self.function: Wrapped = fn if isinstance(fn, Wrapped) else wrap(fn, **options)
        self._order = tuple(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value).detach().clone()))

    def forward(self, *inputs: Tensor) -> Any:
        """Call the function with the inputs, then the parameters."""
        return self.function(*inputs, *(getattr(self, name) for name in self._order))

    def extra_repr(self) -> str:
        """Name the function."""
        return repr(self.function)
