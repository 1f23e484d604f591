# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer for the owner of an application: what is huge, what would be, at what price, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mthp.predict.records import OrderUse, Outcome, Status
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, more_memory, percent, plural, torn_text
from mthp.report.refusals import status_text
from mthp.words.resident import name_of
from mthp.words.units import human_bytes

_WHERE = {
    "NOT_ENABLED": "in mappings without an enabled size",
    "NOHUGEPAGE": "in mappings with MADV_NOHUGEPAGE or MAP_STACK",
    "FILE": "in private mappings of files, where nothing collapses",
    "THP_DISABLED": "in a process with PR_SET_THP_DISABLE",
    "NOT_ADVISED": "in a process that takes huge pages only where advised (prctl)",
    "TOO_SHORT": "in mappings too short for an aligned {pmd}",
    "PMD_NOT_SPANNED": "at the edges of mappings",
    "TOO_FEW_PTES": "where pages are missing",
    "exceed_none_pte": "where pages are missing",
    "exceed_swap_pte": "where pages are swapped out",
    "exceed_shared_pte": "shared with other processes",
    "pte_mapped_hugepage": "in pages of a smaller size",
    "lack_referenced_page": "not used lately",
    "not_suitable_page_count": "pinned",
    "page_lazyfree": "given up by MADV_FREE",
    "alloc_huge_page_failed": "for want of a free block",
    "ccgroup_charge_failed": "at the memory cgroup's limit",
    "NOT_REGISTERED": "in a process that khugepaged does not have on its list",
}
"""Where memory is that stays small, by the name of the gate or the kernel's string."""


NAME_SHOWN = 28
"""Letters of a mapping's name, from its end."""


def render_verdict(page: SafeConsole, verdict: Iterable[tuple[str, str, str]]) -> None:
    """Print the answer: a line each for now, what is beside it, then, and the rest; with what could be."""
    rows = [(page.text(label, "dim"), page.text(words, style)) for label, words, style in verdict]
    page.table([("", "keep"), ("", "left")], rows, grid=True, indent=0)


def verdict_rows(outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """(label, words, style) of each line."""
    highest = outcome.pmd_order if outcome.highest_order is None else outcome.highest_order
    size = outcome.settings.geometry.size_name(highest)
    more = " or more" if highest < outcome.pmd_order else ""
    before = outcome.orders_before
    yield (
        "now",
        f"{human_bytes(_large(before, highest))} of {human_bytes(_large(before, 0))} anonymous memory "
        f"is in huge pages ({size}{more})" + ", and no size is enabled" * outcome.nothing_enabled,
        "bold",
    )
    beside = _beside(outcome)
    if beside:
        yield "also", beside, ""
    if outcome.nothing_enabled:
        pass  # it is said, and what other settings would make of it is the answer
    elif outcome.clock.last_collapse_ms is None:
        yield "then", "nothing collapses", "bold"
    else:
        yield "then", _afterwards(outcome), "bold green"
    yield from _open(outcome)
    for name, other in outcome.alternatives.items():
        if other.clock.last_collapse_ms is None:
            most, where = _most(other)
            yield "with", f"{name}: nothing; {human_bytes(most)} {where}", ""
        else:
            yield "with", f"{name}: {_afterwards(other)}", "green"
    if outcome.nothing_enabled and not outcome.alternatives:
        yield "with", "other settings, such as --enabled always: not tried", ""
    elif outcome.refusals and not outcome.alternatives:
        yield "rest", _rest(outcome), ""
    if outcome.torn.tables:
        yield "torn", torn_text(outcome.torn), "bold yellow"
    if not outcome.complete:
        yield "but", passes_made(outcome), "bold yellow"


def _open(outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """Say between what the answer lies where a capture leaves things open, and what it hangs on."""
    if outcome.bounds is not None:
        what = " and ".join(each.value for each in outcome.bounds.unknown)
        ends = outcome.bounds.ends
        if ends is None:
            yield "range", f"not looked for (--no-range), though it is not known {what}", "yellow"
        elif ends[0] < ends[1]:
            least, most = map(human_bytes, ends)
            words = f"from {least} to {most} collapse, as it is not known {what}; --deep tells"
            yield "range", words, "yellow"
    if outcome.short_of_memory:
        yield (
            "short",
            f"{human_bytes(outcome.free_memory or 0)} of memory are free: what the kernel would compact, "
            "reclaim or swap out to make room is not predicted",
            "yellow",
        )
    of = [
        pid
        for pid, known in outcome.registered.items()
        if known is None and pid not in outcome.taken_off
    ]
    if of and outcome.collapsed_bytes:
        one = len(of) == 1
        whose = f"process {of[0]}" if one else f"{len(of)} of the processes"
        yield (
            "unless",
            f"khugepaged does not scan {whose} at all: whether {'it is' if one else 'they are'} on its "
            "list is not known (--registered)",
            "yellow",
        )


def _afterwards(outcome: Outcome) -> str:
    """Says what is huge afterwards, what is added, and by when all has collapsed."""
    before, after = outcome.orders_before, outcome.orders_after
    huge = outcome.large_bytes
    words = f"{human_bytes(huge)} ({percent(huge, _large(after, 0))})"
    highest = outcome.pmd_order if outcome.highest_order is None else outcome.highest_order
    smaller = _large(after, 1) - huge - _large(before, 1) + _large(before, highest)
    words += f", and {human_bytes(smaller)} more in smaller sizes" if smaller > 0 else ""
    when = duration(outcome.clock.last_collapse_ms or 0)
    return f"{words}; {more_memory(outcome.memory_added)}; in {when}"


def _beside(outcome: Outcome) -> str:
    """Says what memory there is that is no mapped anonymous page; nothing where there is none."""
    parts = []
    if outcome.resident is not None and outcome.resident.mappings:
        most = outcome.resident.mappings[0]
        where = f" ({human_bytes(most.bytes)}: {name_of(most, NAME_SHOWN)})"
        unmodelled = outcome.resident.unmodelled
        size = "some" if unmodelled is None else human_bytes(unmodelled)
        parts.append(f"{size} not modelled{where}")
    if outcome.partly_before.folios:
        parts.append(f"{human_bytes(outcome.partly_before.held)} in partly mapped folios")
    return ", ".join(parts)


def passes_made(outcome: Outcome) -> str:
    """Says in one sentence how far the run got."""
    scans = plural(outcome.clock.full_scans, "full scan")
    if outcome.fixed_point and not outcome.clock.full_scans:
        return "at the fixed point from the start: there is nothing to scan"
    if outcome.fixed_point:
        return f"to the fixed point: {scans}, the last of which changed nothing"
    if outcome.complete:
        return f"{scans} as asked; not the fixed point: the next may collapse more"
    return f"INCOMPLETE: interrupted or stopped short of the fixed point, after {scans}"


def _rest(outcome: Outcome) -> str:
    """Says how much stays small, and where most of it is."""
    total = sum(refusal.distinct for refusal in outcome.refusals) * outcome.page_size
    most, where = _most(outcome)
    words = human_bytes(total)
    words += f", {human_bytes(most)} of it" if most < total else ""
    return f"{words} {where}"


def _most(outcome: Outcome) -> tuple[int, str]:
    """Where most of what stays small is, and how much that is."""
    held: Counter[Status] = Counter()
    for refusal in outcome.refusals:
        held[refusal.status] += refusal.distinct * outcome.page_size
    what, most = next(iter(held.most_common(1)), (None, 0))
    status = "" if what is None else status_text(what)
    pmd = human_bytes(outcome.settings.geometry.pmd_size)
    return most, _WHERE.get(status, f"refused as {status}").format(pmd=pmd)


def _large(orders: Mapping[int, OrderUse], least: int) -> int:
    return sum(use.bytes for order, use in orders.items() if order >= least)
