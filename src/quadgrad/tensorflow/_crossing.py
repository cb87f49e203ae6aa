"""Arrays across the border between torch and TensorFlow, by DLPack: without a copy wherever memory allows it.

Neither side may write to what it got: both see one memory. TensorFlow tensors cannot be written to, and the engine
never modifies what f returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad.tensorflow._framework import tf

__all__ = ["is_tensor", "tensorflow_dtype", "to_tensorflow", "to_torch", "torch_dtype"]

ALIGNMENT = 64
"""Bytes. TensorFlow ends the process, with no exception, where DLPack gives it memory that is aligned to fewer."""

_TO_TENSORFLOW: dict[torch.dtype, Any] = {
    torch.bool: tf.bool,
    torch.uint8: tf.uint8,
    torch.int8: tf.int8,
    torch.int16: tf.int16,
    torch.int32: tf.int32,
    torch.int64: tf.int64,
    torch.float16: tf.float16,
    torch.bfloat16: tf.bfloat16,
    torch.float32: tf.float32,
    torch.float64: tf.float64,
    torch.complex64: tf.complex64,
    torch.complex128: tf.complex128,
}
_TO_TORCH: dict[Any, torch.dtype] = {there: here for here, there in _TO_TENSORFLOW.items()}


def is_tensor(value: Any) -> bool:
    """Whether a value is a TensorFlow tensor or variable, or one of Keras."""
    return tf.is_tensor(value)


def torch_dtype(dtype: Any) -> torch.dtype:
    """Return torch's name of a TensorFlow dtype.

    Raises
    ------
    TypeError
        If torch has no such numbers.
    """
    found = _TO_TORCH.get(tf.as_dtype(dtype))
    if found is None:
        raise TypeError(f"numbers of TensorFlow's {tf.as_dtype(dtype).name} cannot be integrated: tf.cast them")
    return found


def tensorflow_dtype(dtype: torch.dtype) -> Any:
    """Return TensorFlow's name of a torch dtype."""
    return _TO_TENSORFLOW[dtype]


def to_torch(tensor: Any) -> Tensor:
    """Return the numbers of an eager TensorFlow tensor or variable, without a copy; they must not be written to."""
    dtype = torch_dtype(tensor.dtype)
    tensor = tf.convert_to_tensor(tensor)
    shape = tuple(tensor.shape)
    if 0 in shape:  # there is no memory that DLPack could tell of
        return torch.empty(shape, dtype=dtype)
    return torch.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor))


def to_tensorflow(tensor: Tensor) -> Any:
    """Return the numbers of a torch tensor as an eager one of TensorFlow, without a copy where memory is aligned.

    The torch tensor must not be written to as long as the other lives.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.numel() == 0:
        return tf.zeros(tuple(tensor.shape), tensorflow_dtype(tensor.dtype))
    if tensor.data_ptr() % ALIGNMENT:
        tensor = tensor.clone()
    return tf.experimental.dlpack.from_dlpack(tensor.__dlpack__())
