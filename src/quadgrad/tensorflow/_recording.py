"""The one home of TensorFlow's private calls: what tapes see, functions with other captures, XLA.

TensorFlow has no public way to ask these things. ``tests/test_tensorflow_canary.py`` tells when they change.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import Any

from tensorflow.python.eager import (  # pyright: ignore[reportMissingTypeStubs]
    forwardprop_util as _forwardprop,
)
from tensorflow.python.eager import (  # pyright: ignore[reportMissingTypeStubs]
    record as _record,
)

__all__ = ["call_with_captures", "in_xla", "is_recording", "is_watched", "record_operation", "silence"]

_forward: Any = _forwardprop
_tapes: Any = _record


def is_recording() -> bool:
    """Whether any tape or accumulator of this thread might see what is computed now."""
    return _tapes.could_possibly_record()


def is_watched(tensor: Any) -> bool:
    """Whether a tape or an accumulator differentiates by an eager tensor or variable, or what it was made of."""
    tensor = getattr(tensor, "handle", tensor)  # of a variable
    return _tapes.should_record_backprop([tensor]) or bool(_forward.pack_tangents([tensor]).tangents)


def record_operation(outputs: list[Any], inputs: list[Any], gradient: Any) -> None:
    """Tell tapes and accumulators how tensors came from others: ``gradient(*gradients of outputs)``."""
    _tapes.record_operation("quadgrad", outputs, inputs, gradient)


def silence() -> AbstractContextManager[None]:
    """Return a context that no tape and no accumulator sees."""
    return _tapes.stop_recording()


def call_with_captures(concrete: Any, inputs: list[Any], captures: list[Any]) -> Any:
    """Call a concrete function with other tensors in the place of those that it captured where it was traced."""
    return concrete._call_flat(inputs, captures)


def in_xla() -> bool:
    """Whether a function is being traced that XLA will compile."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if type(owner).__name__ == "Function" and getattr(owner, "_jit_compile", None):
            return True
        frame = frame.f_back
    return False
