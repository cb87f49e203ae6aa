"""Functions that autograd cannot see get gradients you can trust."""

from __future__ import annotations

from quadgrad.bridge.options import Info
from quadgrad.bridge.wrap import Wrapped, wrap
from quadgrad.errors import BridgeError, BridgeWarning

__all__ = ["BridgeError", "BridgeWarning", "Info", "Wrapped", "wrap"]
