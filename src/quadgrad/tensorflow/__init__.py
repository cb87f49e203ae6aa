"""Integrals you can differentiate, of TensorFlow functions, in TensorFlow tensors."""

from __future__ import annotations

from quadgrad.tensorflow import _framework as _framework  # says what to do where there is no TensorFlow

__all__: list[str] = []


def __dir__() -> list[str]:
    """Show what is public."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
