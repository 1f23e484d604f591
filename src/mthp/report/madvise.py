# SPDX-License-Identifier: GPL-2.0-or-later
"""What madvise(MADV_COLLAPSE) would do: the answer first, then call by call."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from mthp.predict.records import Advised, AdvisedOutcome, BlocksByType, HugeShare, OrderUse
from mthp.report.basis import basis_values, caveat_values, render_basis, render_caveats
from mthp.report.page import SafeConsole
from mthp.report.phrases import percent, plural, torn_text
from mthp.report.refusals import RESULT_REASONS
from mthp.words.results import ScanResult
from mthp.words.units import Geometry, human_bytes

CALLS_SHOWN = 20


def answer(call: Advised) -> str:
    """What the program sees: 0, or -1 and the name of the errno."""
    if call.error is None:
        return "unknown"
    return f"-1 {errno.errorcode[call.error]}" if call.error else "0"


def reasons(call: Advised, geometry: Geometry) -> Iterator[str]:
    """Says why the call fails, and which windows are not huge afterwards."""
    if call.error is None:
        yield "file mapping, not modelled"
    elif call.gate is not None and call.gate.name == "TOO_SHORT":
        yield f"holds no aligned range of {geometry.size_name(geometry.pmd_order)}"
    elif call.gate is not None:
        yield call.gate.value
    for status, windows in sorted(call.refused.items(), key=lambda item: -item[1]):
        yield f"{windows:,} {status.string}"
    if call.torn:
        yield f"{call.torn:,} in tables that changed while they were read"
    if call.error == errno.ENOMEM and ScanResult.ALLOC_HUGE_PAGE_FAIL not in call.refused:
        yield "part of the range is not mapped"
    if call.error == errno.EINVAL and call.gate is None and not (call.refused or call.torn):
        yield "not whole pages, or beyond the address space"
    elif call.not_tried and call.gate is None:
        yield f"{call.not_tried:,} not tried"


def render_madvise(
    outcome: AdvisedOutcome, console: Console, *, verbose: bool, reach: float | None = None
) -> None:
    """Print what the calls would do; those with most windows, or all if verbose. reach: the share that PMDs
    are to map."""
    page = SafeConsole(console, verbose=verbose)
    render_basis(page, outcome.basis)
    page.line(_headline(outcome), "bold")
    answers = Counter(map(answer, outcome.ranges))
    said = ", ".join(
        f"{plural(n, 'call')} return{'s' * (n == 1)} {a}" for a, n in answers.most_common()
    )
    page.line(f"{said or 'no call'}. MADV_COLLAPSE asks no sysfs switch and no max_ptes limit.")
    if outcome.torn.tables:
        page.line(torn_text(outcome.torn), "bold yellow")
    if not outcome.complete:
        page.line("INCOMPLETE: interrupted; the calls that follow were not made.", "bold yellow")
    if reach is not None:
        _reach(page, outcome, reach)
    _calls(page, outcome)
    page.bullets("Warnings", outcome.warnings, "yellow")
    render_caveats(page, outcome.basis)


def _by_type(share: HugeShare, name: str) -> Iterator[str]:
    """What the types of pageblocks say of free blocks, and of those that compaction can make."""
    found = share.by_type
    if found is None:
        return
    text = f"free blocks of {name}: {found.movable:,} in movable pageblocks"
    if found.claimed:
        text += (
            f"; {sum(found.claimed.values()):,} in {' and '.join(found.claimed).lower()} ones, which movable "
            "memory gets as whole pageblocks once no movable one is free"
        )
    if found.kept:
        text += f"; {sum(found.kept.values()):,} that it does not get ({', '.join(found.kept)})"
    yield text
    if found.emptied is not None and share.blocks is not None and share.needed > share.blocks:
        text = f"compaction empties movable pageblocks alone, {found.emptied:,} of {found.all:,}"
        if share.most < share.huge:
            text += f": if every one comes free, it is {percent(share.most, share.mapped)}"
        yield text


class ReachAnswer(StrEnum):
    """Whether a share comes to be mapped by PMDs."""

    YES = "yes"
    IF_COMPACTED = "if compaction makes the blocks"
    NO = "no"


def reach_answer(share: HugeShare, reach: float) -> ReachAnswer:
    """Whether PMDs map that share afterwards; it needs what is not certain where too few blocks are free."""
    if share.huge < reach * share.mapped or not share.mapped:
        return ReachAnswer.NO
    if share.most < reach * share.mapped:
        return ReachAnswer.NO
    return ReachAnswer.YES if share.least >= reach * share.mapped else ReachAnswer.IF_COMPACTED


def _reach(page: SafeConsole, outcome: AdvisedOutcome, reach: float) -> None:
    """Print whether the share is reached, by how much not, and why."""
    share, found = outcome.share, reach_answer(outcome.share, reach)
    name = outcome.geometry.size_name(outcome.geometry.pmd_order)
    page.heading(f"Will {100 * reach:g} % be in huge pages of {name}? {found.value.capitalize()}")
    lines = [
        f"{percent(share.huge, share.mapped)} of {human_bytes(share.mapped)} of anonymous memory in these "
        f"ranges; before, {percent(share.before, share.total)} of {human_bytes(share.total)}"
    ]
    short = reach * share.mapped - share.huge
    if short > 0:
        lines.append(f"{human_bytes(round(short))} short of it")
    if share.blocks is not None and share.needed > share.blocks:
        lines.append(
            f"{share.needed:,} blocks of {name} are needed, and {share.blocks:,} are free: the others "
            "compaction and reclaim have to make, as is assumed here; if they make none, it is "
            f"{percent(share.least, share.mapped)}"
        )
    lines += _by_type(share, name)
    for status, size in sorted(share.refused.items(), key=lambda each: -each[1]):
        if size:
            lines.append(f"{human_bytes(size)} refused: {RESULT_REASONS[status]} ({status.string})")
    if share.not_tried:
        lines.append(
            f"{human_bytes(share.not_tried)} not tried: in mappings that are refused as a whole, or behind "
            "what ended a call"
        )
    if rest := share.mapped - share.in_windows:
        lines.append(
            f"{human_bytes(rest)} at the edges of mappings, in no whole aligned {name} range"
        )
    for line in lines:
        page.line(line, indent=2)


def _headline(outcome: AdvisedOutcome) -> str:
    calls, geometry = outcome.ranges, outcome.geometry
    size = geometry.size_name(geometry.pmd_order)
    collapsed, already, windows = (
        sum(getattr(call, name) for call in calls)
        for name in ("collapsed", "already_huge", "windows")
    )
    rest = windows - collapsed - already
    added = human_bytes(outcome.memory_added)
    return (
        f"Predicted (nothing here is observed): of {plural(windows, 'window')} of {size}, "
        f"{collapsed:,} collapse, {already:,} {'is' if already == 1 else 'are'} huge already, "
        f"{rest:,} {'does' if rest == 1 else 'do'} not; memory added {added}."
    )


def _calls(page: SafeConsole, outcome: AdvisedOutcome) -> None:
    several = len({call.pid for call in outcome.ranges}) > 1
    by_size = sorted(outcome.ranges, key=lambda call: (-call.windows, call.pid, call.start))
    with_windows = sum(call.windows > 0 for call in by_size)
    shown = len(by_size) if page.verbose else max(1, min(with_windows, CALLS_SHOWN))
    hidden = by_size[shown:]
    rows = []
    for call in sorted(by_size[:shown], key=lambda call: (call.pid, call.start)):
        where = f"{call.start:x}-{call.end:x}" + f" of pid {call.pid}" * several
        why = ", ".join([call.name or "[anon]", *reasons(call, outcome.geometry)])
        huge = f"{call.already_huge:,} → {call.already_huge + call.collapsed:,} of {call.windows:,}"
        said = Text("\n").join([page.text(where), page.text(why)])
        rows.append((answer(call), huge, human_bytes(call.memory_added), said))
    if rows:
        page.heading("Call by call")
        titles = [("returns", "keep"), ("huge windows", "right"), ("memory added", "right")]
        page.table([*titles, ("range, mapping, why", "left")], rows)
    if hidden:
        windows = plural(sum(call.windows for call in hidden), "window")
        page.line(f"… {plural(len(hidden), 'call')} more with {windows}: --verbose", "dim", 2)
    statuses = sorted({status for call in outcome.ranges for status in call.refused})
    page.bullets(
        "What the refused windows met",
        (f"{status.string}: {RESULT_REASONS[status]}" for status in statuses),
    )


def madvise_document(outcome: AdvisedOutcome, reach: float | None = None) -> dict[str, Any]:
    """The outcome as JSON values: bytes and addresses as numbers, orders as keys."""
    geometry, share = outcome.geometry, outcome.share
    return {
        "schema_version": 1,
        "predicted": True,
        **basis_values(outcome.basis),
        "page_size": geometry.page_size,
        "pmd_order": geometry.pmd_order,
        "complete": outcome.complete,
        "torn": asdict(outcome.torn),
        "ranges": [_range(call) for call in outcome.ranges],
        "orders_before": _orders(outcome.orders_before),
        "orders_after": _orders(outcome.orders_after),
        "memory_added": outcome.memory_added,
        "copied_bytes": outcome.copied_bytes,
        "swapped_in_bytes": outcome.swapped_in_bytes,
        "huge_share": {
            "total_before": share.total,
            "huge_before": share.before,
            "total": share.mapped,
            "huge": share.huge,
            "not_tried": share.not_tried,
            "at_edges": share.mapped - share.in_windows,
            "least_huge": share.least,
            "refused": {status.string: size for status, size in share.refused.items()},
            "free_blocks": share.blocks,
            "needed_blocks": share.needed,
            "free_blocks_by_type": None if share.by_type is None else _types(share.by_type),
            "reach": reach,
            "reached": None if reach is None else reach_answer(share, reach).name.lower(),
        },
        **caveat_values(outcome.basis),
        "warnings": list(outcome.warnings),
        "seconds": outcome.seconds,
    }


def _types(found: BlocksByType) -> dict[str, Any]:
    return {
        "movable": found.movable,
        "claimed": dict(found.claimed),
        "kept": dict(found.kept),
        "pageblocks_emptied": found.emptied,
        "pageblocks": found.all,
    }


def _orders(orders: Mapping[int, OrderUse]) -> dict[str, dict[str, int]]:
    return {str(order): asdict(use) for order, use in sorted(orders.items())}


def _range(call: Advised) -> dict[str, Any]:
    return {
        "pid": call.pid,
        "start": call.start,
        "end": call.end,
        "name": call.name,
        "mappings": call.mappings,
        "returns": None if call.error is None else -1 if call.error else 0,
        "errno": errno.errorcode[call.error] if call.error else None,
        "gate": call.gate.name if call.gate else None,
        "windows": call.windows,
        "collapsed": call.collapsed,
        "already_huge": call.already_huge,
        "refused": [
            {"status": status.string, "reason": RESULT_REASONS[status], "windows": windows}
            for status, windows in call.refused.items()
        ],
        "torn": call.torn,
        "not_tried": call.not_tried,
        "memory_added": call.memory_added,
    }
