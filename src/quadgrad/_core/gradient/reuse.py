"""The default gradient: differentiate the sum on the value's own plan."""

from __future__ import annotations

from dataclasses import dataclass

from quadgrad._core.gradient.mode import Differentiated, GradientMode, Primal

__all__ = ["Reuse"]


@dataclass(frozen=True)
class Reuse(GradientMode):
    """Differentiate the replayed sum on the value's own plan.

    It always works, for closures and networks too, and costs one pass more. The derivative is as
    accurate as the plan is for it: when the derivative is much harder than the value, tighten ``rtol``.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> value, error = qg.quad(lambda x, a: torch.exp(-a * x), 0.0, float("inf"), args=(a,), gradient=qg.Reuse())
    >>> value.backward()
    >>> a.grad
    tensor(-0.2500, dtype=torch.float64)
    """

    replays_value = True
    takes_series = True

    def apply(self, primal: Primal) -> Differentiated:
        """Return the replayed integrals; see :class:`GradientMode`."""
        return Differentiated(primal.replay())
