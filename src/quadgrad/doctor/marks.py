"""The mark for what is severed on purpose."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["intended", "why_intended"]

_reason: ContextVar[str] = ContextVar("quadgrad_doctor_intended", default="")


@contextmanager
def intended(why: str) -> Generator[None]:
    """Mark what severs a gradient on purpose: the doctor lists it, and takes it for constant.

    Outside of the doctor it does nothing. It also decorates a function.

    Parameters
    ----------
    why : str
        Shown in the report, beside the line.

    Raises
    ------
    ValueError
        If no reason is given.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> def loss(x):
    ...     with qg.doctor.intended("a target network is not trained through"):
    ...         target = (x**2).detach()
    ...     return ((x - target) ** 2).sum()
    >>> qg.doctor.check(loss, torch.arange(2.0, 5.0, dtype=torch.float64, requires_grad=True)).ok
    True
    """
    if not isinstance(why, str) or not why.strip():
        raise ValueError('intended needs a reason, which the report shows: qg.doctor.intended("why")')
    token = _reason.set(why)
    try:
        yield
    finally:
        _reason.reset(token)


def why_intended() -> str:
    """Return the reason that is given for what is done now, or nothing."""
    return _reason.get()
