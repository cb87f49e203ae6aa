"""The compiled kernel of the search (``*.c``): its functions, and the structures they work on.

It is built when the package is installed (``hatch_build.py``). Without a C compiler there is none, and every search
goes through tensor operations: the same plans, more slowly.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, addressof, byref, c_double, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.estimates import null_rules, singular_ends, spikes
from quadgrad._core.mesh import bisection, cells, interval, poles
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.rules import Rule
from quadgrad._core.rules import rule as rules
from quadgrad._core.search import decide
from quadgrad._core.search.kernel.box_structures import (
    BoxColumns,
    BoxLook,
    BoxRound,
    BoxSetting,
    Estimating,
    HeldOutNumbers,
)  # fmt: skip
from quadgrad._core.search.kernel.builds import describe, find
from quadgrad._core.search.piles.stretches import MOST, TOGETHER, WORST, WORST_AT_END, Ends, Piled
from quadgrad._core.status import Status

__all__ = [
    "CELL", "END", "END_LAYOUT", "INTEGRAL", "LAYOUT", "LEAF", "SHARE", "STRETCH", "ZOOMED",
    "Gaps", "Locating", "Maps", "Merger", "Named", "OpenSpikes", "Piles", "Round", "Setting", "Tally",
    "WitnessNumbers", "Zoom", "describe", "load",
]  # fmt: skip

CELL, LEAF, INTEGRAL, SHARE, STRETCH, END, ZOOMED = 10, 5, 7, 13, 5, 4, 9
"""How many numbers of eight bytes a cell, a settled one, a running integral, a thread's share, a stretch of
cells, an end of a piece and a stretch that is closed in on consist of.

Behind a cell and a settled one stand the value's columns, if there are several."""

LAYOUT, END_LAYOUT = 3, 7
"""How many numbers tell where a cell with evenly spread nodes is, and one with logarithmic nodes."""

_REALS = (
    "floor", "place", "beyond", "safety", "slow", "unresolved", "rougher", "near", "unsure",
    "at_end", "steps", "faint", "step", "deep", "every", "limit", "ulps", "share", "close", "nearest",
    "deepest", "lawless", "shortest", "depth", "rounded", "settling", "settled", "logarithm", "drifting", "far",
    "emerges", "at_least", "layer", "sharp", "alike", "jointly_alike", "nearly_alike", "left", "above", "singular",
)  # fmt: skip
_INTEGERS = (
    "beside", "whole", "beside_end", "patience", "functionals", "shares", "levels", "looks",
    "converged", "max_nfev", "roundoff", "nonfinite", "divergent",
)  # fmt: skip


class _Constants(Structure):
    _fields_ = [*((name, c_double) for name in _REALS), *((name, c_int64) for name in _INTEGERS)]


class RuleNumbers(Structure):
    """A rule in double precision."""

    _fields_ = [
        *((name, c_void_p) for name in ("nodes", "all", "even", "odd", "looks", "alone", "lengths")),
        *((name, c_void_p) for name in ("joint", "joint_alone", "joint_lengths")),
        *((name, c_int64) for name in ("m", "order_gap")),
    ]


class Setting(Structure):
    """What stays the same during a search; keeps what it points to.

    That is the ends of all pieces; how many real ``columns`` one value of f has, of which a complex number has two
    ``parts``; how many threads there may be; eps and the smallest number of the dtype of x; and the rule.
    """

    _fields_ = [
        ("lower", c_void_p), ("upper", c_void_p), ("lower_step", c_int64), ("upper_step", c_int64),
        ("count", c_int64), ("infinite", c_int64), ("columns", c_int64), ("parts", c_int64), ("threads", c_int64),
        ("eps", c_double), ("tiny", c_double), ("rule", c_void_p),
    ]  # fmt: skip

    @classmethod
    def of(cls, pieces: Pieces, rule: Rule) -> Setting:
        """Return the setting of a search whose values have one column."""
        info, numbers = pieces.rounding, _rule_numbers(rule)
        lower, upper = (end.resolve_neg().double().contiguous() for end in (pieces.lower, pieces.upper))
        made = cls(
            lower.data_ptr(), upper.data_ptr(), lower.shape[0] > 1, upper.shape[0] > 1, pieces.count,
            pieces.infinite, 1, 1, torch.get_num_threads(), info.eps, info.tiny, addressof(numbers),
        )  # fmt: skip
        # The cache alone would not do: of threads that fill it at once it keeps what one of them made.
        made.kept = (lower, upper, numbers)
        return made


class Round(Structure):
    """What is asked, a round's integrals and cells, and where the totals go."""

    _fields_ = [
        *((name, c_double) for name in ("rtol", "atol", "eps", "nothing", "along", "across")),
        *((name, c_int64) for name in ("max_nfev", "reopened", "fresh", "running", "n_linear", "n_ends")),
        *((name, c_void_p) for name in ("setting", "integrals", "linear", "ends", "shares", "moves")),
        *((name, c_void_p) for name in ("held", "values", "errors", "status", "nfev", "settled")),
    ]


class Tally(Structure):
    """How many integrals run on and how many wait; how many cells are new, pairs to ask between, and settled.

    Also how many integrals have ended of which next to nothing was seen.
    """

    _fields_ = [(name, c_int64) for name in ("running", "waiting", "linear", "ends", "pairs", "settled", "faint")]
    running: int
    waiting: int
    faint: int


class Piles(Structure):
    """The numbers of :mod:`quadgrad._core.search.piles.stretches`, room for what is found, and how much that is."""

    _fields_ = [
        *((name, c_double) for name in ("worst", "worst_at_end", "far")),
        *((name, c_int64) for name in ("together", "most")),
        *((name, c_void_p) for name in ("stretches", "ends")),
        *((name, c_int64) for name in ("n_stretches", "n_ends")),
    ]
    n_stretches: int
    n_ends: int

    @classmethod
    def into(cls, stretches: Tensor, ends: Tensor, far: float) -> Piles:
        """Return what writes to this memory."""
        numbers = (WORST, WORST_AT_END, far, TOGETHER, MOST)
        return cls(*numbers, stretches.data_ptr(), ends.data_ptr(), 0, 0)

    def read(self, stretches: Tensor, ends: Tensor) -> Piled:
        """Return what was written there, where it stays until it is overwritten."""
        if not (self.n_stretches or self.n_ends):
            return _NOTHING_PILED
        stretches = stretches[: STRETCH * self.n_stretches].view(-1, STRETCH)
        start, stop = stretches[:, 1:].t().view(2, 2, -1)
        ends = ends[: END * self.n_ends].view(-1, END)
        row, upper, singular, _ = ends.view(torch.int64).unbind(1)
        return Piled(stretches.view(torch.int64)[:, 0], start, stop, Ends(row, upper > 0, ends[:, 3], singular > 0))


_NO_ROWS, _NO_PLACES = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
_NOTHING_PILED = Piled(
    _NO_ROWS,
    _NO_PLACES.expand(2, 0),
    _NO_PLACES.expand(2, 0),
    Ends(_NO_ROWS, _NO_ROWS > 0, _NO_PLACES, _NO_ROWS > 0),
)
"""As it is most often, which takes longer to read than to find."""


class OpenSpikes(Structure):
    """Spikes, the plan in which they are looked up, numbers that judge them, and room: see ``open_spikes.c``."""

    _fields_ = [
        ("spikes", c_void_p), ("n", c_int64),
        *((name, c_void_p) for name in ("row", "start", "stop", "kind")), ("cells", c_int64),
        ("status", c_void_p), *((name, c_int64) for name in ("rows", "count", "many", "most")),
        ("resolved", c_double), ("same", c_double),
        *((name, c_void_p) for name in ("heads", "order", "spare", "windows", "key", "cell", "place", "apart")),
        ("found", c_int64),
    ]  # fmt: skip
    found: int


class Gaps(Structure):
    """f at nodes and places of cells, what is to be known of it, and where what is found goes: see ``gaps.c``."""

    _fields_ = [
        *((name, c_void_p) for name in ("nodes", "barycentric", "highest", "y", "factor", "tau", "inside")),
        *((name, c_int64) for name in ("m", "step", "n", "count", "columns", "parts", "threads")),
        ("rounding", c_double), ("missed", c_void_p), ("height", c_void_p),
    ]  # fmt: skip


class Zoom(Structure):
    """Stretches that are closed in on, f there, where it is asked for next, and what is found: see ``zoom.c``."""

    _fields_ = [
        *((name, c_double) for name in ("eps", "ulp", "narrow", "bounded", "falls", "lasts")),
        *((name, c_int64) for name in ("n", "columns", "round")),
        *((name, c_void_p) for name in ("stretches", "place", "doubt", "found", "spent", "y", "x", "owner")),
    ]


class WitnessNumbers(Structure):
    """The numbers of :mod:`quadgrad._core.search.looks.witnesses`, its tables, and how many places are left."""

    _fields_ = [
        *((name, c_double) for name in ("rtol", "atol", "spacing", "rounding", "settles", "matters")),
        *((name, c_void_p) for name in ("place", "slot", "value", "size", "weights")),
        *((name, c_int64) for name in ("k", "left")),
    ]
    left: int


class Named(Structure):
    """Arguments of f that may name places: pointers, what to add for the next integral; in which pieces."""

    _fields_ = [
        *((name, c_void_p) for name in ("arguments", "steps", "mine")),
        *((name, c_int64) for name in ("k", "batch")),
        ("away", c_double),
    ]


class Maps(Structure):
    """Points of the unit cube, the maps and boxes they go through, and where they are written; see ``points.c``."""

    _fields_ = [
        *((name, c_int64) for name in ("d", "batch", "bins", "replicates", "count", "threads")),
        *((name, c_int64) for name in ("u_replicate", "u_axis", "x_point", "x_integral", "x_axis", "box_integral")),
        *((name, c_double) for name in ("even", "below_one")),
        *((name, c_void_p) for name in ("u", "grid", "table", "start", "side", "low", "high")),
        *((name, c_void_p) for name in ("x", "factor", "bin")),
    ]


class Locating(Structure):
    """Boxes, points, and where the numbers of the boxes are written; see ``boxes.c``."""

    _fields_ = [
        *((name, c_int64) for name in ("d", "n", "k")),
        *((name, c_void_p) for name in ("level", "place", "point", "answer")),
    ]


class Merger(Structure):
    """Cells of a kept plan, which of them may be merged, and where those that are left go; see ``merging.c``."""

    _fields_ = [
        *((name, c_void_p) for name in ("row", "start", "stop", "error", "kind", "allowed")),
        *((name, c_int64) for name in ("n", "count", "batch")),
        *((name, c_double) for name in ("merged", "worth")),
        *((name, c_void_p) for name in ("to_row", "to_start", "to_stop", "to_error", "to_kind")),
        *((name, c_void_p) for name in ("fewer", "order")),
    ]


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # A structure, or a pointer ("p"), a count ("n") or a number ("x").
    "configure": (_Constants,),
    "begin": (Setting, *"nppp"),
    "open_books": (Setting, *"pnpnnpp"),
    "spread": tuple("pnpnpn"),
    "place": (Setting, *"nnpnpppn"),
    "place_starts": (Setting, *"ppnppppn"),
    "enter_starts": (Setting, *"ppnpp"),
    "measure": (Setting, *"nnxpnpppnpp"),
    "place_ends": (Setting, *"pnppp"),
    "measure_ends": (Setting, *"xxpnppppp"),
    "name_places": (Setting, Named, *"pppppp"),
    "ask": (Setting, WitnessNumbers, *"xnpnpppn"),
    "judge": (Round, Tally),
    "settle_single": (Setting, *"xxxxxxnxppppppp"),
    "look_for_piles": (Round, Piles),
    "carry_on": (Round, *"ppppppn"),
    "withdraw": (Setting, *"ppnpppn"),
    "collect": (Setting, *"ppnnppppppp"),
    "find_open": (OpenSpikes,),
    "find_gaps": (Gaps,),
    "begin_zoom": (Zoom, *"ppp"),
    "go_on_zooming": (Zoom,),
    "map_points": (Maps,),
    "locate_boxes": (Locating, *"nppppp"),
    "lay_out_boxes": (BoxSetting, *"pppnppp"),
    "place_boxes": (BoxSetting, *"ppnnnp"),
    "estimate_boxes": (BoxSetting, Estimating, BoxColumns),
    "draw_boxes": (BoxSetting, HeldOutNumbers, *"ppnn", BoxColumns, "p"),
    "hold_out_boxes": (BoxSetting, HeldOutNumbers, BoxColumns, *"np"),
    "remember_boxes": (BoxSetting, BoxColumns, *"nppp"),
    "compare_boxes": (BoxSetting, BoxColumns, BoxColumns, "n"),
    "mark_boxes": (BoxSetting, BoxColumns, BoxRound),
    "finish_boxes": (BoxSetting, BoxColumns, BoxRound, "p"),
    "group_boxes": (BoxColumns, BoxRound, "n"),
    "copy_boxes": (BoxSetting, BoxColumns, *"pn", BoxColumns),
    "order_boxes": (BoxSetting, BoxColumns, BoxLook),
    "mark_blind_boxes": (BoxSetting, BoxColumns, BoxLook, *"ppp"),
    "mark_unseen_boxes": (BoxSetting, BoxColumns, BoxLook, *"pnpppp"),
    "halve_boxes": (BoxSetting, BoxColumns, *"npppp"),
    "merge_cells": (Merger,),
}
_RETURNING = (
    "configure", "begin", "settle_single", "collect", "name_places", "go_on_zooming", "merge_cells", "mark_boxes",
    "finish_boxes", "group_boxes", "mark_blind_boxes",
)  # fmt: skip


@cache
def load() -> Any:
    """Return the library, or None where it was not built."""
    library, _ = find()
    if library is None:
        return None
    kinds = {"p": c_void_p, "n": c_int64, "x": c_double}
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [kinds[a] if isinstance(a, str) else POINTER(a) for a in arguments]
        function.restype = c_int64 if name in _RETURNING else None
    numbers: dict[str, Any] = {status.name: int(status) for status in Status}
    for module in (interval, rules, decide, cells, bisection, poles, null_rules, singular_ends, spikes):
        numbers |= vars(module)
    constants = _Constants(*(numbers[name.upper()] for name in _REALS + _INTEGERS))
    return library if library.configure(byref(constants)) else None


def _directions(nulls: rules.Array) -> tuple[rules.Array, rules.Array]:
    """Return what one value makes of null rules ``(k, m)``, as unit vectors, and the value that makes these."""
    length = np.sqrt((nulls**2).sum(0))
    return (nulls / length).T, 1.0 / length


@cache
def _rule_numbers(rule: Rule) -> RuleNumbers:
    """Return a rule for the kernel."""
    half = rule.nodes.size // 2
    nulls, halves, slopes, edges = rule.nulls, rule.halves, rule.slopes, rule.edges
    even = np.vstack([rule.weights, nulls[0::2], slopes[1], halves.sum(0), edges.sum(0)])
    odd = np.vstack([nulls[1::2], slopes[0], halves[0] - halves[1], edges[0] - edges[1]])
    functionals = np.vstack([rule.functionals, rule.shares, rule.at_looks])
    alone, joint = _directions(nulls[: spikes.NULLS]), _directions(rule.joint)
    tables = (rule.nodes, functionals, even[:, : half + 1], odd[:, :half], rule.looks, *alone, rule.joint, *joint)
    kept = [np.ascontiguousarray(table, dtype=np.float64) for table in tables]
    made = RuleNumbers(*(table.ctypes.data for table in kept), rule.nodes.size, rule.order_gap)
    made.kept = kept
    return made
