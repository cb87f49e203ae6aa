"""The words of a formula: functions, constants, and what other languages call them.

Also what help shows of them, which has to come without a second's import: nothing here imports torch.
"""

from __future__ import annotations

import difflib
import math
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["BESSEL", "CONSTANTS", "FUNCTIONS", "PHYSICAL", "Function", "nearest", "vocabulary"]


@dataclass(frozen=True)
class Function:
    """A function of one or more tensors; a step is constant but for jumps, and hides its arguments' derivative.

    ``path`` says where it is, as ``pkgutil.resolve_name`` reads it.
    """

    path: str
    arity: int = 1
    step: bool = False

    def resolved(self) -> Callable[..., Any]:
        """Return the function."""
        return pkgutil.resolve_name(self.path)


def _of_torch(names: str, **more: Any) -> dict[str, Function]:
    return {name: Function(f"torch:{name}", **more) for name in names.split()}


def _own(name: str, **more: Any) -> Function:
    return Function(f"quadgrad._cli.special:{name}", **more)


CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf}
PHYSICAL = {
    "hbar": ("hbar", "the reduced Planck constant, in J s"),
    "h": ("h", "the Planck constant, in J s"),
    "c": ("c", "the speed of light, in m/s"),
    "k": ("k", "the Boltzmann constant, in J/K"),
}
"""Constants of nature: their names in ``scipy.constants`` (CODATA), and what they are. A parameter of that name is
meant where there is one."""

FUNCTIONS = (
    _of_torch("exp expm1 log")
    | {"ln": Function("torch:log")}
    | _of_torch("log1p log2 log10 sqrt abs sin cos tan asin acos atan")
    | _of_torch("atan2", arity=2)
    | _of_torch("sinh cosh tanh asinh acosh atanh erf erfc")
    | {"erfcx": Function("torch.special:erfcx"), "gamma": _own("gamma")}
    | _of_torch("lgamma digamma sigmoid")
    | {"softplus": _own("softplus")}
    | _of_torch("relu")
    | _of_torch("floor ceil sign", step=True)
    | _of_torch("minimum maximum", arity=2)
    | {"where": _own("where", arity=3)}
    | _of_torch("sinc")
)
BESSEL = {
    name: _own(name, arity=2 if name[1] == "v" else 1)
    for kind in "jyik"
    for name in (f"{kind}0", f"{kind}1", f"{kind}v")
}
"""Bessel functions under SciPy's names, which may name parameters, too: y0 is one where it is not called."""

SPELLINGS = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "min": "minimum", "max": "maximum", "fabs": "abs", "pow": "**",
    "power": "**", "jn": "jv(n, x)", "besselj": "jv(n, x)", "bessely": "yv(n, x)", "besseli": "iv(n, x)",
    "besselk": "kv(n, x)", "J0": "j0", "J1": "j1", "Y0": "y0", "Y1": "y1", "I0": "i0", "K0": "k0", "Gamma": "gamma",
    "gammaln": "lgamma", "psi": "digamma", "expit": "sigmoid", "kB": "k", "k_B": "k", "heaviside": "a "
    "comparison such as x > 0", "infinity": "inf", "oo": "inf", "PI": "pi",
}  # fmt: skip
"""What other languages call it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the most similar of the known names, or all of them if they are few."""
    known = list(known)
    found = [SPELLINGS[name]] if name in SPELLINGS else difflib.get_close_matches(name, known, 1)
    if found:
        return f": did you mean {found[0]}?"
    return f": known are {', '.join(known)}" if 0 < len(known) <= 10 else ""


def vocabulary() -> str:
    """Return what an expression may be made of."""
    return (
        f"Functions: {', '.join([*FUNCTIONS, *BESSEL])}; jv, yv, iv, kv are Bessel functions of (order, x), "
        f"sinc(x) is sin(pi*x)/(pi*x). Constants: {', '.join([*CONSTANTS, *PHYSICAL])}, the latter in SI units "
        "unless --param says otherwise. A comparison is 1 or 0."
    )
