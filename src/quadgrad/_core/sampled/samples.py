"""The door of everything sampled: convert and check samples, once, with the caller's own shapes in the messages.

Below it samples stand along the last dimension, in the dtype of the result. It knows nothing of rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.lanes import plain
from quadgrad._core.tolerance import real_dtype, working_dtype

__all__ = ["Samples", "as_real", "as_tensor", "prepare", "real_epsilon", "require", "require_increasing"]


@dataclass(frozen=True)
class Samples:
    """Samples along the last dimension, and where they are.

    Attributes
    ----------
    y : Tensor, shape ``(*batch, n)``
        The values.
    x : Tensor or None
        The places, ``(n,)`` or broadcastable to y's shape; None if they are ``dx`` apart.
    dx : float or Tensor
        A number, or a tensor of shape () or ``(..., 1)``; not used where x is given.
    dim : int
        Where the samples stood in the caller's y, counted from its end.
    """

    y: Tensor
    x: Tensor | None
    dx: float | Tensor
    dim: int

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.y.shape[-1]

    @property
    def gaps(self) -> Tensor | None:
        """The distances from each sample to the next; None if they are one and the same, dx."""
        return None if self.x is None else self.x.diff(dim=-1)

    def scaled(self, integrals: Tensor) -> Tensor:
        """Return integrals ``(..., k)``, computed as if dx were 1, for the true dx."""
        return integrals if self.x is not None else integrals * self.dx

    def detached(self) -> Samples:
        """Return the samples without their gradient."""
        dx = self.dx.detach() if isinstance(self.dx, Tensor) else self.dx
        return Samples(self.y.detach(), None if self.x is None else self.x.detach(), dx, self.dim)


def prepare(y: Any, x: Any, dx: Any, dim: int, least: int, rule: str) -> Samples:
    """Check what the caller passed, and return it with the samples along the last dimension.

    Half precision is summed in single precision. Integers y count as float64, as in SciPy: those of 64 bits are not
    exact in float32.
    """
    y = as_tensor("y", y)
    if y.ndim == 0:
        raise ValueError(f"y is a single number: {rule} needs samples along a dimension, such as y of shape (n,)")
    if isinstance(dim, bool) or not isinstance(dim, SupportsIndex):
        raise TypeError(f"dim={dim!r} must be an integer: the dimension of y along which the samples stand")
    dim = int(dim)
    if not -y.ndim <= dim < y.ndim:
        raise IndexError(f"dim={dim} is out of range: y of shape {tuple(y.shape)} has -{y.ndim} to {y.ndim - 1}")
    dim = dim % y.ndim - y.ndim
    n = y.shape[dim]
    if n < least:
        raise ValueError(
            f"{rule} needs at least {least} sample{'s' * (least > 1)}: y of shape {tuple(y.shape)} has {n} along "
            f"dim={dim}"
        )
    x = None if x is None else _check_x(as_real("x", x, y.device), y, dim)
    dx = _check_dx(dx, y, dim) if x is None else 1.0
    if not (y.is_floating_point() or y.is_complex()):
        y = y.double()
    real = torch.promote_types(
        working_dtype(cast(list[Tensor], [t for t in (y, x, dx) if _counts(t)])), torch.float32
    )
    y = y.to(real.to_complex() if y.is_complex() else real).movedim(dim, -1)
    if x is not None:
        x = (x if x.ndim == 1 else x.movedim(dim, -1)).to(real)
    elif isinstance(dx, Tensor):
        dx = (dx.movedim(dim, -1) if dx.ndim else dx).to(real)
    return Samples(y, x, dx, dim)


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Return what the caller passed as a tensor; lists and arrays are converted as NumPy does, for a device."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Real):
        return torch.tensor(value, dtype=torch.float64, device=device)
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        raise TypeError(f"{name} is a {type(value).__name__} of tensors: join them with torch.stack")
    try:
        return torch.from_numpy(np.array(value)).to(device)
    except (TypeError, ValueError) as error:
        why = "what can be called is integrated by quad" if callable(value) else error
        raise TypeError(f"{name} must be a tensor of numbers, not {type(value).__name__}: {why}") from None


def as_real(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Return a place, or places, as a tensor."""
    tensor = as_tensor(name, value, device)
    if tensor.is_complex():
        raise TypeError(
            f"{name} is complex ({tensor.dtype}): samples stand on the real line. For an integral along a path "
            "z(t) multiply the samples by dz/dt and give t"
        )
    return tensor


def require(ok: Tensor, value: Tensor, explain: Callable[[], str]) -> Tensor:
    """Return the value, if all is well along the last dimension of ``ok``; else raise what ``explain`` says.

    A compiled function cannot look at numbers and go on: there what is not well becomes NaN instead of being wrong.
    """
    if torch.compiler.is_compiling():
        return torch.where(ok.all(-1, keepdim=True), value, torch.nan)
    if not bool(plain(ok).all()):
        raise ValueError(explain())
    return value


def require_increasing(samples: Samples, rule: str) -> Tensor:
    """Return the gaps between places, which must be positive and finite."""
    x = samples.x
    assert x is not None
    gaps = x.diff(dim=-1)
    ok = (gaps > 0) & (gaps < torch.inf)

    def explain() -> str:
        *row, i = plain(~ok).nonzero()[0].tolist()
        before, after = (float(plain(x)[(*row, place)]) for place in (i, i + 1))
        row_shown = f" of row {tuple(row)}" if row else ""
        if not math.isfinite(after - before):
            remedy = "Places must be finite numbers"
        elif before == after:
            remedy = "Merge samples at the same place, or integrate on both sides of it"
        else:
            remedy = "Sort the samples by x (torch.argsort), or flip both x and y where x decreases"
        where = f"{before!r} is followed by {after!r} at index {i}{row_shown}"
        return f"{rule} needs x that increases strictly, but {where}. {remedy}"

    return require(ok, gaps, explain)


def _counts(value: Any) -> bool:
    """Whether it takes part in promotion: numbers and scalars do not, as in torch."""
    return isinstance(value, Tensor) and value.ndim > 0


def _check_x(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Check that the places fit the values."""
    n = y.shape[dim]
    if x.ndim == 1:
        fits = x.shape[0] == n
    else:
        if x.ndim < y.ndim and x.ndim > 0:
            x = x.reshape(*[1] * (y.ndim - x.ndim), *x.shape)
        pairs = zip(x.shape, y.shape, strict=True) if x.ndim == y.ndim else ()
        fits = x.ndim == y.ndim and x.shape[dim] == n and all(p == q or 1 in (p, q) for p, q in pairs)
    if x.ndim == 0 and n > 1:
        raise ValueError("x is one number, not a place for each sample: the spacing of even samples is dx=")
    if x.device != y.device:
        raise ValueError(f"y is on {y.device}, x on {x.device}: move one of them, .to({str(y.device)!r})")
    if not fits:
        raise ValueError(
            f"x of shape {tuple(x.shape)} does not fit y of shape {tuple(y.shape)} with its {n} samples along "
            f"dim={dim}: give x of shape ({n},) for all rows, or one that broadcasts with y and has {n} along dim"
        )
    return x


def _check_dx(dx: Any, y: Tensor, dim: int) -> float | Tensor:
    """Check that the spacing is a number, or one for each row."""
    if isinstance(dx, Real):
        return float(dx)
    dx = as_real("dx", dx, y.device)
    pairs = zip(dx.shape, y.shape, strict=True) if dx.ndim == y.ndim else ()
    if dx.ndim and (dx.ndim != y.ndim or dx.shape[dim] != 1 or not all(p == q or 1 in (p, q) for p, q in pairs)):
        raise ValueError(
            f"dx of shape {tuple(dx.shape)} is neither a number nor one for each row of y of shape "
            f"{tuple(y.shape)}: that has size 1 along dim={dim} and broadcasts (dx.unsqueeze({dim})); places that "
            "are not evenly spaced are given by x"
        )
    return dx


def real_epsilon(tensor: Tensor) -> float:
    """Return the spacing at 1 of the tensor's dtype."""
    return torch.finfo(real_dtype(tensor.dtype)).eps
