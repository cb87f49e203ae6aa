"""What the library runs on, for a report of something slow or wrong."""

from __future__ import annotations

import platform

import numpy as np
import scipy
import torch

from quadgrad._core.search.kernel.library import describe

__all__ = ["show_config"]


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
