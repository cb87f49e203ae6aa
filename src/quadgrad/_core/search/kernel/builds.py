"""Which build of the compiled kernel runs here: the one for this machine, made from the sources that lie beside it.

``hatch_build.py`` makes and names them; :mod:`.library` asks for one, and alone knows what is in it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import zlib
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe", "find"]

_HERE = Path(__file__).parent
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_WIDER = {"AVX512": ("_avx512", "_avx2"), "AVX2": ("_avx2",)}
"""Which to try, by what torch says the processor can do, before the one that runs everywhere."""


@cache
def find() -> tuple[Any, str]:
    """Return the library, or None, and in words which it is, or why there is none."""
    machine = platform.machine().lower()
    machine = _ARCHITECTURES.get(machine, machine)
    why = f"none was built for {machine} when quadgrad was installed. Install gcc or clang, then quadgrad again"
    for wider in (*_WIDER.get(torch.backends.cpu.get_cpu_capability(), ()), ""):
        path = _HERE / f"_kernel_{machine}{wider}.so"
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            why = str(error)
            continue
        if library.source() % 2**32 == zlib.crc32(b"".join(c.read_bytes() for c in sorted(_HERE.glob("*.[ch]")))):
            _end_threads_before_forks(library)
            able = f" with {wider[1:].upper()}" if wider else ""
            threads = "threads" if hasattr(library, "omp_in_parallel") else "one thread"
            return library, f"{machine}{able}, in {threads}"
        why = f"{path.name} was built from other sources. Install quadgrad again"
    return None, f"none, and so slower: {why}"


def describe() -> str:
    """Return which build of the kernel runs, or why there is none."""
    return find()[1]


def _end_threads_before_forks(library: Any) -> None:
    """Have OpenMP's threads ended before the process is forked; they are made again when there is work for them.

    They do not live on in the child, but GNU's OpenMP waits for them there, for ever, and so do the kernel and
    torch, which may have a copy of it each; LLVM's notices by itself. Every thread has a pool of its own, so that
    only the one that forks, whose copy the child is, loses it, and gets another when it goes on (a few ms).
    """
    libraries, hard = [library], 2
    with suppress(OSError):  # not Linux, or it lies elsewhere
        libraries.append(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")))
    for each in libraries:
        if hasattr(each, "omp_pause_resource_all") and not hasattr(each, "__kmpc_fork_call"):
            os.register_at_fork(before=partial(each.omp_pause_resource_all, hard))
