"""NumPy and SciPy functions as TensorFlow functions: values and products with Jacobians by the bridge.

What a function is, how its derivatives are computed and what is remembered is :mod:`quadgrad.bridge`'s business.
Here its products become TensorFlow operations, each with the next one as its gradient, as
:mod:`quadgrad.bridge.functions` has it for torch: value, J^T g, J v, second-order products; the third order raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quadgrad._core.errors import BridgeError
from quadgrad.bridge import Info, wrap as bridge_wrap
from quadgrad.bridge.contract import Arrays, Spec, complex_input, unknown_input
from quadgrad.bridge.functions import THIRD
from quadgrad.bridge.task import Task
from quadgrad.bridge.wrap import Wrapped as BridgeWrapped
from quadgrad.tensorflow._framework import record, tangents, tf

__all__ = ["Wrapped", "wrap"]

STAND_INS = (8, 9)
"""Two sizes for dimensions unknown to a trace: what differs between their outputs is unknown too."""

Wanted = tuple[int, ...]
Groups = tuple[Wanted, ...]
Tensors = Sequence[Any]


def wrap(fn: Callable[..., Any] | None = None, derivative: str | Callable[..., Any] = "central", **options: Any) -> Any:
    """Make a function that TensorFlow cannot see differentiable.

    NumPy and SciPy code, compiled functions and simulators become functions of TensorFlow tensors, with derivatives
    by `GradientTape` (nested and persistent too, `tape.jacobian`), `ForwardAccumulator`, and `tf.function`. It is
    :func:`quadgrad.bridge.wrap` for TensorFlow: the same options, the same derivatives, the same error estimates.

    Parameters
    ----------
    fn : callable, optional
        ``fn(*inputs)`` takes NumPy arrays and returns an array or a tuple of arrays (float32, float64, complex64 or
        complex128), or what :func:`quadgrad.bridge.wrap` made of it. Left out, ``wrap`` is a decorator.
    derivative : str or callable
        As for :func:`quadgrad.bridge.wrap`: ``"central"`` differences, ``"forward"``, ``"richardson"``,
        ``"complex"``, ``"auto"``, ``"spsa"``, or the derivative of an elementwise function.
    **options
        Of :func:`quadgrad.bridge.wrap`: ``jacobian``, ``vjp``, ``jvp``, ``vectorized``, ``scalars``, ``sparsity``,
        ``out_shape``, ``static``, ``bounds``, ``executor``, ``noise``, ``seed``.

    Returns
    -------
    Wrapped
        Or, without fn, a decorator.

    Raises
    ------
    BridgeError
        When called: if fn returns something else than it should. In a graph TensorFlow raises an error of its own,
        with this one's text.
    TypeError
        For options that are unknown, and inputs that are complex or no tensors, arrays or numbers.
    NotImplementedError
        If a third derivative is asked for.

    Notes
    -----
    The result has the dtype that fn returns: of a float32 model's tensors NumPy makes float64 as soon as a float64
    array joins them.

    Eager calls differentiate with respect to what a tape watches, and nothing else. A graph cannot know that: of a
    `tf.function` differentiated by a tape *outside*, TensorFlow computes all derivatives. Put the tape inside, or
    ``tf.stop_gradient`` around inputs of which no derivative is needed.

    A graph has to know what fn returns before it has run: from an earlier call with the same shapes, from
    ``out_shape``, or by a call with ones, in which dimensions the graph does not know are 8, then 9. A batch of a
    function of one point is ``tf.map_fn``. The operations are Python's: there is no `jit_compile`, and a SavedModel
    can be loaded only by the process that saved it.

    Examples
    --------
    >>> import numpy as np, tensorflow as tf
    >>> import quadgrad.tensorflow as qgt
    >>> @qgt.wrap
    ... def energy(x):
    ...     return np.sum(x**4) / 4
    >>> x = tf.Variable([1.0, 2.0, 3.0], dtype=tf.float64)
    >>> with tf.GradientTape() as tape:
    ...     y = energy(x)
    >>> gradient = tape.gradient(y, x)
    >>> print(np.round(gradient, 4))
    [ 1.  8. 27.]
    >>> bool(np.max(np.abs(gradient - x**3)) < energy.info.gradient_error[0].max())
    True
    """
    if fn is None:
        return lambda function: wrap(function, derivative, **options)
    if isinstance(fn, BridgeWrapped):
        if options or derivative != "central":
            raise TypeError(f"wrap: {fn!r} is wrapped already; give its options to the bridge")
        return Wrapped(fn)
    return Wrapped(bridge_wrap(fn, derivative, **options))


class Wrapped:
    """A function with derivatives; made by :func:`wrap`.

    Attributes
    ----------
    bridge : quadgrad.bridge.Wrapped
        The same function for torch and for :func:`quadgrad.bridge.check`.
    info : Info or None
        Error estimates, evaluations and noise level of the last backward pass.
    """

    def __init__(self, bridge: BridgeWrapped) -> None:
        self.bridge = bridge
        self.__doc__, self.__name__ = bridge.__doc__, getattr(bridge, "__name__", type(bridge.fn).__name__)
        self._infos: dict[Wanted, Info] = {}
        self._lock = threading.RLock()  # TensorFlow runs operations of a graph in several threads

    def __repr__(self) -> str:
        return f"<tensorflow.wrap of {self.bridge!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        """Return the same object, as for every function."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with tensors, variables, arrays or numbers; return a tensor or a tuple of tensors."""
        values, statics = self.bridge.separated(args, kwargs)
        task, _ = self.bridge.task(len(values) + len(statics), statics)
        found = _value(_Operations(task, self._compute), _as_tensors(values, task.callee.name))
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def info(self) -> Info | None:
        """What the last backward pass found."""
        infos = dict(self._infos)
        return _joined([infos[key] for key in sorted(infos)]) if infos else None

    def forget(self) -> None:
        """Forget remembered values and Jacobians: after a change that the function's outputs do not show."""
        self.bridge.forget()

    def _compute(self, task: Task, kind: str, wanted: Wanted, groups: Sequence[Arrays]) -> Arrays:
        """Return a value, or a product; keep what the bridge says of a backward pass."""
        with self._lock:
            if kind == "value":
                if len(self._infos) > 1:
                    self._infos.clear()
                return task.value(groups[0], remember=bool(wanted))
            inputs, *vectors = groups
            found = getattr(task, kind)(wanted, 0, 0, inputs, *([_wide(v) for v in group] for group in vectors))
            if kind == "vjp" and self.bridge.info is not None:
                if len(wanted) > 1 or not _one_by_one():
                    self._infos.clear()
                self._infos[wanted] = self.bridge.info
            return found
