"""From what was measured to rows and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from quadgrad.doctor.crossings import Jump
from quadgrad.doctor.examine import Direction, Examination
from quadgrad.doctor.losses import Loss
from quadgrad.doctor.places import Place, source_of
from quadgrad.doctor.remedies import remedy_for, step_remedy
from quadgrad.doctor.report import Report
from quadgrad.doctor.restless import find_restless
from quadgrad.doctor.rows import Row, Verdict
from quadgrad.doctor.slopes import Estimate
from quadgrad.doctor.trace import Event, Trace

__all__ = ["UNSEEN", "judge", "make_row"]

UNSEEN = (
    "It may be in a thread, in TorchScript, in a hook, behind an alias of a tensor's memory (NumPy, .data), in a "
    "custom C++ operator, or in another process (DDP): what goes on there torch shows to nobody."
)

_WRONG_FLOOR, _BRIDGED_FLOOR, _SINGLE_FLOOR = 5e-9, 1e-6, 1e-2
"""What a backward pass may be off of the derivative: by rounding; by differences; in single precision."""

_NOTHING = Estimate(0.0, 0.0)


def make_row(
    place: Place, operation: str, verdict: Verdict, remedy: str, count: int = 1,
    lost: Estimate = _NOTHING, size: float = 0.0,
) -> Row:  # fmt: skip
    """Return a row for a place."""
    share = abs(lost.value) / size if size > 0.0 and math.isfinite(lost.value) else 0.0
    return Row(
        place.file, place.line, source_of(place), place.columns, operation, count, lost.value, lost.error, share,
        verdict, remedy,
    )  # fmt: skip


def judge(x: Examination, jumps: Sequence[Jump]) -> Report:
    """Return the report on one point."""
    main = x.directions[0]
    gaps = [d for d in x.directions if abs(d.gap) > 3.0 * d.bar(x.floor) or not math.isfinite(d.gap)]
    # A backward pass that is wrong may make up for what a line takes away; lines make up for each other alone.
    severs = bool(gaps) or abs(sum(loss.lost.value for loss in x.losses)) > _WRONG_FLOOR * main.size + 3.0 * sum(
        loss.widened.error for loss in x.losses
    )
    lost = [_loss_row(x, loss, severs) for loss in x.losses]
    wrong = _wrong_rows(x)
    steps = [_step_row(x, jump) for jump in jumps if jump.decision.op]
    jumping = {(row.file, row.line) for row in steps}
    lost = [row for row in lost if row.verdict != Verdict.UNUSED or (row.file, row.line) not in jumping]
    rows = lost + wrong + steps + _intended_rows(x.trace)
    residual = x.residual
    report = Report(
        Verdict.OK, sorted(rows, key=_gravity), main.true.value, main.bar(x.floor), main.autograd, residual.value
    )
    verdict, cause = _verdict(x, gaps, lost + wrong, residual)
    # On coarse cells a jump lies between nodes, and moves nothing: who crosses one is asked there, too.
    doubtful = verdict == Verdict.INCONCLUSIVE or (verdict == Verdict.OK and x.allowed > x.most)
    if doubtful and math.isfinite(main.true.value) and not steps:
        steps = [_step_row(x, jump) for jump in find_restless(x)]
        report = replace(report, rows=sorted(rows + steps, key=_gravity))
    noisy = verdict == Verdict.INCONCLUSIVE and math.isfinite(main.true.value)
    # So many jumps that differences are noise, too; or that of nodes which cross one where nobody marked it.
    crossed = verdict == Verdict.UNLOCATED and x.program.rehearsal.kept and not _found(lost + wrong)
    if steps and (verdict == Verdict.OK or noisy or crossed):
        verdict, cause = Verdict.STEP, ""
    elif jumps and not steps:
        verdict = Verdict.UNLOCATED
        cause = f"The output jumps, {jumps[0].distance:.2g} of the inputs' size away. {UNSEEN}"
    elif verdict == Verdict.OK and all(x.is_zero(d) for d in x.directions):
        verdict = Verdict.ZERO
    return replace(report, verdict=verdict, cause=cause)


def _verdict(
    x: Examination, gaps: Sequence[Direction], rows: Sequence[Row], residual: Estimate
) -> tuple[Verdict, str]:
    main = x.directions[0]
    if not math.isfinite(main.true.value):
        where = f" at {x.parted}" if x.parted else ""
        return Verdict.INCONCLUSIVE, (
            f"As soon as what requires grad moves a little, the program does something else{where}: it decides "
            "there, and the point lies on the border; or it is not defined beside it."
        )
    found = _found(rows)
    unexplained = not abs(residual.value) <= 3.0 * (residual.error + x.allowed * main.size)
    far = [d for d in gaps if not abs(d.gap) <= 3.0 * d.bar(x.allowed)]
    if unexplained or (far and not found):
        return Verdict.UNLOCATED, _suspects(x.trace, found)
    if found:
        worst = max(found, key=lambda row: abs(row.lost) if math.isfinite(row.lost) else math.inf)
        return worst.verdict, ""
    if gaps:
        return Verdict.INCONCLUSIVE, (
            f"Autograd's derivative is off by {abs(gaps[0].gap) / gaps[0].size:.1g} of it, no more than that of an "
            f"integral may be whose tolerance is {x.program.rehearsal.tolerance:.1g}: pass a smaller rtol."
        )
    vague = [d for d in x.directions if d.bar(x.floor) > x.most * d.size and not x.is_zero(d)]
    if vague:
        d = vague[0]
        return Verdict.INCONCLUSIVE, (
            f"The differences are too noisy: the derivative along a direction is {d.true.value:.3g} +- "
            f"{d.bar(x.floor):.1g}. The value may be rounded much more coarsely than its size tells, or be noisy."
        )
    return Verdict.OK, ""


def _found(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.verdict in (Verdict.SEVERED, Verdict.EDITED, Verdict.WRONG)]


def _suspects(trace: Trace, rows: Sequence[Row]) -> str:
    named = [f"{what} is set at {place}" for what, place in trace.suspects.items()]
    told = "The rows tell a part of it only. " if rows else ""
    return told + (" and ".join(named) + ". " if named else "") + UNSEEN


def _loss_row(x: Examination, loss: Loss, gap: bool) -> Row:
    """Return the row of a line that severs."""
    events, main = [x.trace.events[k] for k in loss.numbers], x.directions[0]
    place, lost = events[0].place, loss.lost
    edited = any(event.visible for event in events) or any(event.detail == "edited" for event in events)
    matters = gap and not abs(lost.value) <= 3.0 * lost.error + loss.apart + x.floor * main.size
    verdict = Verdict.UNUSED
    if matters:
        verdict = Verdict.EDITED if edited else Verdict.SEVERED
    return make_row(
        place, _operations(events), verdict, _remedy(x.trace, events), len(events), loss.widened, main.size
    )


def _operations(events: Iterable[Event]) -> str:
    names = [e.place.through if e.place.owner == "library" and e.place.through else e.op for e in events]
    return ", ".join(dict.fromkeys(names))


def _remedy(trace: Trace, events: Sequence[Event]) -> str:
    event = next((e for e in events if e.visible), events[0])  # what is written tells more than what is read for it
    remedy = remedy_for(event.op, event.detail, source_of(event.place), event.place.through)
    near = [place for place in trace.rewrapped if place.file == event.place.file]
    if near and remedy.startswith("wrap"):
        remedy += f"; requires_grad=True at {near[0]} makes a new leaf and reconnects nothing"
    return remedy


def _wrong_rows(x: Examination) -> list[Row]:
    main = x.directions[0]
    by_line: dict[Any, list[tuple[Any, Estimate, str]]] = {}
    for (call, fault), single in zip(x.wrong, x.single or [0.0] * len(x.wrong), strict=False):
        floor = _BRIDGED_FLOOR if call.bridged else max(_WRONG_FLOOR, x.floor)
        if call.reason:
            continue
        if abs(single) > _SINGLE_FLOOR * main.size:
            text = " in single precision, where a difference quotient has few digits"
            by_line.setdefault((call.place.key, call.name), []).append((call, Estimate(single, 0.0), text))
        elif abs(fault.value) > 3.0 * fault.error + floor * main.size:
            by_line.setdefault((call.place.key, call.name), []).append((call, fault, ""))
    rows: list[Row] = []
    for (_, name), each in by_line.items():
        total = Estimate(sum(f.value for _, f, _ in each), sum(f.error for _, f, _ in each))
        remedy = (
            f"backward of {name} returns another derivative than forward has{each[0][2]}: test it with "
            "torch.autograd.gradcheck, or let torch or quadgrad.bridge.wrap differentiate forward"
        )
        rows.append(
            make_row(each[0][0].place, f"{name}.backward", Verdict.WRONG, remedy, len(each), total, main.size)
        )
    return rows


def _step_row(x: Examination, jump: Jump) -> Row:
    decision = jump.decision
    remedy = step_remedy(decision.op, bool(x.program.rehearsal.kept))
    if jump.distance:
        remedy += f" (the next jump is {jump.distance:.2g} of the inputs' size away)"
    size = Estimate(jump.size, 0.0)
    return make_row(decision.place, decision.op, Verdict.STEP, remedy, jump.count, size)


def _intended_rows(trace: Trace) -> list[Row]:
    lines: dict[Any, list[Any]] = {}
    for one in (*trace.events, *trace.decisions, *trace.calls):
        if one.reason and one.place.owner != "optimiser":
            lines.setdefault((one.place.key, one.reason), []).append(one)
    rows: list[Row] = []
    for (_, reason), each in lines.items():
        names = ", ".join(dict.fromkeys(getattr(one, "op", None) or one.name for one in each))
        rows.append(make_row(each[0].place, names, Verdict.INTENDED, reason, len(each)))
    return rows


_ORDER = (
    Verdict.NAN, Verdict.RAISES, Verdict.SEVERED, Verdict.WRONG, Verdict.EDITED, Verdict.STEP, Verdict.INTENDED,
    Verdict.UNUSED,
)  # fmt: skip


def _gravity(row: Row) -> tuple[int, float]:
    return _ORDER.index(row.verdict), -abs(row.lost) if math.isfinite(row.lost) else -math.inf
