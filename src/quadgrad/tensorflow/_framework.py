"""TensorFlow itself, for this package: absolute imports, so that ``tensorflow`` here is the framework and not us.

TensorFlow has no types that a checker could use; what comes from it is `Any`.
"""

from __future__ import annotations

from typing import Any

try:
    import tensorflow as _tensorflow
except ImportError as error:
    raise ImportError(
        "quadgrad.tensorflow needs TensorFlow, which is not installed: pip install 'quadgrad[tensorflow]' (the "
        "newest Python has no wheels yet). Functions of torch tensors, NumPy and SciPy do without: "
        "quadgrad.quad, quadgrad.bridge.wrap"
    ) from error

__all__ = ["tf"]

tf: Any = _tensorflow
