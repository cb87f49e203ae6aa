"""What the library runs on, for a report of something slow or wrong."""

from __future__ import annotations

import platform

import numpy as np
import scipy
import torch

from quadgrad._core.search.kernel.library import describe

__all__ = ["keep_freed_memory", "show_config"]


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next call, in the whole process and for good.

    A library like glibc hands large blocks back to the system, and takes them again page by page, until one of 32
    MiB has come and gone: then it expects more of them. What an integrand makes is then no new memory in every
    search: 10,000 integrals of 216 nodes each took 22.5 ms with it, and 28.9 ms without. It changes the process for
    all that runs in it, which may hold up to 64 MiB more; so nothing but this function does it.

    Examples
    --------
    >>> import quadgrad as qg
    >>> qg.keep_freed_memory()
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def show_config() -> None:
    """Print versions, threads, the processor's capability, and which build of the kernel runs and why (not).

    Examples
    --------
    >>> import quadgrad as qg
    >>> qg.show_config()
    quadgrad: ...
    torch: ...
    """
    from quadgrad import __version__

    facts = {
        "quadgrad": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernel": describe(),
    }
    print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")  # noqa: T201
