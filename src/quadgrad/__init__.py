"""quadgrad: integrals you can differentiate.

``quad`` integrates a torch function between limits, ``cubature``, ``qmc`` and ``vegas`` over boxes, ``expectation``
over a distribution; ``antiderivative`` is the whole curve, and its inverse. ``trapezoid``, ``simpson``, ``romb``
and ``spline`` take samples. ``Integrator`` keeps its cells through training, ``replay`` compiles.
``quadgrad.bridge.wrap`` makes NumPy and SciPy code differentiable, ``quadgrad.doctor.check`` names the line
where a gradient is severed or wrong, :mod:`quadgrad.tensorflow` is for TensorFlow's functions.
``help(quadgrad.quad)`` tells more.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadgrad import bridge as bridge
    from quadgrad import doctor as doctor
    from quadgrad import tensorflow as tensorflow
    from quadgrad._public import *  # noqa: F403
    from quadgrad._public import __all__ as __all__

__version__ = "0.1.0"
_EDGES = ("bridge", "doctor", "tensorflow")


def _starts_a_command() -> bool:
    """Whether it is ``quadgrad`` or ``python -m quadgrad`` that imports the package: ``--help`` needs no torch."""
    return Path(sys.argv[0]).stem == "quadgrad" or sys.orig_argv[1:3] == ["-m", "quadgrad"]


def _load() -> None:
    """Import all public names, and what files of results and plans name."""
    public = importlib.import_module("quadgrad._public")
    hidden = ("_restore_plan", "_restore_result", "_restore_integrator")
    globals().update({name: getattr(public, name) for name in ("__all__", *public.__all__, *hidden)})


def __getattr__(name: str) -> Any:
    """Import the edges of the library when they are first used: ``import quadgrad`` stays fast."""
    if name in _EDGES:
        return importlib.import_module(f"quadgrad.{name}")
    if "__all__" not in globals() and not (name.startswith("__") and name != "__all__"):
        _load()
        if name in globals():
            return globals()[name]
    theirs = {
        "dblquad": "cubature", "tplquad": "cubature", "nquad": "cubature", "quad_vec": "quad", "integrate": "quad",
        "qmc_quad": "qmc", "simps": "simpson", "trapz": "trapezoid", "cumtrapz": "cumulative_trapezoid",
    }  # fmt: skip
    hint = f": that is quadgrad.{theirs[name]} here" if name in theirs else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """Show what is public."""
    public = importlib.import_module("quadgrad._public").__all__  # a command has not loaded them yet
    return sorted({*public, "bridge", "doctor", *(name for name in globals() if name.startswith("__"))})


if not _starts_a_command():
    _load()
