"""The one home of TensorFlow's private calls: what tapes see, functions with other captures, XLA.

TensorFlow has no public way to ask these things. ``tests/test_tensorflow_canary.py`` tells when they change.
"""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager
from typing import Any

from tensorflow.python.eager import (  # pyright: ignore[reportMissingTypeStubs]
    forwardprop_util as _forwardprop,
)
from tensorflow.python.eager import (  # pyright: ignore[reportMissingTypeStubs]
    record as _record,
)

from quadgrad._core.errors import Site, calling_site
from quadgrad.tensorflow._framework import tf

__all__ = [
    "add_note",
    "calling_line",
    "function_graph",
    "in_xla",
    "is_recording",
    "is_watched",
    "record_operation",
    "silence",
]

_forward: Any = _forwardprop
_tapes: Any = _record


def add_note(error: Exception, note: str) -> None:
    """Add a note to an exception; in a graph to its text, of which AutoGraph makes another exception."""
    if note in str(error) or note in getattr(error, "__notes__", ()):
        return
    if not tf.executing_eagerly() and type(error) in (TypeError, ValueError) and len(error.args) == 1:
        error.args = (f"{error.args[0]}\n\n{note}",)
        vars(error).pop("ag_error_metadata", None)  # which has the text without the note
    else:
        error.add_note(note)


def calling_line() -> Site:
    """Return the caller's line, in a graph the one that AutoGraph made another file of."""
    site = calling_site()
    if "__autograph_generated_file" not in os.path.basename(site.file):
        return site
    ours = os.path.dirname(tf.__file__), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    lines = [line for line in tf.no_op().traceback if not line.filename.startswith(ours)]
    return Site(lines[-1].filename, lines[-1].lineno, site.names) if lines else site


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


def function_graph(graph: Any, name: str) -> Any:
    """Return the graph of a function that an operation of ``graph`` calls."""
    while graph is not None:
        found = graph._get_function(name)
        if found is not None:
            return found.graph
        graph = getattr(graph, "outer_graph", None)
    raise NotImplementedError(f"f calls {name}, which TensorFlow does not find: integrate outside of tf.function")


def in_xla() -> bool:
    """Whether a function is being traced that XLA will compile."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if type(owner).__name__ == "Function" and getattr(owner, "_jit_compile", None):
            return True
        frame = frame.f_back
    return False
