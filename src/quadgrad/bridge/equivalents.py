"""Which torch function does what a NumPy or SciPy function does."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
import torch

__all__ = ["Equivalent", "equivalent", "table"]


@dataclass(frozen=True)
class Equivalent:
    """A torch function that does the same.

    Attributes
    ----------
    name : str
        Its name, ``"torch.clamp"``.
    note : str
        What differs in the arguments or the result.
    """

    name: str
    note: str = ""

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return reduce(getattr, self.name.split(".")[1:], torch)

    def __str__(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


_SAME = (
    "abs", "absolute", "add", "any", "all", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2",
    "arctanh", "argmax", "argmin", "argsort", "ceil", "clip", "column_stack", "copysign", "cos", "cosh",
    "cross", "cumprod", "cumsum", "deg2rad", "diag", "diff", "divide", "dot", "dstack", "einsum", "exp",
    "exp2", "expm1", "eye", "flip", "fliplr", "flipud", "floor", "fmax", "fmin", "full", "gradient", "hstack",
    "hypot", "imag", "inner", "isfinite", "isnan", "isinf", "kron", "linspace", "log", "log10", "log1p",
    "log2", "logaddexp", "matmul", "maximum", "mean", "meshgrid", "minimum", "moveaxis", "multiply",
    "negative", "nansum", "ones", "outer", "pow", "prod", "ravel", "real", "reciprocal", "roll", "rot90",
    "round", "sign", "sin", "sinh", "sqrt", "square", "stack", "subtract", "sum", "tan", "tanh", "tensordot",
    "tile", "trapezoid", "tril", "triu", "true_divide", "trunc", "vander", "vdot", "vstack", "where", "zeros",
    "zeros_like", "ones_like",
)  # fmt: skip
_LINALG = (
    "cholesky", "cond", "cross", "det", "eig", "eigh", "eigvals", "eigvalsh", "inv", "lstsq", "matrix_norm",
    "matrix_power", "matrix_rank", "norm", "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "tensorinv",
    "tensorsolve", "vector_norm",
)  # fmt: skip

_AXIS = "axis is dim"
_NOTES = {
    "clip": "a_min and a_max are min and max",
    "argsort": _AXIS, "cumprod": f"{_AXIS}, and required", "cumsum": f"{_AXIS}, and required", "prod": _AXIS,
    "sum": _AXIS, "mean": _AXIS, "diff": _AXIS, "stack": _AXIS, "argmax": _AXIS, "argmin": _AXIS,
    "flip": "axis is dims, and required", "roll": "shift and axis are shifts and dims",
    "where": "as here, with tensors", "trapezoid": _AXIS, "moveaxis": "source and destination",
    "gradient": "varargs are spacing, axis is dim", "meshgrid": "indexing='xy' must be said",
    "tile": "reps is dims", "tensordot": "axes is dims", "diag": "k is diagonal", "tril": "k is diagonal",
    "triu": "k is diagonal", "pow": "the exponent may be a number",
}  # fmt: skip
_OTHERS = {
    "numpy.broadcast_to": Equivalent("torch.broadcast_to"),
    "numpy.concatenate": Equivalent("torch.cat", _AXIS),
    "numpy.convolve": Equivalent("torch.nn.functional.conv1d", "it does not flip the kernel: torch.flip it first"),
    "numpy.expand_dims": Equivalent("torch.unsqueeze", _AXIS),
    "numpy.max": Equivalent("torch.amax", _AXIS),
    "numpy.amax": Equivalent("torch.amax", _AXIS),
    "numpy.min": Equivalent("torch.amin", _AXIS),
    "numpy.amin": Equivalent("torch.amin", _AXIS),
    "numpy.median": Equivalent("torch.quantile", "q=0.5; torch.median takes the lower of two middle values"),
    "numpy.pad": Equivalent(
        "torch.nn.functional.pad",
        "a flat list of widths, the last dimension first; modes reflect, replicate, circular",
    ),
    "numpy.repeat": Equivalent("torch.repeat_interleave", _AXIS),
    "numpy.reshape": Equivalent("torch.reshape"),
    "numpy.lib.stride_tricks.sliding_window_view": Equivalent(
        "torch.Tensor.unfold", "one axis a call: x.unfold(axis, window, 1); the window comes last"
    ),
    "numpy.sort": Equivalent("torch.sort", "returns values and indices; axis is dim"),
    "numpy.split": Equivalent("torch.tensor_split", _AXIS),
    "numpy.squeeze": Equivalent("torch.squeeze", _AXIS),
    "numpy.std": Equivalent("torch.std", "correction=0 must be said; axis is dim"),
    "numpy.swapaxes": Equivalent("torch.swapaxes"),
    "numpy.take_along_axis": Equivalent("torch.take_along_dim", _AXIS),
    "numpy.trace": Equivalent("torch.trace", "matrices only"),
    "numpy.transpose": Equivalent("torch.permute", "axes are dims, and required"),
    "numpy.var": Equivalent("torch.var", "correction=0 must be said; axis is dim"),
    "numpy.fft.fft": Equivalent("torch.fft.fft", _AXIS),
    "numpy.fft.ifft": Equivalent("torch.fft.ifft", _AXIS),
    "numpy.fft.rfft": Equivalent("torch.fft.rfft", _AXIS),
    "numpy.fft.irfft": Equivalent("torch.fft.irfft", _AXIS),
    "numpy.interp": Equivalent("torch.searchsorted", "finds the interval; the line in it is torch.lerp"),
    "scipy.linalg.expm": Equivalent("torch.linalg.matrix_exp"),
    "scipy.special.betaln": Equivalent("torch.lgamma", "lgamma(a) + lgamma(b) - lgamma(a + b)"),
    "scipy.special.digamma": Equivalent("torch.special.digamma"),
    "scipy.special.psi": Equivalent("torch.special.digamma"),
    "scipy.special.erf": Equivalent("torch.special.erf"),
    "scipy.special.erfc": Equivalent("torch.special.erfc"),
    "scipy.special.erfcx": Equivalent("torch.special.erfcx"),
    "scipy.special.erfinv": Equivalent("torch.special.erfinv"),
    "scipy.special.expit": Equivalent("torch.special.expit"),
    "scipy.special.gammaln": Equivalent("torch.special.gammaln"),
    "scipy.special.i0": Equivalent("torch.special.i0"),
    "scipy.special.i0e": Equivalent("torch.special.i0e"),
    "scipy.special.i1": Equivalent("torch.special.i1"),
    "scipy.special.i1e": Equivalent("torch.special.i1e"),
    "scipy.special.log_ndtr": Equivalent("torch.special.log_ndtr"),
    "scipy.special.log_softmax": Equivalent("torch.special.log_softmax", _AXIS),
    "scipy.special.logit": Equivalent("torch.special.logit"),
    "scipy.special.logsumexp": Equivalent("torch.logsumexp", f"{_AXIS}, and required"),
    "scipy.special.ndtr": Equivalent("torch.special.ndtr"),
    "scipy.special.ndtri": Equivalent("torch.special.ndtri"),
    "scipy.special.softmax": Equivalent("torch.special.softmax", _AXIS),
    "scipy.special.xlogy": Equivalent("torch.special.xlogy"),
    "scipy.special.zeta": Equivalent("torch.special.zeta"),
}


@cache
def table() -> dict[str, Equivalent]:
    """Return what is known, by the full names of NumPy's and SciPy's functions."""
    renamed = {"clip": "clamp", "subtract": "sub"}
    same = {f"numpy.{n}": Equivalent(f"torch.{renamed.get(n, n)}", _NOTES.get(n, "")) for n in _SAME}
    linalg = {f"numpy.linalg.{n}": Equivalent(f"torch.linalg.{n}") for n in _LINALG}
    return same | linalg | _OTHERS


@cache
def _by_identity() -> dict[int, tuple[Any, str]]:
    """Return the names by the functions themselves: some have two names, and their modules lie."""
    found: dict[int, tuple[Any, str]] = {}
    for name in table():
        root, *path = name.split(".")
        holder = np if root == "numpy" else importlib.import_module(f"scipy.{path.pop(0)}")
        function = reduce(lambda holder, part: getattr(holder, part, None), path, holder)
        if function is not None:
            found[id(function)] = (function, name)
    return found


def equivalent(fn: Callable[..., Any]) -> Equivalent:
    """Name the torch function that does what a NumPy or SciPy function does.

    Where there is one, it is faster than a wrapped function, and differentiated exactly.

    Parameters
    ----------
    fn : callable
        ``np.clip``, ``scipy.special.erf``, ...

    Returns
    -------
    Equivalent
        Prints as the torch function's name, with what differs in its arguments.

    Raises
    ------
    LookupError
        If none is known.

    Examples
    --------
    >>> import numpy as np, quadgrad as qg
    >>> print(qg.bridge.equivalent(np.clip))
    torch.clamp (a_min and a_max are min and max)
    """
    known = _by_identity().get(id(fn))
    if known is None:
        raise LookupError(
            f"no torch function is known to do what {getattr(fn, '__name__', fn)!r} does: wrap it with "
            "quadgrad.bridge.wrap"
        )
    return table()[known[1]]
