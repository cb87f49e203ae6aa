"""Functions that autograd cannot see get gradients you can trust."""

from __future__ import annotations

from quadgrad._core.errors import BridgeError, BridgeWarning
from quadgrad.bridge.check import CheckReport, check
from quadgrad.bridge.equivalents import Equivalent, equivalent
from quadgrad.bridge.layer import NumpyLayer, numpy_layer
from quadgrad.bridge.options import Info
from quadgrad.bridge.wrap import Wrapped, wrap

__all__ = [
    "BridgeError",
    "BridgeWarning",
    "CheckReport",
    "Equivalent",
    "Info",
    "NumpyLayer",
    "Wrapped",
    "check",
    "equivalent",
    "numpy_layer",
    "wrap",
]
