"""What a function of the caller's did wrong, and the line to write instead.

For functions that raise, and for what they return in the place of a tensor. It reads the exception and the names in
the caller's code, and knows nothing of integrals.
"""

from __future__ import annotations

import difflib
import dis
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Number
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.errors import IntegrandError

__all__ = ["Called", "remedy", "signature", "spread"]

NUMERIC = ("math", "cmath", "numpy", "scipy")
"""Modules whose functions know nothing of tensors."""

TWINS = {
    "absolute": "torch.abs", "clip": "torch.clamp", "expit": "torch.sigmoid", "fabs": "torch.abs",
    "gamma": "torch.exp(torch.lgamma(...))", "gammaln": "torch.lgamma", "hypot": "torch.hypot",
    "psi": "torch.digamma", "where": "torch.where",
}  # fmt: skip
"""Torch's name where it is another, or where the function is no ufunc; all else has the same name."""

MAKERS = {"arange", "array", "asarray", "empty", "errstate", "full", "linspace", "ones", "zeros"}
"""Functions that make arrays, which are not what has to be replaced."""

UNLIKE = {"divmod", "frexp", "gcd", "lcm", "ldexp", "modf", "spacing"}
"""Functions of a name that torch has, too, but not for real numbers, or without a derivative."""

OTHERS = ("quadgrad", "torch", "numpy", "scipy", "tensorflow", "keras")
"""Libraries in which nothing can be rewritten."""

DTYPES = {
    "double": torch.float64, "float64": torch.float64, "float": torch.float32, "float32": torch.float32,
    "half": torch.float16, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
"""How torch's own messages call them."""


@dataclass(frozen=True)
class Called:
    """How a function of the caller's was called.

    Attributes
    ----------
    function : callable
    x : Tensor
    args : sequence
    vectorized : bool
        Whether it was called with tensors, or with Python floats.
    point_ndim : int
        Dimensions of one point, the last ones of x.
    one_by_one : str
        What calls f with one number at a time.
    """

    function: Callable[..., Any]
    x: Tensor
    args: Sequence[Any]
    vectorized: bool = True
    point_ndim: int = 0
    one_by_one: str = "vectorized=False"

    @property
    def grid(self) -> torch.Size:
        """The shape of x without the dimensions of one point."""
        return self.x.shape[: self.x.ndim - self.point_ndim]


Adviser = Callable[[Exception, str, Called], str]


def remedy(error: Exception, called: Called, advisers: Sequence[Adviser] | None = None) -> str:
    """Return what to write instead where a function raised, a sentence after a full stop; empty if unknown."""
    said = str(error)
    for advise in advisers or (
        signature, _misnamed, _writes_to_x, _leaves_torch, _takes_tensors, _container, _joins_others,
        _takes_one_number, _mixes_dtypes, _mixes_devices, _network, _joins_shapes, _element,
    ):  # fmt: skip
        if text := advise(error, said, called):
            return f". {text}"
    return ""


def spread(name: str, y: Any, called: Called) -> Tensor:
    """Return a number that f returned, at each x.

    Raises
    ------
    IntegrandError
        If f returned something else, or one number that it had made of many x.
    """
    # Where zeros are looked for a constant is a mistake.
    if not isinstance(y, int | float | complex | np.number | np.bool_) or name == "the function given as jumps":
        raise IntegrandError(_instead_of_a_tensor(name, y, called))
    x, grid = called.x, called.grid
    flat = x.flatten(0, len(grid) - 1) if len(grid) > 1 else x
    for one in _unlike(flat) if grid.numel() > 1 else ():
        other = called.function(one.expand(flat.shape).reshape(x.shape), *called.args)
        if isinstance(other, Tensor) or not (other == y or (other != other and y != y)):
            raise IntegrandError(
                f"{name} returned one number for many x, {y!r}, and {other!r} where all x are one of them: "
                "leave out float(), .item(), .sum() and .mean(); a function of one number needs "
                f"{called.one_by_one}. A constant is the same number whatever x is"
            )
    if isinstance(y, complex | np.complexfloating):
        return x.new_full(grid, complex(y), dtype=x.dtype.to_complex())
    return x.new_full(grid, float(y))


def _unlike(x: Tensor) -> list[Tensor]:
    """Return two of many points that are far apart: nodes that lie evenly have a mean which is one of them."""
    along = x.detach().reshape(len(x), -1)
    along = along @ torch.arange(1.0, along.shape[1] + 1.0, dtype=x.dtype, device=x.device).rsqrt()
    return [x[i : i + 1] for i in (int(along.argmin()), int(along.argmax()))]


INSTEAD: dict[Any, str] = {
    (list, tuple): "several values at each x are stacked behind it, torch.stack([...], dim=-1), or integrated one "
    "by one. Of what torch returns in several parts take one: x.max(-1).values, lstm(x)[0]",
    (set, frozenset, Iterator): "several values at each x are stacked behind it, torch.stack(list(...), dim=-1)",
    dict: "stack its values behind x, torch.stack(list(values), dim=-1), or return one of them",
    (str, bytes, Number, Decimal): "a constant is a float: float(...) of it",
    torch.distributions.Distribution: "return what it gives at x, .log_prob(x).exp(), or use quadgrad.expectation",
}
"""What to return instead of an object of some kind."""


def _instead_of_a_tensor(name: str, y: Any, called: Called) -> str:
    """Say what was returned in the place of a tensor, and what to return."""
    kind = type(y).__name__
    text = f"{name} returned {kind}, not a torch.Tensor"
    if y is None:
        return f"{text}: is its return missing? A def needs one, a lambda has none"
    if isinstance(y, np.ndarray):
        return f"{text}: NumPy has no gradient. To keep it, {_in_torch(_foreign(called.function, None))}"
    for kinds, instead in INSTEAD.items():
        if isinstance(y, kinds):
            return f"{text}: {instead}"
    if isinstance(getattr(y, "value", None), Tensor):
        return f"{text}: return its value, {kind}.value"
    if type(y).__module__.partition(".")[0] in ("tensorflow", "keras"):
        return f"{text}: integrate functions of TensorFlow by quadgrad.tensorflow"
    if callable(y):
        return f"{text}: it was not called; end it with (x)"
    return (
        f"{text}: a function of one number needs {called.one_by_one}; to keep the gradient of NumPy, SciPy or "
        "compiled code wrap it with quadgrad.bridge.wrap"
    )


def signature(error: Exception, said: str, called: Called) -> str:
    """Of a function that cannot be called with what was passed."""
    if not isinstance(error, TypeError) or not re.search(r"positional argument|takes no arguments", said):
        return ""
    function = called.function
    if isinstance(function, type):
        return f"f is the class {function.__name__}: pass an object of it, {function.__name__}(...)"
    if any(_is_theirs(frame) for frame in _frames(error)):  # it was raised further inside
        return ""
    many = f"x and {len(called.args)} in args"
    if match := re.search(r"missing .*arguments?: (.*)", said):
        names = ", ".join(re.findall(r"'(\w+)'", match[1]))
        beside = f"args=({'..., ' * bool(called.args)}{names},)"
        if called.point_ndim:
            return f"All coordinates of a point are in x, x[..., 0], x[..., 1]; what f takes beside is in {beside}"
        text = f"f was called with {many}: pass what it takes beside x, {beside}"
        if any(isinstance(a, Tensor) and a.ndim for a in called.args):
            text += ". A tensor in args is one argument, each entry of which is another integral"
        return text
    names = ", ".join("xpqrstuvw"[: 1 + len(called.args)])
    return f"f was called with {many}: it has to take them, as in lambda {names}: ..."


def _leaves_torch(error: Exception, said: str, called: Called) -> str:
    """Of NumPy and SciPy functions, whose results have no gradient, and of arrays among tensors."""
    words = r"numpy\(\)|'numpy\.ndarray'|np\.ndarray|__array__|ufunc|numpy ndarray|\.data_ptr|convert.*numpy"
    if not re.search(words, said, re.IGNORECASE):
        return ""
    return (
        "f leaves torch for NumPy, where the gradient is lost, and .detach() would lose it silently"
        + (" (x itself requires grad here): " if called.x.requires_grad else ": ")
        + _in_torch(_foreign(called.function, error))
    )


def _in_torch(names: dict[str, str]) -> str:
    """Say which torch functions stand in for others, and that those without one are wrapped."""
    twins = [f"{twin} for {name}" for name, twin in names.items() if twin]
    others = [name for name, twin in names.items() if not twin]
    said = [f"write {', '.join(twins[:4])}"] if twins else []
    if others:
        said += [
            f"torch has no {others[0]}: quadgrad.bridge.wrap({others[0]}) makes it a function of tensors, "
            "with a gradient"
        ]
    if not names:
        said += ["use torch's functions; where there is none, quadgrad.bridge.wrap(f) gives f a gradient"]
    return "; ".join(said)


def _misnamed(error: Exception, said: str, called: Called) -> str:
    """Of names that are not defined, where torch has one like it."""
    match = re.search(r"^name '(\w+)' is not defined|^module 'torch' has no attribute '(\w+)'", said)
    if not match or not called.vectorized:
        return ""
    name = match[1] or match[2]
    like = [name] if hasattr(torch, name) else difflib.get_close_matches(name, dir(torch), 1, 0.75)
    like = [one for one in like if callable(getattr(torch, one)) and not one.startswith("_")]
    return f"Write torch.{like[0]}" if like else ""


def _writes_to_x(error: Exception, said: str, called: Called) -> str:
    """Of functions that change what they were given."""
    if "in-place operation" not in said:
        return ""
    return "x is not written to: y = x + 1 for x += 1 and x.add_(1), torch.where(mask, u, x) for x[mask] = u"


def _takes_tensors(error: Exception, said: str, called: Called) -> str:
    """Of tensor functions that are given a number, and of what tensors do not have."""
    if match := re.search(r"'Tensor' object has no attribute '(\w+)'", said):
        theirs = {"astype": "x.to(dtype)", "copy": "x.clone()"}.get(match[1])
        return f"Tensors have no {match[1]}, but {theirs}" if theirs else ""
    name = said.partition("(")[0]
    limit = {"max": "torch.clamp(x, min=c)", "min": "torch.clamp(x, max=c)"}.get(name.removesuffix("imum"))
    if not re.search(r"must be Tensor, not (int|float)", said):
        unfit = re.search(r"invalid combination of arguments - got \(Tensor, (int|float)\)", said)
        return f"With a number c that is {limit}" if limit and unfit else ""
    if not called.vectorized:
        return "With vectorized=False x is a Python float: use math.exp and the like, or leave vectorized=False out"
    alone = f"for a number c write math.{name}(c)" * ("position 1" in said)
    instead = ", or ".join(filter(None, (limit or alone, "make a tensor of it, x.new_tensor(c)")))
    return f"torch.{name} takes tensors: {instead}"


def _joins_others(error: Exception, said: str, called: Called) -> str:
    """Of operators between a tensor and what is no number."""
    match = re.search(r"operand type\(s\) for .*: '(\w+)' and '(\w+)'", said)
    if not match or "Tensor" not in match.groups():
        return ""
    return {
        "NoneType": "Something that f calls returned None: is its return missing?",
        "str": "A str is no number: float('2') is one",
        "list": "Make a tensor of the list, x.new_tensor([...]); each of its entries meets each x in x[..., None]",
        "tuple": "Of what is in the tuple take one, or torch.stack((...), dim=-1)",
        "dict": "Take a value of the dict by its key",
        "Result": "A Result is not its value: write result.value",
        "function": "The function was not called: end it with (x)",
        "builtin_function_or_method": "The function was not called: end it with (x)",
        "method": "The method was not called: end it with ()",
    }.get(match[1] if match[2] == "Tensor" else match[2], "")  # fmt: skip


ONE_NUMBER = {
    r"ambiguous": "if, and, or, not, max and a < x < b decide once: torch.where decides for each x, "
    "torch.where(x > c, u, v), & and | join comparisons, torch.clamp stands in for max and min",
    r"__round__|__trunc__": "write torch.round(x), torch.floor(x)",
    r"converted to an index|used as indices must be": "x is no whole number: a table is read by table[x.long()], "
    "a list is multiplied as x.new_tensor([...]), and range(n) needs one n for all",
    r"format string|string to float": "a tensor is written by no format, and no number is made of what is written",
    r"'list'|'float' object": "leave out x.tolist() and x.item(): x and what becomes of it are tensors",
    r"element tensors? can be|converted to Scalar|size-1 arrays|must be real number": "leave out float(x) and "
    "x.item(): x and what becomes of it are tensors",
}
"""What to write where something took one number, by what it said."""


def _container(error: Exception, said: str, called: Called) -> str:
    """Of what is in args and no number or tensor, which f gets as it is."""
    strange = [(i, a) for i, a in enumerate(called.args) if not isinstance(a, Tensor | Number | np.number)]
    if not strange or not isinstance(error, TypeError) or any(callable(a) for _, a in strange):
        return ""
    i, value = strange[0]
    text = f"args[{i}] is {'None' if value is None else f'a {type(value).__name__}'}, which f gets as it is"
    if isinstance(value, dict):
        return f"{text}: pass its values one by one, args=(p, q), or let f close over it"
    if isinstance(value, list | tuple):
        return f"{text}: each entry of torch.tensor(...) is another integral, quadgrad.element is for one"
    return f"{text}: pass a number or a tensor"


def _takes_one_number(error: Exception, said: str, called: Called) -> str:
    """Of functions that take one number."""
    instead = next((text for words, text in ONE_NUMBER.items() if re.search(words, said)), "")
    if not instead or not called.vectorized:
        return ""
    if instead.startswith("leave out float"):
        twins = {name: twin for name, twin in _foreign(called.function, error).items() if twin}
        instead = f"{_in_torch(twins)}, {instead}" if twins else instead
    return f"f is called with many x at once: {instead}. A function of one number needs {called.one_by_one}"


def _mixes_dtypes(error: Exception, said: str, called: Called) -> str:
    """Of functions that hold numbers of another dtype than x."""
    words = r"(?:torch\.|c10::)?(BFloat16|Float64|Float32|Float16|Double|Float|Half)(?:Tensor)?\b"
    named = {DTYPES[word.lower()] for word in re.findall(words, said, re.IGNORECASE)}
    x = called.x.dtype
    others = sorted(named - {x}, key=str)
    if x not in named or not others or not re.search(r"dtype|type", said):
        return "Whole numbers are x.long()" if re.search(r"scalar types: Long|expected.*Long", said) else ""
    own, other = _short(x), _short(others[0])
    strange = [f"args[{i}]" for i, a in enumerate(called.args) if isinstance(a, Tensor) and a.dtype == others[0]]
    text = (
        f"x is {own}, {', '.join(strange) or 'what f closes over'} is {other}. x has the dtype of the "
        "tensors among "
    )
    text += f"limits, args and points, {_short(torch.get_default_dtype())} where all are plain numbers: "
    method = {"float64": "double", "float32": "float", "float16": "half"}.get(own, own)
    if others[0].itemsize < x.itemsize and others[0].itemsize < 4:
        return text + f"call it with x.to(torch.{other}), and make .float() of what it returns"
    if strange:  # a network that is closed over may hold more of that dtype, which no message tells
        return text + f"pass {strange[0]} as .{method}(), and a network that f calls; or limits in {other}"
    return (
        text
        + f"give a limit in {other}, torch.tensor(0.0, dtype=torch.{other}), or turn the network by .{method}()"
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mixes_devices(error: Exception, said: str, called: Called) -> str:
    """Of functions that hold numbers on another device than x."""
    if not re.search(r"same device|expected device|on device|is on (cpu|cuda|meta|mps)", said):
        return ""
    here = str(called.x.device)
    named = [d for d in re.findall(r"\b(?:cpu|meta|mps|xpu|cuda(?::\d+)?)\b", said) if d != here]
    other = named[0] if named else "another device"
    strange = [f"args[{i}]" for i, a in enumerate(called.args) if isinstance(a, Tensor) and str(a.device) != here]
    what = ", ".join(strange) if strange else "what f closes over"
    return (
        f"x is on {here}, {what} on {other}. x is on the device of the tensors among limits, args and "
        "points, the CPU "
        f"where all are plain numbers: give a limit there, torch.tensor(0.0, device={other!r}), or move "
        "the other by "
        f".to({here!r})"
    )


def _network(error: Exception, said: str, called: Called) -> str:
    """Of networks, which want a dimension of features behind x."""
    if not re.search(
        r"mat1 and mat2 shapes|to have \d+ channels|input\.size\(-1\)|size_average|channel when training", said
    ):
        return ""
    if called.point_ndim:
        text = "A network of d inputs takes x as it is, net(x)[..., 0], and d is the length of a and b"
        if any(isinstance(a, Tensor) and a.ndim > 1 for a in called.args):
            text += ". Each entry of a tensor in args is another integral: a matrix is quadgrad.element(m, ndim=2)"
        return text
    return (
        "A network wants one row of features for each x, which is one number: net(x[..., None])[..., 0], "
        "with other "
        "inputs beside it by torch.stack([x, c.expand(x.shape)], dim=-1). BatchNorm and dropout: net.eval() first"
    )


def _joins_shapes(error: Exception, said: str, called: Called) -> str:
    """Of what does not broadcast, unlike sums and products."""
    if not re.search(r"same number of dimensions|Sizes of tensors must match|stack expects each tensor", said):
        return ""
    x, shape = ("x", "x.shape[:-1]") if called.point_ndim else ("x[..., None]", "x.shape")
    return (
        f"torch.cat and torch.stack do not broadcast: {x} stands beside c.expand(*{shape}, c.shape[-1]). {OWN_ROWS}"
    )


OWN_ROWS = (
    "What differs from integral to integral is passed in args, a row for each as quadgrad.element(c, ndim=1), and "
    "not closed over"
)


def _element(error: Exception, said: str, called: Called) -> str:
    """Of parameters that belong together, each of which was taken for another integral's, or that f closes over."""
    words = r"out of bounds|must match|must be broadcastable|to unpack|missing .* required positional|square matri"
    more = r"invalid for input|size mismatch|expand|shape mismatch|Dimension out of range"
    if not re.search(f"{words}|{more}", said):
        return ""
    if not any(isinstance(a, Tensor) and a.ndim for a in called.args):
        return OWN_ROWS if re.search(r"must match|broadcastable|expand|shape mismatch", said) else ""
    return (
        "Each entry of a tensor in args is another integral: pass a vector, matrix or sequence that "
        "belongs to one as "
        "quadgrad.element(t, ndim=k), and read it as p[..., i]; or close over it"
    )


def _foreign(function: Any, error: Exception | None) -> dict[str, str]:
    """Return the functions of NumPy, SciPy and math that the caller's code names, each with torch's for it."""
    found: dict[str, str] = {}
    for code, names in _codes(function, error):
        for path in _dotted(code):
            if (value := _numeric(path, names)) is not None:
                found.setdefault(path if path != "function" else f"{_home(value)}.{value.__name__}", _twin(value))
        if found:
            break
    return found


def _dotted(code: CodeType) -> Iterator[str]:
    """Yield the names that code loads, with the attributes that it asks of each: ``np.linalg.norm``."""
    path = ""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path += f".{step.argval}" if path else ""
            continue
        if path:
            yield path
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)  # some load two at once
        path = names[-1] if step.opname.startswith("LOAD_") and isinstance(names[-1], str) else ""
    for inner in code.co_consts:  # lambdas and, before Python 3.12, comprehensions
        if isinstance(inner, CodeType):
            yield from _dotted(inner)


def _numeric(path: str, names: dict[str, Any]) -> Any:
    """Return the function of NumPy, SciPy or math that a path names, or None."""
    first, *rest = path.split(".")
    value = names.get(first)
    home = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
    at_home = home.partition(".")[0] in NUMERIC
    if rest and not at_home or "random" in rest:  # of other objects nothing is asked; to wrap chance would not help
        return None
    for attribute in rest:
        value = getattr(value, attribute, None)
    if not callable(value) or isinstance(value, type) or getattr(value, "__name__", None) in (None, *MAKERS):
        return None
    known = isinstance(value, np.ufunc) or str(getattr(value, "__module__", "")).partition(".")[0] in NUMERIC
    return value if known or (at_home and rest) else None


def _codes(function: Any, error: Exception | None) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """Yield the caller's code, that which raised first, and what its names mean."""
    for frame in reversed(_frames(error)):
        if _is_theirs(frame):
            yield frame.f_code, frame.f_globals | frame.f_locals
    while (inner := getattr(function, "func", getattr(function, "__wrapped__", None))) is not None:
        function = inner
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        cells = (getattr(cell, "cell_contents", None) for cell in function.__closure__ or ())
        yield code, function.__globals__ | dict(zip(code.co_freevars, cells, strict=False))
    elif getattr(function, "__name__", None):
        yield (lambda: function).__code__, {"function": function}


def _frames(error: Exception | None) -> list[FrameType]:
    """Return where an exception has come from, the innermost last."""
    return [] if error is None else [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_theirs(frame: FrameType) -> bool:
    library = frame.f_globals.get("__name__", "").partition(".")[0]
    return library not in OTHERS and library not in sys.stdlib_module_names - {"__main__"}


def _home(value: Any) -> str:
    known = hasattr(np, value.__name__)
    return str(getattr(value, "__module__", None) or ("numpy" if known else "scipy.special"))


def _twin(value: Any) -> str:
    """Return torch's function of the same name, if both are elementwise."""
    name = getattr(value, "__name__", "")
    if name in TWINS:
        return TWINS[name]
    if name in UNLIKE or not (isinstance(value, np.ufunc) or getattr(value, "__module__", "") in ("math", "cmath")):
        return ""
    if hasattr(torch, name):
        return f"torch.{name}"
    return f"torch.special.{name}" if hasattr(torch.special, name) else ""
