"""The exceptions and warnings callers can catch."""

from __future__ import annotations

__all__ = [
    "BridgeError",
    "BridgeWarning",
    "IntegrandError",
    "IntegrationError",
    "IntegrationWarning",
    "SeveredGradientWarning",
    "UnmarkedJumpWarning",
]


class IntegrandError(ValueError):
    """The integrand broke the calling contract: a wrong shape, no tensor, or not deterministic."""


class IntegrationError(ArithmeticError):
    """Some integrals did not converge and ``on_failure="raise"`` was asked for."""


class IntegrationWarning(UserWarning):
    """Some integrals did not converge, or a derivative with respect to a limit is infinite."""


class SeveredGradientWarning(UserWarning):
    """An input requires grad, but the integrand's output does not depend on it through torch."""


class UnmarkedJumpWarning(SeveredGradientWarning):
    """The integrand jumps at a place whose movement with a parameter is not in the gradient."""


class BridgeError(ValueError):
    """A wrapped function broke its contract: a wrong type, shape or dtype, or a derivative that does not fit."""


class BridgeWarning(UserWarning):
    """A wrapped function returned NaN or infinity."""
