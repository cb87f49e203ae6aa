"""Random bits computed from integers alone, on any device: no state, no order, no generator that others share.

A hash absorbs one key after another. After each, the state goes through the finalizer of SplitMix64 (Steele, Lea
and Flood, *OOPSLA* 2014) with Stafford's constants "Mix13": a bijection of 64 bits in which each bit of the input
turns over each bit of the output with a probability close to one half. Integers are those of two's complement, and
sums and products wrap around, as int64 does in torch on every device.
"""

from __future__ import annotations

import operator
from typing import Any, overload

from torch import Tensor

__all__ = ["fold_seed", "hash_bits", "hash_numbers", "mix"]

GOLDEN = -0x61C8864680B583EB
"""The golden ratio's 64 bits, 0x9E3779B97F4A7C15, odd: keys that differ by little enter with many bits changed."""

START = 0x243F6A8885A308D3
"""Digits of pi. Not zero, which the finalizer maps to itself."""

FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""Stafford's multipliers, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB."""

WORD = 1 << 64


def fold_seed(seed: Any) -> int:
    """Return any integer, however long and of either sign, as one that fits in int64.

    Those that fit already stay as they are; longer ones are hashed word by word.

    Raises
    ------
    TypeError
        If it is no integer; neither are floats without a fraction, nor True and False.
    """
    if isinstance(seed, bool):
        raise TypeError(f"seed={seed} is not an integer: pass one, for example seed=0")
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed={seed!r} is not an integer: pass one, for example seed=0") from None
    if -(1 << 63) <= number < 1 << 63:
        return number
    words = [int(number < 0), number.bit_length()]
    number = abs(number)
    while number:
        words.append(signed(number % WORD))
        number >>= 64
    return hash_numbers(*words)


def hash_numbers(*numbers: int) -> int:
    """Return 64 random bits for a tuple of integers, as an int64; in another order they give others."""
    state = START
    for number in numbers:
        state = mix(state + (number + 1) * GOLDEN)
    return state


def hash_bits(numbers: tuple[int, ...], *keys: Tensor) -> Tensor:
    """Return 64 random bits for each tuple of keys, as int64.

    Parameters
    ----------
    numbers : tuple of int
        The first keys, the same for all and absorbed on the host.
    *keys : Tensor of int64
        The others, one or more, which are broadcast. An element's bits depend on its own keys alone, and are those
        of :func:`hash_numbers`.
    """
    first, *others = keys
    bits = mix((first + 1) * GOLDEN + hash_numbers(*numbers))
    for key in others:
        bits = mix((key + 1) * GOLDEN + bits)
    return bits


@overload
def mix(state: int) -> int: ...
@overload
def mix(state: Tensor) -> Tensor: ...
def mix(state: int | Tensor) -> int | Tensor:
    """Return the finalizer of SplitMix64; a tensor is not changed."""
    if isinstance(state, Tensor):
        # In place after the first step: a long tensor's time goes into memory.
        mixed = state ^ shifted_right(state, 30)
        mixed.mul_(FIRST)
        mixed.bitwise_xor_(shifted_right(mixed, 27))
        mixed.mul_(SECOND)
        return mixed.bitwise_xor_(shifted_right(mixed, 31))
    word = state % WORD
    word = (word ^ word >> 30) * FIRST % WORD
    word = (word ^ word >> 27) * SECOND % WORD
    return signed(word ^ word >> 31)


def shifted_right(state: Tensor, count: int) -> Tensor:
    """Return int64 shifted with zeros moving in: torch's own shift repeats the sign."""
    return (state >> count).bitwise_and_((1 << (64 - count)) - 1)


def signed(word: int) -> int:
    """Return the int64 with these 64 bits."""
    return word - WORD if word >> 63 else word
