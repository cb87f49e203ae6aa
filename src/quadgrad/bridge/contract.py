"""What goes into a wrapped function and what may come out: copy in, check out.

It turns tensors into arrays and back, and says what is wrong with an output. It knows nothing of derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quadgrad._core.errors import BridgeError, BridgeWarning, warn
from quadgrad._core.nesting import current_record

__all__ = [
    "Array", "Arrays", "Spec", "add_input_note", "all_finite", "array_of", "complex_input", "cut", "describe",
    "output_arrays", "refuse_dressed", "refuse_other_specs", "rounding", "specs_of", "tensor_of", "unknown_input",
    "warn_not_finite",
]  # fmt: skip

Array = NDArray[Any]
Arrays = tuple[Array, ...]

_ALLOWED = frozenset(np.dtype(name) for name in ("float32", "float64", "complex64", "complex128"))
_HALF = frozenset((torch.float16, torch.bfloat16))
_SHOWN = 6


class Spec(NamedTuple):
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


def specs_of(arrays: Sequence[Array]) -> tuple[Spec, ...]:
    """Return the spec of each array."""
    return tuple(Spec(a.shape, a.dtype) for a in arrays)


def array_of(tensor: Tensor) -> Array:
    """Return a tensor as an array to read from; half precision, in which NumPy can hardly compute, as float32."""
    dtype = tensor.dtype
    if dtype.is_complex:
        raise complex_input(str(dtype).removeprefix("torch."))
    if dtype in _HALF:
        tensor = tensor.to(torch.float32)
    return tensor.numpy(force=True)


def complex_input(dtype: str) -> TypeError:
    """Return what is raised for an input that is complex."""
    return TypeError(
        f"bridge.wrap differentiates with respect to real inputs, and an input is {dtype}: pass its real and "
        "imaginary parts as two inputs"
    )


def unknown_input(value: Any, position: int, name: str) -> TypeError:
    """Return what is raised for an input that is neither a tensor nor an array nor a number."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("tensorflow", "keras"):
        return TypeError(
            f"{name}: input {position} is TensorFlow's {kind.__name__}, and bridge.wrap makes functions of torch "
            "tensors; quadgrad.tensorflow.wrap makes functions of TensorFlow's"
        )
    return TypeError(
        f"{name}: input {position} is {kind.__name__}, not a tensor, array or number; name arguments that are "
        "handed on as they are in static=(...)"
    )


def refuse_dressed(value: Any, what: str) -> None:
    """Raise for arrays that carry more than numbers, which would be lost: a mask, or a unit."""
    if isinstance(value, np.ma.MaskedArray):
        raise BridgeError(
            f"{what} is a masked array, and its mask would be lost: fill it (.filled(0.0)), or leave the "
            "masked entries out"
        )
    unit = getattr(value, "units", getattr(value, "unit", None))
    if unit is not None and not isinstance(value, Tensor) and not callable(unit):
        raise BridgeError(
            f"{what} is a {type(value).__name__} in {str(unit) or 'a unit of its own'}, and its unit would be "
            "lost: give the number in a unit of your choice (.to_value(unit) in astropy, .to(unit).magnitude "
            "in pint)"
        )


def cut(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Cut an array into pieces of these sizes along its last axis."""
    if len(sizes) == 1:
        return [array]
    ends = list(accumulate(sizes))
    return [array[..., end - size : end] for end, size in zip(ends, sizes, strict=True)]


def tensor_of(array: Array, device: torch.device) -> Tensor:
    """Return an array that nobody else holds as a tensor, in the same memory where it can be."""
    tensor = torch.from_numpy(array if array.flags.carray else np.require(array, requirements=("C", "W")))
    return tensor if device.type == "cpu" else tensor.to(device)


def rounding(values: Array, dtype: torch.dtype) -> Array:
    """Return by how much numbers change when they become tensors of a dtype."""
    if dtype == torch.float64:
        return np.zeros(values.shape)
    exact = torch.from_numpy(np.ascontiguousarray(values))
    return (exact.to(dtype).to(torch.float64) - exact).abs().numpy()


def output_arrays(result: Any, name: str, *, integers: bool = False) -> Arrays:
    """Return what a function returned as arrays, or say what is wrong with it.

    Parameters
    ----------
    result : array, number, tensor, or a tuple of them
    name : str
        The function, for messages.
    integers : bool
        Whether Python integers may stand for floats, as they do in functions of numbers.
    """
    if type(result) is np.ndarray and result.dtype in _ALLOWED:  # nearly always
        return (result,)
    parts = result if isinstance(result, tuple) else (result,)
    if not parts:
        raise BridgeError(f"{name} returned an empty tuple: return an array, or a tuple of arrays")
    return tuple(_output_array(part, name, integers) for part in parts)


def _output_array(part: Any, name: str, integers: bool) -> Array:
    if integers and isinstance(part, int):
        part = float(part)
    if isinstance(part, Tensor):
        part = part.detach().cpu().numpy()
    refuse_dressed(part, f"what {name} returned")
    if not isinstance(part, np.ndarray | np.generic | float | complex | int):
        hint = "; did it forget to return?" if part is None else "; np.asarray(...) makes an array of it"
        raise BridgeError(
            f"{name} returned {type(part).__name__}; expected a NumPy array, or a tuple of arrays for several "
            f"outputs{hint}"
        )
    array = np.asarray(part)
    if array.dtype not in _ALLOWED:
        raise BridgeError(
            f"{name} returned {array.dtype}; derivatives need float32, float64, complex64 or complex128: "
            "convert the output with .astype(...) where that is what you mean"
        )
    return array


def refuse_other_specs(found: Sequence[Spec], expected: Sequence[Spec], name: str, why: str) -> None:
    """Raise where outputs differ from what they should be."""
    if tuple(found) != tuple(expected):
        raise BridgeError(
            f"{name} returned {_list(found)}; expected {_list(expected)}, {why}. The shape and dtype of an output "
            "may depend on the shapes of the inputs, not on their values"
        )


def _list(specs: Sequence[Spec]) -> str:
    return " and ".join(map(str, specs))


def all_finite(array: Array) -> bool:
    """Whether all are finite, told by their sum where it is: one pass in place of three."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def warn_not_finite(outputs: Sequence[Array], inputs: Sequence[Array], name: str) -> None:
    """Warn, with the input, where an output is NaN or infinite."""
    for array in outputs:
        if not all_finite(array):
            record = current_record()
            if record is not None and name in record.said:  # an integrand is called many times
                return
            if record is not None:
                record.said.add(name)
            bad = array[~np.isfinite(array)]
            first = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            place = f" (the first at index {first})" if first else ""
            warn(
                f"{name} returned {bad[0]} in {bad.size} of {array.size} entries for the input {describe(inputs)}; "
                f"its derivative there is NaN too{place}",
                BridgeWarning,
            )
            return


def describe(inputs: Sequence[Any]) -> str:
    """Return inputs as one short line."""
    return ", ".join(_describe_one(value) for value in inputs)


def _describe_one(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    text = np.array2string(value, threshold=_SHOWN, edgeitems=2, precision=17, separator=", ")
    text = " ".join(text.split())
    return text if value.size <= _SHOWN else f"{text} (shape {value.shape})"


def add_input_note(error: BaseException, inputs: Sequence[Any], name: str) -> None:
    """Add to an exception the input for which the wrapped function raised it, once."""
    note = f"quadgrad.bridge: raised by {name} for the input {describe(inputs)}"
    if not any(old.startswith("quadgrad.bridge: raised by") for old in getattr(error, "__notes__", [])):
        error.add_note(note)
