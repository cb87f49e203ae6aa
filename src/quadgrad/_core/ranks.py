"""The processes that share a call: each computes some parts of a sum, and all hold the same bits of the whole.

Parts are fixed before it is known how many processes there are, and added in their order. Whatever a rank does
next with the others is preceded by a header from each, which says what it is, or that this rank has failed: so none
waits for one that has raised. None of it is torch's functional collectives, whose gradient depends on the number of
ranks.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from quadgrad._core._torch import in_transform
from quadgrad._core.nesting import current_record

__all__ = ["PARTS", "Ranks"]

PARTS = 64
"""Parts of a sum, or of a batch, at least if there is so much of it: so many processes can share one."""

PATIENCE = 0.25
"""Seconds that a rank computes between messages, if its parts are shorter: a rank that raises is heard in time.

A message for each part took twice the time of 2^20 cheap points.
"""

FASTER = 8
"""So many times as many parts for the next message at most: the parts to come may be longer."""

WAITING = 2**26
"""Bytes of sums that wait for a message at most, unless one part has more."""

SLICE = 2**24
"""Bytes that each rank sends at a time."""

_FAILED, _SUM, _GATHER, _DONE = range(4)

_Header = tuple[int, int, int]
"""What a rank tells before each message: what comes, microseconds it has computed, bytes it sends."""

Compute = Callable[[int], Sequence[Tensor]]


class Ranks:
    """The ranks of a process group; one alone if there is no group.

    As a context it makes errors common: what is raised inside on one rank is raised on all of them. All ranks enter
    and leave it together.

    Parameters
    ----------
    group : ProcessGroup, optional
        Of ``torch.distributed``, whose ranks all make the same call. Time-outs are the group's.

    Raises
    ------
    TypeError
        If it is no process group.
    ValueError
        If this process is not in the group, or the call is inside an integrand or a transform.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.count, self.rank = 1, 0
        self._depth, self._closed = 0, False
        self._waves, self._wave_seconds = 1, 0.0
        if group is None:
            return
        if group is distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("group: this process is not one of its ranks; only those that are make the call")
        if not isinstance(group, distributed.ProcessGroup):
            raise TypeError(
                f"group must be a process group of torch.distributed, such as torch.distributed.group.WORLD, not "
                f"{type(group).__name__}"
            )
        if current_record() is not None:
            raise ValueError("group: an integral inside an integrand is each rank's own; share the outermost one")
        if in_transform():
            raise ValueError("group: under torch.func transforms the integral has to be computed by one process")
        self.count, self.rank = distributed.get_world_size(group), distributed.get_rank(group)
        config = distributed.get_backend_config(group)
        self._backends = dict(pair.split(":", 1) for pair in config.split(",") if ":" in pair)
        kind = next(iter(self._backends), "cpu") if "cpu" not in self._backends else "cpu"
        self._device = torch.device(kind)

    @property
    def alone(self) -> bool:
        """Whether no other process takes part."""
        return self.group is None

    def check_device(self, device: torch.device) -> None:
        """Refuse a group whose backend cannot send tensors of this device."""
        if self.alone or device.type in self._backends:
            return
        have = " and ".join(f"{backend} for {kind}" for kind, backend in self._backends.items())
        remedy = {"cpu": "gloo", "cuda": "nccl"}.get(device.type, "one that serves it")
        raise ValueError(
            f"group: its backend is {have}, and the integral is on {device}. Make a group with "
            f"torch.distributed.new_group(backend={remedy!r}), or move limits and arguments"
        )

    def __enter__(self) -> Ranks:
        self._depth += 1
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Wait for the others; tell them of an error."""
        self._depth -= 1
        try:
            if not self.alone and not self._closed:
                if isinstance(error, Exception):
                    self._tell(error)
                elif error is None and self._depth == 0:
                    self._meet(_DONE)
        finally:
            if self._depth == 0:
                self._closed = False

    def fold(self, count: int, compute: Compute, like: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Add up parts in their order: the same bits on every rank, however many there are.

        Parameters
        ----------
        count : int
            The number of parts.
        compute : callable
            Returns the tensors of a part; called for this rank's parts alone, in ascending order.
        like : callable
            Returns tensors of the same shapes, for what other ranks compute.

        Raises
        ------
        Exception
            What ``compute`` raised here, or on the first rank on which it did: then on all.
        RuntimeError
            If another rank was lost, or does not do the same.
        """
        if self.alone:
            whole = None
            for part in range(count):
                new = compute(part)
                whole = list(new) if whole is None else [a + b for a, b in zip(whole, new, strict=True)]
            return list(like()) if whole is None else whole
        with self:
            return self._fold(count, compute, list(like()))

    def _fold(self, count: int, compute: Compute, like: list[Tensor]) -> list[Tensor]:
        """Add up parts, one of each rank in a wave; several waves in a message, where they are short."""
        layout = _Layout(like)
        sums, wave = layout.empty(1), 0
        while wave * self.count < count:
            now, began = self._waves_at_once(count, wave, layout.bytes), time.perf_counter()
            own = layout.empty(now)
            for part in self._own(count, wave, now):
                layout.enter(own, part // self.count - wave, compute(part))
            self._pace(now, self._meet(_SUM, time.perf_counter() - began, now * layout.bytes))
            for whole, mine in zip(sums, own, strict=True):
                self._add(whole[0], mine, wave, count)
            wave += now
        return layout.tensors(sums) if count else like

    def deal(self, count: int, compute: Callable[[int], Any]) -> list[Any]:
        """Return what ``compute`` returns for each part: something that pickles, of moderate size.

        Each rank calls it for its own parts, as in :meth:`fold`, whose errors may be raised here, too.
        """
        if self.alone:
            return [compute(part) for part in range(count)]
        with self:
            found: dict[int, Any] = {}
            wave = 0
            while wave * self.count < count:
                now, began = self._waves_at_once(count, wave), time.perf_counter()
                packed = _dumps({part: compute(part) for part in self._own(count, wave, now)})
                told = self._meet(_GATHER, time.perf_counter() - began, len(packed))
                self._pace(now, told)
                for each in self._collect_objects(packed, told):
                    found.update(pickle.loads(each))
                wave += now
            return [found[part] for part in range(count)]

    def _own(self, count: int, wave: int, waves: int) -> range:
        """Return the parts of this rank in some waves."""
        return range(wave * self.count + self.rank, min(count, (wave + waves) * self.count), self.count)

    def _waves_at_once(self, count: int, wave: int, size: int = 0) -> int:
        """Return how many waves of parts of so many bytes the next message has: alike on all ranks."""
        left = -(-count // self.count) - wave
        if self._wave_seconds == 0.0:
            return min(left, 1)
        most = min(FASTER * self._waves, PATIENCE / self._wave_seconds, WAITING / max(1, size))
        return min(left, max(1, int(most)))

    def _pace(self, waves: int, told: list[_Header]) -> None:
        """Note how long the slowest rank has computed for some waves."""
        slowest = max(microseconds for _, microseconds, _ in told)
        self._waves, self._wave_seconds = waves, 1e-6 * max(1, slowest) / waves

    def _add(self, whole: Tensor, own: Tensor, wave: int, count: int) -> None:
        """Add the parts of all ranks ``own`` ``(waves, n)`` to ``whole`` ``(n,)``, in their order."""
        width = max(1, SLICE // (own.element_size() * own.shape[0]))
        for low in range(0, own.shape[1], width):
            sent, sums = own[:, low : low + width].contiguous(), whole[low : low + width]
            received = [torch.empty_like(sent) for _ in range(self.count)]
            self._collect([t.view(torch.uint8) for t in received], sent.view(torch.uint8))
            for part in range(wave * self.count, min(count, (wave + own.shape[0]) * self.count)):
                row, rank = divmod(part, self.count)
                new = received[rank][row - wave]
                sums.copy_(new) if part == 0 else sums.add_(new)

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank has: something that pickles, of moderate size."""
        if self.alone:
            return [value]
        with self:
            packed = _dumps(value)
            told = self._meet(_GATHER, size=len(packed))
            return [pickle.loads(each) for each in self._collect_objects(packed, told)]

    def refuse_differences(self, given: dict[str, Any]) -> None:
        """Raise on all ranks if they were given different things: tensors, numbers, texts.

        Raises
        ------
        ValueError
            Naming the first of them that differs, and the ranks.
        """
        if self.alone:
            return
        each = self.gather({name: _fingerprint(value) for name, value in given.items()})
        for name in dict.fromkeys(name for one in each for name in one):
            others = [rank for rank, one in enumerate(each) if one.get(name) != each[0].get(name)]
            if others:
                one, other = (each[rank].get(name, ("nothing",))[0] for rank in (0, others[0]))
                other = "other values" if one == other else other
                raise ValueError(
                    f"{name} differs between the ranks of the group ({one} on rank 0, {other} on rank "
                    f"{others[0]}): a group shares one integral, so "
                    "every rank passes the same limits, arguments and options. Ranks with data of their own need "
                    "no group"
                )

    def refuse_other_values(self, probe: Tensor) -> None:
        """Raise on all ranks if f has given them different values at the same point, by more than rounding.

        Raises
        ------
        ValueError
            Naming the ranks.
        """
        if self.alone:
            return
        probe = probe.detach().cpu()
        each = self.gather(probe)
        eps = torch.finfo(probe.dtype).eps if probe.dtype.is_floating_point or probe.is_complex() else 0.0

        def differs(one: Tensor, other: Tensor) -> bool:
            if one.shape != other.shape or one.dtype != other.dtype:
                return True
            return not torch.allclose(one, other, rtol=eps**0.5, atol=0.0, equal_nan=True)

        others = [rank for rank, one in enumerate(each) if differs(one, each[0])]
        if others:
            raise ValueError(
                f"f differs between the ranks of the group: at the same point ranks {others} got another value "
                "than rank 0. What f closes over has to be the same on all, for example a network's weights"
            )

    def _meet(self, doing: int, seconds: float = 0.0, size: int = 0) -> list[_Header]:
        """Tell all ranks what comes next; return what each told. Raise if one failed, or does something else."""
        header = torch.tensor([doing, int(1e6 * seconds), size], dtype=torch.int64, device=self._device)
        received = [torch.empty_like(header) for _ in range(self.count)]
        self._collect(received, header)
        told: list[_Header] = [tuple(one.tolist()) for one in received]
        if any(one[0] == _FAILED for one in told):
            self._closed = True
            told = [one if one[0] == _FAILED else (_FAILED, 0, 0) for one in told]
            if doing != _FAILED:
                self._raise(self._collect_objects(b"", told))
        elif any(one[0] != doing or (one[2] != size and doing != _GATHER) for one in told):
            self._closed = True
            raise RuntimeError(
                "the ranks of the group are not in the same call: each has to make the same calls, and the same "
                "backward passes, in the same order"
            )
        return told

    def _tell(self, error: Exception) -> None:
        """Tell all ranks of an error here, which they then raise."""
        self._closed = True
        try:
            packed = _pack(error)
            self._collect_objects(packed, self._meet(_FAILED, size=len(packed)))
        except Exception as lost:  # of the backend, or of what the device lacks: the error here comes first
            error.add_note(f"quadgrad: the other ranks of the group could not be told: {lost}")

    def _raise(self, reports: list[bytes]) -> None:
        """Raise the error of the first rank that has one."""
        for rank, report in enumerate(reports):
            if report:
                raise _unpack(rank, *pickle.loads(report))

    def _collect_objects(self, packed: bytes, told: list[_Header]) -> list[bytes]:
        """Return the bytes of all ranks, which have told how many there are."""
        sent = torch.zeros(max(size for _, _, size in told), dtype=torch.uint8, device=self._device)
        if packed:
            sent[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in told]
        self._collect(received, sent)
        return [t[:size].cpu().numpy().tobytes() for t, (_, _, size) in zip(received, told, strict=True)]

    def _collect(self, received: list[Tensor], sent: Tensor) -> None:
        """Give each rank the tensors of all, and say so if one is lost."""
        try:
            distributed.all_gather(received, sent, group=self.group)
        except RuntimeError as error:
            self._closed = True
            raise RuntimeError(
                "the ranks of the group have lost each other: one has ended, or did not come within the group's "
                f"time-out. torch.distributed says: {error}"
            ) from error


class _Layout:
    """How tensors lie in flat ones, of one dtype each."""

    def __init__(self, like: list[Tensor]) -> None:
        self._like = like
        self._sizes: dict[torch.dtype, int] = {}
        self._places: list[tuple[torch.dtype, int, int]] = []
        for tensor in like:
            low = self._sizes.get(tensor.dtype, 0)
            self._sizes[tensor.dtype] = low + tensor.numel()
            self._places.append((tensor.dtype, low, low + tensor.numel()))
        self._order = {dtype: i for i, dtype in enumerate(self._sizes)}
        self.bytes = sum(t.numel() * t.element_size() for t in like)

    def empty(self, rows: int) -> list[Tensor]:
        """Return flat tensors for so many lists of tensors."""
        return [
            torch.zeros((rows, size), dtype=dtype, device=self._like[0].device)
            for dtype, size in self._sizes.items()
        ]

    def enter(self, flat: list[Tensor], row: int, tensors: Sequence[Tensor]) -> None:
        """Copy tensors into a row of flat ones."""
        for (dtype, low, high), tensor in zip(self._places, tensors, strict=True):
            flat[self._order[dtype]][row, low:high] = tensor.detach().reshape(-1)

    def tensors(self, flat: list[Tensor]) -> list[Tensor]:
        """Return the tensors in the first row of flat ones."""
        return [
            flat[self._order[dtype]][0, low:high].reshape(like.shape).clone()
            for (dtype, low, high), like in zip(self._places, self._like, strict=True)
        ]


class _Pickler(pickle.Pickler):
    """Packs tensors as arrays: torch's own way takes 0.1 ms for each, and small ones are many."""

    def reducer_override(self, value: Any) -> Any:
        """Say how to pack tensors of the CPU."""
        if type(value) is not Tensor or value.requires_grad or value.is_conj() or value.dtype is torch.bfloat16:
            return NotImplemented
        return torch.from_numpy, (value.numpy(),)


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _pack(error: Exception) -> bytes:
    """Return an error as other ranks can raise it: itself if it can be pickled, and its text."""
    text = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    try:
        whole = pickle.dumps(error)
        pickle.loads(whole)
    except Exception:  # an exception may be made of anything
        whole = None
    return pickle.dumps((whole, text, trace))


def _unpack(rank: int, whole: bytes | None, text: str, trace: str) -> Exception:
    """Return the error of another rank."""
    error: Any = None
    if whole is not None:
        try:
            error = pickle.loads(whole)
        except Exception:  # its class may be known there alone
            error = None
    if not isinstance(error, Exception):
        error = RuntimeError(text)
    error.add_note(f"quadgrad: raised on rank {rank} of the group:\n{trace}")
    return error


def _fingerprint(value: Any) -> tuple[Any, ...]:
    """Return something small that differs if tensors or options do, what is shown of it first."""
    if not isinstance(value, Tensor):
        plain = value is None or isinstance(value, bool | int | float | complex | str | tuple)
        return (repr(value) if plain else type(value).__name__,)  # other objects may show where they are in memory
    plain = value.detach().resolve_conj().resolve_neg().cpu()
    flat = plain.reshape(-1).clone(memory_format=torch.contiguous_format)
    digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    shown = f"{tuple(plain.shape)} of {plain.dtype}".replace("torch.", "")
    if plain.numel() <= 1:
        shown = f"{plain.tolist()}"
    elif value.requires_grad:
        shown += ", which requires grad"
    return shown, tuple(plain.shape), str(plain.dtype), value.requires_grad, digest
