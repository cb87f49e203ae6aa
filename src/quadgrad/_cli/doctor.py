"""What ``quadgrad doctor`` does: find the function, and its arguments, and have it examined."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from quadgrad.doctor import Report, check

__all__ = ["examine"]


def examine(target: str, directions: int, seed: int) -> Report:
    """Return the report on ``script.py:function`` or ``package.module:function``.

    Raises
    ------
    ValueError
        If there is no such script or function, an argument has no value, or the function raises: in one sentence.
    """
    where, colon, name = target.rpartition(":")
    if not colon or where.endswith(":") or not name.isidentifier() and "." not in name:
        raise ValueError(f"{target!r} should be script.py:function")
    module = _load(where)
    function = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = [
                n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__
            ]
            raise ValueError(f"{where} has no {name}; it has the functions {', '.join(known) or 'none'}")
        function = getattr(function, part)
    if not callable(function):
        raise ValueError(f"{name} is a {type(function).__name__}, no function")
    inputs = _arguments(function, module, name)
    try:
        return check(function, *inputs, directions=directions, seed=seed)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("check: "):
            raise ValueError(str(error).removeprefix("check: ")) from None
        raise _raised(name, error, module.__file__) from error


def _raised(name: str, error: Exception, file: str | None) -> ValueError:
    """Return what is said of a function, or script, that does not run: what it raised, and its line."""
    lines = [at for frame, at in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    where = f" ({Path(str(file)).name}:{lines[-1]})" if lines else ""
    return ValueError(
        "\n".join([f"{name} raised {type(error).__name__}: {error}{where}", *getattr(error, "__notes__", ())])
    )


def _load(where: str) -> ModuleType:
    """Import a script by its path, or a module by its name."""
    if not where.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ValueError(f"there is no module {where}: {error}") from None
    path = Path(where)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    sys.path.insert(0, str(path.absolute().parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _raised(where, error, module.__file__) from error
    return module


def _arguments(function: Callable[..., Any], module: ModuleType, name: str) -> list[Any]:
    """Return what the function is called with: the module's own variables of the names without a default."""
    found: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY
        ):  # fmt: skip
            break
        if not hasattr(module, parameter.name):
            raise ValueError(
                f"{name} takes {parameter.name}, and the script has no variable of that name: define one, give the "
                "argument a default, or name a function without arguments"
            )
        found.append(getattr(module, parameter.name))
    return found
