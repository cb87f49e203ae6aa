"""The public wrapper: from a function that autograd cannot see to one with derivatives.

It sorts the arguments and takes one of three routes: straight to the function where no derivative can be asked
for, through :mod:`quadgrad.bridge.functions` in eager mode, and to the operator under a compiler.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import update_wrapper
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import constant_for_compilers, forward_mode_open, in_transform
from quadgrad.bridge import functions, operators
from quadgrad.bridge.contract import array_of, refuse_dressed, tensor_of, unknown_input
from quadgrad.bridge.evaluation import INPUT, Callee, look_up
from quadgrad.bridge.linearization import Linearization, floating
from quadgrad.bridge.options import Info, Options, make_options
from quadgrad.bridge.task import Task
from quadgrad.bridge.uncertain import tell_integral

__all__ = ["Wrapped", "wrap"]

_wrapped: weakref.WeakValueDictionary[str, Wrapped] = weakref.WeakValueDictionary()
_numbers = itertools.count()

TASKS = 16
"""For how many combinations of static arguments values and Jacobians are kept."""


def wrap(
    fn: Callable[..., Any] | None = None,
    derivative: str | Callable[..., Any] = "central",
    *,
    jacobian: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vectorized: bool = False,
    scalars: bool = False,
    tensors: bool = False,
    sparsity: Any = None,
    out_shape: Any = None,
    static: Sequence[int | str] = (),
    bounds: Any = None,
    executor: Executor | None = None,
    noise: float | tuple[float, float] | None = None,
    seed: int | None = None,
    memory: float = 16.0,
) -> Any:
    """Make a function that autograd cannot see differentiable.

    NumPy and SciPy code, compiled functions and simulators become functions of torch tensors, with derivatives in
    every transform: backward, double backward, forward mode, ``torch.func`` and ``vmap``; under ``torch.compile``
    and ``torch.export`` backward works, ``torch.func`` transforms do not.

    Parameters
    ----------
    fn : callable
        ``fn(*inputs)`` takes NumPy arrays and returns an array or a tuple of arrays (float32, float64, complex64 or
        complex128). It gets copies, so it may do with them what it likes. Left out, ``wrap`` is a decorator.
    derivative : str or callable, optional
        How derivatives are computed, one of

        * ``"central"``: differences with an error bar, 3 evaluations for each input element; of eight elements and
          more 2 for each and 4 for every 16, where these show no doubt;
        * ``"forward"``: 2 evaluations, half the digits; where outputs are noisy that is ``"central"``;
        * ``"richardson"``: extrapolated, 16 evaluations, nearly full precision;
        * ``"complex"``: the complex step, exact where fn is analytic, refused with the reason where a probe says
        it is
          not;
        * ``"auto"``: the complex step if the probe allows it, else central;
        * ``"spsa"``: 48 evaluations, however many inputs there are, more where steps shrink; noisy when there are
          more than 16.

        Or the derivative itself, for a function that works elementwise: it takes what fn takes and returns the
        derivatives in the output's shape, as a tuple of these for several inputs.
    jacobian : callable, optional
        Takes what fn takes; returns derivatives of shape ``output.shape + input.shape``, or
        ``batch + output_core + input_core`` where output and input begin with the same batch dimensions. For
        several outputs a tuple with one entry for each, for several inputs each entry a tuple.
    vjp, jvp : callable, optional
        ``vjp(*inputs, g)`` returns the gradient with respect to each input for the output's cotangent g,
        ``jvp(*inputs, v)`` the output's derivative along v; g and v are tuples for several outputs and inputs,
        with zeros for inputs that stay as they are.
    vectorized : bool
        fn accepts further leading dimensions on all its inputs and returns them first: a whole stencil is then one
        call, or two.
    scalars : bool
        fn takes and returns Python numbers; it is called for each element of its broadcast inputs. Where it raises
        ValueError or ArithmeticError close to an input, as ``math.log`` does, that is the end of its domain.
    tensors : bool
        fn takes torch tensors (without gradient) instead of arrays.
    sparsity : ``"elementwise"`` or matrix ``(outputs, inputs)``, dense or from scipy.sparse
        Which outputs depend on which inputs, all elements counted in order. Inputs that share no output are moved
        together.
        ``"elementwise"``: inputs broadcast, and an output depends on the matching elements only; NumPy's ufuncs and
        functions of ``scalars`` are known to be so.
    out_shape : tuple, sequence of tuples, or callable from input shapes to these, optional
        Checked at every call. A compiler needs it, or an earlier call with the same shapes.
    static : sequence of int or str
        Positions or names of arguments that are handed to fn as they are and not differentiated. They must be
        hashable.
    bounds : pair or dict, optional
        ``(lower, upper)`` between which fn may be called, for all inputs; or a dict from names or positions.
    executor : concurrent.futures.Executor, optional
        Runs the evaluations. Results do not depend on it.
    noise : float or pair, optional
        How wrong fn's outputs may be, relatively; a pair adds how wrong absolutely. Estimated if not given, by 6
        evaluations for each new input, 12 where there is some; by 2 where there was none at the last one. An
        estimate sees what differs between points close together, and no error that is smooth. That of an adaptive
        solver (of differential equations, integrals, roots) is smooth while it takes the same steps, and jumps when
        it takes others; that of one that starts from its last result depends on where it was called before. A
        loose one, with SciPy's ``rtol=1e-3``, has derivatives that are right to three digits at best, though its
        outputs look noiseless. Give what its results are good for: of ``solve_ivp`` with ``rtol, atol``, whose
        errors add up from step to step, ``noise=(10 * rtol, 10 * atol)``. Where outputs are as good as that, the
        reported error covers the true one; and a tighter solver buys more than any method here. One that starts
        from its last result and ends at ``tol`` gets ``noise=(0.0, tol)``, as below.
    seed : int, optional
        For ``"spsa"``.
    memory : float
        Megabytes for values and Jacobians at inputs seen lately, of each combination of static arguments; those at
        the last input are kept always.

    Returns
    -------
    Wrapped
        Or, without fn, a decorator.

    Raises
    ------
    BridgeError
        When called: if fn returns something else than it should, each time with what and why.
    NotImplementedError
        If a third derivative is asked for.

    Notes
    -----
    The reported error of a derivative (:attr:`Wrapped.info`) is that of truncation, told by how differences of
    rising order fall, and of noise. Where the step does not see what the function does at x, it shrinks, at the
    cost of more evaluations; where none does, the error is infinite. At a kink the derivative is the mean of the
    slopes on both sides, and its error covers both. Of an output that is flat at x and rises in coarse steps it is
    the slope between the steps, 0, with an error that covers their trend; of one that is printed or rounded, the
    trend. Second derivatives of functions differentiated by differences are good to about 1e-8, relatively.

    Examples
    --------
    >>> import numpy as np, torch
    >>> import quadgrad as qg
    >>> @qg.bridge.wrap
    ... def energy(x):
    ...     return np.sum(x**4) / 4
    >>> x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    >>> energy(x).backward()
    >>> x.grad
    tensor([ 1.0000,  8.0000, 27.0000], dtype=torch.float64)
    >>> bool(abs(x.grad - x**3).max() < energy.info.gradient_error[0].max())
    True

    Newton's method that starts where it ended before, good to 1e-6: declared, that is in the error of the gradient.

    >>> root = [1.0]
    >>> def solve(a):
    ...     step = 1.0
    ...     while abs(step) > 1e-6:
    ...         step = (root[0] ** 3 + root[0] - a) / (3 * root[0] ** 2 + 1)
    ...         root[0] -= step
    ...     return root[0]
    >>> warm = qg.bridge.wrap(solve, scalars=True, noise=(0.0, 1e-6))
    >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> warm(a).backward()
    >>> bool(abs(a.grad.numpy() - 0.25) < warm.info.gradient_error[0] < 0.01)
    True
    """
    if isinstance(fn, str):
        raise TypeError(f"wrap: the first argument is the function; write derivative={fn!r}")
    options = make_options(
        derivative, {"jacobian": jacobian, "vjp": vjp, "jvp": jvp}, out_shape=out_shape, bounds=bounds, noise=noise,
        seed=seed, sparsity=sparsity, memory=memory,
    )  # fmt: skip
    calling = {"vectorized": vectorized, "scalars": scalars, "tensors": tensors, "executor": executor}
    if fn is None:
        return lambda function: Wrapped(function, options, static, calling)
    return Wrapped(fn, options, static, calling)


class Wrapped:
    """A function with derivatives; made by :func:`wrap`.

    Attributes
    ----------
    fn : callable
        The function itself.
    """

    def __init__(
        self, fn: Callable[..., Any], options: Options, static: Sequence[int | str], calling: dict[str, Any]
    ) -> None:
        if not callable(fn):
            raise TypeError(f"wrap: {fn!r} is not callable")
        update_wrapper(self, fn, updated=())
        self.fn = fn
        self.options = options
        self._info: Callable[[], Info] | Info | None = None
        self._signature = _signature(fn)
        self._parameters = tuple(self._signature.parameters) if self._signature else ()
        self._static = _static(static, self._parameters, fn, _most_arguments(self._signature))
        ufunc = isinstance(fn, np.ufunc) and fn.signature is None
        self._calling: dict[str, Any] = calling | {
            "elementwise": options.sparsity == "elementwise"
            if isinstance(options.sparsity, str)
            else options.sparsity is None and (ufunc or calling["scalars"] or options.derivative is not None),
            "vectorized": ufunc or calling["vectorized"],
        }
        self._tasks: OrderedDict[Any, tuple[Task, str]] = OrderedDict()
        self._pinned: dict[str, Task] = {}
        self._name_for_compilers = f"wrapped {next(_numbers)}"
        _wrapped[self._name_for_compilers] = self

    def __repr__(self) -> str:
        return f"<bridge.wrap of {_name(self.fn)}, derivative {self.options.given or self.options.method!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        """Return the same object, as for every function."""
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a decorated function by its name, others by what they wrap."""
        module, name = getattr(self.fn, "__module__", ""), getattr(self.fn, "__qualname__", "")
        if look_up(module, name) is self:
            return name
        return Wrapped, (self.fn, self.options, tuple(self._static), self._calling)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with tensors (or numbers, or arrays); return a tensor or a tuple of tensors."""
        inputs, statics = self.sorted_arguments(args, kwargs)
        count = len(inputs) + len(statics)
        if torch.compiler.is_compiling():
            found = operators.call(_constant_handle(self._name_for_compilers, count, statics), 0, inputs)
            return found[0] if len(found) == 1 else tuple(found)
        task, handle = self.task(count, statics)
        plain = operators.plainly(inputs)
        if not plain or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
            found = functions.call(task, handle, inputs, plain)
        else:
            arrays = [array_of(t) for t in inputs]
            device = inputs[0].device
            found = [tensor_of(y, device) for y in task.value(arrays, remember=False)]
        tell_integral(task, inputs, found)
        return found[0] if len(found) == 1 else tuple(found)

    def forget(self) -> None:
        """Forget remembered values and Jacobians: after a change that the function's outputs do not show."""
        for task in [*(task for task, _ in self._tasks.values()), *self._pinned.values()]:
            task.forget()

    def linearization(self, inputs: Sequence[Tensor], statics: tuple[Any, ...] = ()) -> Linearization:
        """Return what is known about the function at an input: its Jacobian, its noise."""
        task, _ = self.task(len(inputs) + len(statics), statics)
        arrays = tuple(array_of(t) for t in inputs)
        return task.linearize(arrays, floating(arrays))

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return all arguments in order; keyword-only ones have no place and must be bound by functools.partial."""
        if self._signature is None:
            raise TypeError(f"{_name(self.fn)} has no signature that Python knows: pass its arguments by position")
        bound = self._signature.bind(*args, **kwargs)
        if bound.kwargs:
            raise TypeError(
                f"{_name(self.fn)}: bind keyword-only arguments {list(bound.kwargs)} with functools.partial"
            )
        bound.apply_defaults()
        return bound.args

    def separated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the inputs as they were passed, and the static arguments."""
        args = self._positional(args, kwargs) if kwargs else args
        statics: tuple[Any, ...] = ()
        if self._static:
            if self._signature is None or _most_arguments(self._signature) is None:
                absent = [i for i in sorted(self._static) if i >= len(args)]
                if absent:
                    raise TypeError(
                        f"{_name(self.fn)}: static={absent[0]}, but it was called with {len(args)} arguments"
                    )
            statics = tuple(a for i, a in enumerate(args) if i in self._static)
            args = tuple(a for i, a in enumerate(args) if i not in self._static)
        if not args:
            raise TypeError(f"{_name(self.fn)}: called without any input")
        return args, statics

    def sorted_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[list[Tensor], tuple[Any, ...]]:
        """Return the inputs as tensors, and the static arguments."""
        inputs, statics = self.separated(args, kwargs or {})
        for a in inputs:
            if not isinstance(a, Tensor):
                return _as_tensors(inputs, _name(self.fn)), statics
        return list(inputs), statics

    def task(self, count: int, statics: tuple[Any, ...]) -> tuple[Task, str]:
        """Return the function with these static arguments, registered."""
        key = count, tuple(map(_told_apart, statics))
        try:
            found = self._tasks.get(key)
        except TypeError:
            raise TypeError(
                f"{_name(self.fn)}: static arguments must be hashable; bind others with functools.partial or a "
                f"lambda"
            ) from None
        if found is None:
            values = iter(statics)
            slots = tuple(next(values) if i in self._static else INPUT for i in range(count))
            names = [self._parameters[i] if i < len(self._parameters) else str(i) for i in range(count)]
            inputs = [name for name, slot in zip(names, slots, strict=True) if slot is INPUT]
            task = Task(
                Callee(self.fn, _name(self.fn), slots, **self._calling), self.options, inputs, self._remember
            )
            found = self._tasks[key] = (task, operators.register(task))
            if len(self._tasks) > TASKS:  # graphs hold on to the tasks they need, compiled code to all it has seen
                self._tasks.popitem(last=False)[1][0].forget()
        else:
            self._tasks.move_to_end(key)
        return found

    def pinned_handle(self, count: int, statics: tuple[Any, ...]) -> str:
        """Return the handle of a task that is never let go: for compilers, which keep the handle alone."""
        task, handle = self.task(count, statics)
        self._pinned[handle] = task
        return handle

    @property
    def info(self) -> Info | None:
        """Error estimates, evaluations and noise level of the last backward pass."""
        if callable(self._info):
            self._info = self._info()
        return self._info

    def _remember(self, info: Callable[[], Info] | None) -> None:
        self._info = info


@constant_for_compilers
def _constant_handle(name: str, count: int, statics: tuple[Any, ...]) -> str:
    """Return the handle of a wrapped function, which a compiler recognises by its name: it guards strings."""
    if (
        in_transform() or forward_mode_open()
    ):  # operators have no forward mode: torch would take their tangents for 0
        raise NotImplementedError(
            "torch.compile of a torch.func transform over a function wrapped with quadgrad.bridge is not "
            "supported: "
            "apply the transform outside torch.compile, or leave that part uncompiled"
        )
    return _wrapped[name].pinned_handle(count, statics)


def _as_tensors(values: Sequence[Any], name: str) -> list[Tensor]:
    """Turn arrays and numbers into tensors; Python floats take the dtype of the others."""
    for i, v in enumerate(values):
        refuse_dressed(v, f"{name}: input {i}")
    tensors = [torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray | np.generic) else v for v in values]
    real = [t.dtype for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    dtype = real[0] if real else torch.float64
    for other in real[1:]:
        dtype = torch.promote_types(dtype, other)
    device = next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))
    return [_as_tensor(v, i, name, dtype, device) for i, v in enumerate(tensors)]


def _as_tensor(value: Any, position: int, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=dtype if isinstance(value, float) else None, device=device)
    raise unknown_input(value, position, name)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", None) or type(fn).__name__


def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):  # ufuncs and compiled functions may have none
        return None


def _most_arguments(signature: inspect.Signature | None) -> int | None:
    """Return how many positional arguments a function takes; None if any number, or nobody knows."""
    if signature is None or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values())


def _told_apart(value: Any) -> Any:
    """Return a key for a static argument: Python takes 1 for True and 1.0, and 0.0 for -0.0; a function may not."""
    if isinstance(value, tuple):
        return type(value), tuple(map(_told_apart, value))
    return type(value), repr(value) if isinstance(value, float | complex) else value


def _static(
    static: Sequence[int | str], parameters: Sequence[str], fn: Callable[..., Any], most: int | None
) -> frozenset[int]:
    """Return the positions of static arguments; ``most`` is how many arguments fn takes, if that is known."""
    if isinstance(static, int | str):
        static = (static,)
    positions: set[int] = set()
    for key in static:
        if isinstance(key, str) and key not in parameters:
            raise ValueError(f"static={key!r} is no parameter of {_name(fn)}; it has {', '.join(parameters)}")
        position = parameters.index(key) if isinstance(key, str) else key
        if position < 0 or (most is not None and position >= most):
            has = f"it has {most}, counted from 0" if most is not None else "positions are counted from 0"
            raise ValueError(f"static={key!r} is no position of an argument of {_name(fn)}; {has}")
        positions.add(position)
    return frozenset(positions)
