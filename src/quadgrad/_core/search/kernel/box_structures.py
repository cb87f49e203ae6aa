"""Boxes for the compiled kernel: the structures of ``boxes.h`` and of the files that include it."""

from __future__ import annotations

from ctypes import Structure, addressof, c_double, c_int64, c_void_p
from functools import cache

import numpy as np
import torch

from quadgrad._core.estimates import boxes, null_rules
from quadgrad._core.mesh import boxes as mesh
from quadgrad._core.rules import BoxRule
from quadgrad._core.rules.box import BESIDE_FACE, extrapolate_line
from quadgrad._core.search import decide
from quadgrad._core.status import Status

__all__ = ["BoxColumns", "BoxConstants", "BoxLook", "BoxRound", "BoxSetting", "Estimating", "HeldOutNumbers"]

_REALS = (
    "safety", "slow", "rough", "straight", "kink", "rounded", "smooth", "hidden", "tie", "unresolved", "narrowest",
    "caution", "learnt", "least", "place", "beyond", "floor", "rougher", "share", "negligible", "kept", "enough",
    "faint",
)  # fmt: skip
_INTEGERS = (
    "ahead", "deepest", "farthest", "patience", "bisections", "most", "max_nfev", "roundoff", "nonfinite",
    "divergent", "converged",
)  # fmt: skip


class BoxConstants(Structure):
    """The constants of the modules that explain the decisions, and the budget ``most``."""

    _fields_ = [*((name, c_double) for name in _REALS), *((name, c_int64) for name in _INTEGERS)]

    @classmethod
    def of(cls, most: int, **more: float) -> BoxConstants:
        """Return them, with ``more`` from modules that are not below this one."""
        numbers: dict[str, float] = {status.name: int(status) for status in Status}
        for module in (null_rules, decide, mesh, boxes):
            numbers |= vars(module)
        numbers |= more | {"MOST": most}
        return cls(*(numbers[name.upper()] for name in _REALS + _INTEGERS))


class RuleNumbers(Structure):
    """A rule in double precision; see ``boxes.h``."""

    _fields_ = [
        *((name, c_void_p) for name in ("nodes", "functionals", "sizes", "along", "orbits", "lines")),
        *((name, c_int64) for name in ("d", "m", "rows", "g", "nulls", "s")),
        ("levels", c_int64 * 3),
        ("outermost", c_double),
    ]


@cache
def rule_numbers(rule: BoxRule, seen_in: torch.dtype) -> RuleNumbers:
    """Return a rule for the kernel, for an f that sees x in some dtype."""
    beside = BESIDE_FACE[seen_in]
    first = np.cumsum((0, *rule.orbits))[:-1]
    functionals = np.vstack((rule.weights, *rule.nulls))[:, first]
    line = rule.nodes[rule.lines[0], 0]
    nodes = np.vstack((rule.nodes, rule.faces(beside))).T
    tables = (nodes, functionals, np.abs(functionals[0]), extrapolate_line(line, beside))
    kept = [np.ascontiguousarray(table, dtype=np.float64) for table in tables]
    kept += [np.ascontiguousarray(table, dtype=np.int64) for table in (rule.orbits, rule.lines)]
    made = RuleNumbers(
        *(table.ctypes.data for table in kept), rule.d, len(rule.weights), rule.rows, len(rule.orbits),
        len(functionals) - 1, len(line), (c_int64 * 3)(*(len(level) for level in rule.nulls)),
        boxes.outermost(rule),
    )  # fmt: skip
    made.kept = kept
    return made


class BoxSetting(Structure):
    """What stays the same during a search; keeps what it points to."""

    _fields_ = [
        *((name, c_void_p) for name in ("constants", "rule", "a", "b")),
        *((name, c_int64) for name in ("step", "flat", "columns", "parts", "threads")),
        *((name, c_double) for name in ("eps", "beside")),
    ]

    @classmethod
    def of(
        cls, constants: BoxConstants, rule: BoxRule, corners: tuple[torch.Tensor, torch.Tensor] | None,
        x_dtype: torch.dtype, columns: int, parts: int,
    ) -> BoxSetting:  # fmt: skip
        """Return the setting for boxes between ``corners`` ``(1 or batch, d)``, or where others lay out cells."""
        numbers = rule_numbers(rule, x_dtype)
        kept = [t.resolve_neg().contiguous() for t in torch.broadcast_tensors(*corners)] if corners else []
        pointers = [t.data_ptr() for t in kept] or [0, 0]
        step = rule.d if kept and len(kept[0]) > 1 else 0
        made = cls(
            addressof(constants), addressof(numbers), *pointers, step, bool(kept), columns, parts,
            torch.get_num_threads(), torch.finfo(x_dtype).eps, BESIDE_FACE[x_dtype],
        )  # fmt: skip
        made.kept = (constants, numbers, kept)
        return made


class BoxColumns(Structure):
    """The matrices of some cells; see :class:`quadgrad._core.mesh.protocol.Cells`."""

    _fields_ = [*((name, c_void_p) for name in ("sums", "real", "whole")), ("stride", c_int64)]


class Estimating(Structure):
    """Values of f on a block of new cells, room for what is read of them, and where cells are.

    See ``box_estimates.c``.
    """

    _fields_ = [
        *((name, c_void_p) for name in ("y", "values", "sizes", "scale", "corner", "side", "trust")),
        *((name, c_void_p) for name in ("owner", "row", "level", "place")),
        *((name, c_int64) for name in ("n", "first", "stride")),
        ("noise", c_double),
    ]


class HeldOutNumbers(Structure):
    """Polynomials, and points at which f is held against them; see ``box_held_out.c``."""

    _fields_ = [
        *((name, c_double) for name in ("rounded", "beyond", "noise")),
        *((name, c_int64) for name in ("shallow", "coarse", "k", "degree", "count", "words", "most", "filled")),
        *((name, c_void_p) for name in ("coefficients", "basis", "points", "values", "weights")),
        *((name, c_void_p) for name in ("factors", "inside", "drawn", "slots")),
    ]


class BoxRound(Structure):
    """All cells at hand, the integrals that run, and room for what is decided; see ``box_decisions.c``."""

    _fields_ = [
        *((name, c_double) for name in ("rtol", "atol", "eps")),
        *((name, c_int64) for name in ("n", "running", "reopened")),
        *((name, c_void_p) for name in ("settled", "integrals", "totals", "target", "narrow")),
        *((name, c_void_p) for name in ("next", "code", "first", "order", "told", "marked")),
    ]


class BoxLook(Structure):
    """What is asked of integrals that are ready to end, and room for it; see ``box_looks.c``."""

    _fields_ = [
        *((name, c_double) for name in ("higher", "above", "matters", "each", "least")),
        *((name, c_int64) for name in ("n", "running", "looks")),
        *((name, c_void_p) for name in ("target", "ready", "order", "first", "missed", "volume", "marked")),
    ]
