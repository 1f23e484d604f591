# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life under other settings, beside the one without huge pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from mthp.life.recorded_records import (
    GivenBack,
    HeldAgainst,
    KhugepagedWork,
    LifeOutcome,
    LifeSweep,
    Lived,
    MemoryMoment,
    SeenZero,
    Shrunk,
)
from mthp.report.page import SafeConsole
from mthp.report.phrases import order_name, percent, plural, short_time
from mthp.words.costs import CostTable
from mthp.words.units import human_bytes

SCHEMA_VERSION = 1
MAPPINGS_SHOWN = 8
SITES_SHOWN = 4


def render_life(lived: Lived, console: Console, *, verbose: bool = False) -> None:
    """Print both lives side by side. verbose: every mapping, every call site, what is not seen."""
    page = SafeConsole(console, verbose=verbose)
    page.line(f"{lived.name}: {lived.command}", "bold")
    page.line(
        f"Recorded on {lived.kernel} {'without huge pages' if lived.off else 'as it ran'}: "
        f"{lived.seconds:.1f} s, "
        f"{plural(lived.processes, 'process', 'processes')}, {plural(lived.tasks, 'task')}, "
        f"{plural(lived.events, 'event')}."
    )
    page.line(lived.given.settings.describe())
    page.line(_headline(lived), "bold")
    page.heading("Anonymous memory, and what the kernel does for it")
    columns = [("", "left"), ("without huge pages", "right"), ("as given", "right")]
    page.table(columns, _figures(lived), indent=0)
    _khugepaged(page, lived)
    _shrunk(page, lived)
    _peak(page, lived)
    page.console.print()
    page.line(held_text(lived.held, off=lived.off), "dim")
    page.bullets("Not seen", lived.unseen)


def _bytes(lived: Lived, pages: int) -> str:
    return human_bytes(pages << lived.geometry.page_shift)


def _headline(lived: Lived) -> str:
    before, after = lived.recorded, lived.given
    more = after.peak.frames - before.peak.frames
    sign = "+" if more >= 0 else ""
    change = f"{sign}{_bytes(lived, more)}, {sign}{100 * more / max(before.peak.frames, 1):.1f} %"
    saved = percent(before.faults - after.faults, before.faults)
    return (
        f"Predicted: {_bytes(lived, after.peak.frames)} at the peak ({change}), "
        f"{_bytes(lived, after.end.frames)} at the end, and {saved} of the faults saved."
    )


def _figures(lived: Lived) -> Iterator[tuple[str, str, str]]:
    both = (lived.recorded, lived.given)

    def row(name: str, *cells: str) -> tuple[str, str, str]:
        return (name, cells[0], cells[1])

    for title, moments in (
        ("peak", [each.peak for each in both]),
        ("at the end", [each.end for each in both]),
    ):
        yield row(f"{title}: mapped (RssAnon)", *(_bytes(lived, each.rss) for each in moments))
        yield row("  frames that folios take", *(_bytes(lived, each.frames) for each in moments))
        yield row("  in large folios", *(percent(each.huge, each.frames) for each in moments))
        for order in sorted({order for each in moments for order in each.folios}):
            name = order_name(lived.geometry, order)
            yield row(f"    {name}", *(f"{each.folios.get(order, 0):,}" for each in moments))
    yield row("peak after", *(short_time(each.peak.time) for each in both))
    yield row("faults at anonymous memory", *(f"{each.faults:,}" for each in both))
    yield row("cleared", *(_bytes(lived, each.cleared) for each in both))
    yield row("copied by copy-on-write", *(_bytes(lived, each.copied) for each in both))


def _khugepaged(page: SafeConsole, lived: Lived) -> None:
    """What khugepaged did, and when."""
    texts = list(khugepaged_texts(lived))
    if texts:
        page.heading(khugepaged_title(lived))
    for text in texts:
        page.line(text, indent=2)


def _shrunk(page: SafeConsole, lived: Lived) -> None:
    """What came back under pressure."""
    if lived.given.shrunk:
        page.heading("What comes back when memory is asked for")
    for text in shrunk_texts(lived):
        page.line(text, indent=2)


def shrunk_texts(lived: Lived) -> Iterator[str]:
    """What shrinkers split and gave, each time they were asked."""
    for each in lived.given.shrunk:
        when = f"{short_time(each.time)} after the beginning"
        if not each.split:
            yield f"Nothing, {when}: no folio is partly mapped, and no huge page underused."
            yield from _seen_texts(lived, each)
            continue
        sizes = ", ".join(
            f"{count:,} of {order_name(lived.geometry, order)}"
            for order, count in each.split.items()
        )
        given = each.given
        text = f"{_bytes(lived, given.freed)}, {when}, of folios that are split: {sizes}."
        if given.underused:
            text += f" {plural(given.underused, 'of them was', 'of them were')} underused"
            text += f", and the zero page stands for {_bytes(lived, given.unmapped)} now."
        yield text
        yield from _seen_texts(lived, each)


def _seen_texts(lived: Lived, shrunk: Shrunk) -> Iterator[str]:
    """What of that rests on looks at which pages are zero, and how old these were."""
    seen = shrunk.seen
    if seen is None or not seen.written:
        return
    written = plural(seen.written, "page")
    if not seen.looked:
        yield f"None of the {written} written to there had been looked at: none counts as zero."
        return
    ages = short_time(seen.newest)
    if short_time(seen.oldest) != ages:
        ages = f"{ages} to {short_time(seen.oldest)}"
    blind = seen.blind
    text = (
        f"Of the {written} written to there, {seen.looked:,} had been looked at, {ages} before: "
        f"{seen.zero:,} were zero."
    )
    other = (
        f"it would be {_bytes(lived, blind.freed)}, of {plural(blind.underused, 'underused one')}"
    )
    if blind == shrunk.given:
        other = "the answer would be the same"
    elif not blind.freed:
        other = "nothing would come back"
    yield f"{text} Not knowing that, {other}."


def khugepaged_title(lived: Lived) -> str:
    """What stands above khugepaged_texts()."""
    work = lived.given.khugepaged
    by = f" (profile {work.profile})" if work is not None else ""
    return f"What khugepaged does meanwhile{by}"


def khugepaged_texts(lived: Lived) -> Iterator[str]:
    """What khugepaged did, and when, in sentences; none where it was not run."""
    work = lived.given.khugepaged
    if work is None:
        return
    if not work.wakeups:
        yield (
            "Nothing: no process comes onto its list, which takes a mapping that a size is enabled for, and "
            "that is advised, grows, or gets a huge page by a fault."
        )
        return
    yield (
        f"It wakes up {plural(work.wakeups, 'time')} and scans {plural(work.scanned, 'page')} "
        f"({plural(work.full_scans, 'full scan')})."
    )
    if not work.points:
        yield "Nothing is collapsed."
        return
    sizes = ", ".join(
        f"{count:,} of {order_name(lived.geometry, order)}"
        for order, count in work.collapsed.items()
    )
    first, last = work.points[0].time, work.points[-1].time
    when = f"{short_time(first)} after the beginning"
    if last != first:
        when = f"from {short_time(first)} to {short_time(last)} after the beginning"
    yield f"It makes folios, {when}: {sizes}."
    yield (
        f"For these it copies {_bytes(lived, work.copied)} and adds {_bytes(lived, work.filled)} of zeroes; "
        f"memory in use grows by {_bytes(lived, work.frames_added)} by that."
    )
    made = sum(work.collapsed.values())
    if work.attempts > made:
        more = plural(work.attempts - made, "folio")
        yield f"{more} more are allocated for nothing: what is there stays."


def _peak(page: SafeConsole, lived: Lived) -> None:
    mappings = lived.given.mappings
    shown = mappings if page.verbose else mappings[:MAPPINGS_SHOWN]
    page.heading(f"What made the peak, {short_time(lived.given.peak.time)} after the beginning")
    page.table(
        [
            *(("process", "left"), ("mappings", "left"), ("", "right"), ("mapped", "right")),
            *(("never written", "right"), ("in large folios", "right")),
        ],
        [
            (
                each.process,
                each.name,
                f"{each.mappings:,}",
                _bytes(lived, each.rss),
                _bytes(lived, each.rss - each.written),
                percent(each.huge, each.rss),
            )
            for each in shown
        ],
    )
    if len(mappings) > len(shown):
        page.line(f"and {len(mappings) - len(shown)} more (--verbose)", "dim", indent=2)
    sites = lived.given.sites if page.verbose else lived.given.sites[:SITES_SHOWN]
    if sites:
        page.heading("Where the program was when it got memory")
        page.table(
            [("instruction", "left"), ("faults", "right"), ("memory", "right")],
            [(f"{each.ip:#x}", f"{each.faults:,}", _bytes(lived, each.pages)) for each in sites],
        )


def held_text(held: HeldAgainst, *, off: bool = True) -> str:
    """How the replay compares with what /proc said."""
    how = "Without huge pages" if off else "Under the settings of then"
    if not held.samples:
        return "The program was too short to be held against what /proc said."
    samples = plural(held.samples, "time", "times")
    if not held.worst:
        return (
            f"{how} the replay has, each of the {samples} that /proc was read, exactly the "
            "pages that it said."
        )
    return (
        f"{how} the replay was held against /proc {samples}: the largest difference is "
        f"{held.worst:+,} pages of {held.said:,}."
    )


def fault_time(outcome: LifeOutcome, pmd_order: int, costs: CostTable) -> float | None:
    """Nanoseconds that its faults take, by the table; None where a cost is not known."""
    huge = outcome.brought.get(pmd_order, 0)
    pages = sum(
        (count << order) - count for order, count in outcome.brought.items() if order < pmd_order
    )
    try:
        return costs.sum_ns(fault_page=outcome.faults - huge, fault_pmd=huge, clear_page=pages)
    except KeyError:
        return None


def fault_times(sweep: LifeSweep, costs: CostTable) -> list[float]:
    """That of each row; none where the table does not have what it takes."""
    times = [fault_time(each, sweep.geometry.pmd_order, costs) for _, each in sweep.rows]
    return [each for each in times if each is not None] if None not in times else []


def render_life_sweep(sweep: LifeSweep, costs: CostTable, console: Console) -> None:
    """Print a row for each setting."""
    page = SafeConsole(console)
    page.line(f"{sweep.name}: {sweep.command}", "bold")
    page.line(f"Recorded on {sweep.kernel} without huge pages: {sweep.seconds:.1f} s.")
    shift, base = sweep.geometry.page_shift, sweep.rows[0][1]
    rows = []
    times = fault_times(sweep, costs)
    for k, (title, each) in enumerate(sweep.rows):
        more = 100 * (each.peak.frames / max(base.peak.frames, 1) - 1)
        rows.append(
            (
                title,
                human_bytes(each.peak.frames << shift),
                f"{more:+.1f} %",
                percent(each.peak.huge, each.peak.frames),
                human_bytes(each.end.frames << shift),
                f"{each.faults:,}",
                human_bytes(each.cleared << shift),
                human_bytes(each.copied << shift),
                *([short_time(times[k])] if times else []),
            )
        )
    page.heading("Predicted, by the sizes that are always")
    page.table(
        [
            *(("sizes", "left"), ("peak", "right"), ("", "right"), ("large", "right")),
            *(("at the end", "right"), ("faults", "right"), ("cleared", "right")),
            ("copied", "right"),
            *([("fault time", "right")] if times else []),
        ],
        rows,
        indent=0,
    )
    page.console.print()
    page.line(held_text(sweep.held), "dim")
    page.bullets("Not seen", sweep.unseen)


def life_sweep_document(sweep: LifeSweep, costs: CostTable) -> dict[str, Any]:
    """Every setting's life as JSON values, as in life_document()."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        "target": sweep.name,
        "command": sweep.command,
        "kernel": sweep.kernel,
        "recorded_seconds": sweep.seconds,
        "rows": [
            {
                "sizes": title,
                "fault_ns": fault_time(each, sweep.geometry.pmd_order, costs),
                **_outcome_values(sweep.geometry.page_shift, each),
            }
            for title, each in sweep.rows
        ],
        "unseen": list(sweep.unseen),
        "seconds": sweep.took,
    }


def life_document(lived: Lived) -> dict[str, Any]:
    """Both lives as JSON values: sizes in bytes, times in nanoseconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        "target": lived.name,
        "command": lived.command,
        "kernel": lived.kernel,
        "page_size": lived.geometry.page_size,
        "pmd_order": lived.geometry.pmd_order,
        "events": lived.events,
        "processes": lived.processes,
        "tasks": lived.tasks,
        "recorded_seconds": lived.seconds,
        "recorded_without_huge_pages": lived.off,
        "without_huge_pages": _outcome_values(lived.geometry.page_shift, lived.recorded),
        "given": _outcome_values(lived.geometry.page_shift, lived.given),
        "held_against_proc": {
            "samples": lived.held.samples,
            "worst_pages": lived.held.worst,
            "said_pages": lived.held.said,
        },
        "unseen": list(lived.unseen),
        "seconds": lived.took,
    }


def _outcome_values(shift: int, outcome: LifeOutcome) -> dict[str, Any]:
    def moment(of: MemoryMoment) -> dict[str, Any]:
        return {
            "time": of.time,
            "rss": of.rss << shift,
            "frames": of.frames << shift,
            "large": of.huge << shift,
            "folios": {str(order): count for order, count in sorted(of.folios.items())},
        }

    curve = outcome.curve
    return {
        "settings": outcome.settings.to_json(),
        "peak": moment(outcome.peak),
        "end": moment(outcome.end),
        "faults": outcome.faults,
        "cleared_bytes": outcome.cleared << shift,
        "copied_bytes": outcome.copied << shift,
        "brought": {str(order): count for order, count in outcome.brought.items()},
        "nowhere": outcome.nowhere,
        "passed_over": outcome.passed_over,
        "khugepaged": _work_values(shift, outcome.khugepaged),
        "pressure": [
            {
                "time": each.time,
                "split": {str(order): count for order, count in each.split.items()},
                **_given_values(shift, each.given),
                "seen": _seen_values(shift, each.seen),
            }
            for each in outcome.shrunk
        ],
        "mappings": [
            {
                "process": each.process,
                "name": each.name,
                "mappings": each.mappings,
                "rss": each.rss << shift,
                "written": each.written << shift,
                "large": each.huge << shift,
            }
            for each in outcome.mappings
        ],
        "sites": [
            {"ip": each.ip, "faults": each.faults, "bytes": each.pages << shift}
            for each in outcome.sites
        ],
        "curve": {
            "time": curve.time.tolist(),
            "rss": (curve.rss << shift).tolist(),
            "frames": (curve.frames << shift).tolist(),
            "large": (curve.huge << shift).tolist(),
        },
    }


def _given_values(shift: int, given: GivenBack) -> dict[str, int]:
    """What shrinkers give."""
    return {
        "underused": given.underused,
        "unmapped_bytes": given.unmapped << shift,
        "freed_bytes": given.freed << shift,
    }


def _seen_values(shift: int, seen: SeenZero | None) -> dict[str, Any] | None:
    """What was known of contents; None where nobody looked."""
    if seen is None:
        return None
    return {
        "written_pages": seen.written,
        "looked_at_pages": seen.looked,
        "zero_pages": seen.zero,
        "newest_ns": seen.newest,
        "oldest_ns": seen.oldest,
        "blind": _given_values(shift, seen.blind),
    }


def _work_values(shift: int, work: KhugepagedWork | None) -> dict[str, Any] | None:
    """What khugepaged did; None where it was not run."""
    if work is None:
        return None
    return {
        "profile": work.profile,
        "wakeups": work.wakeups,
        "full_scans": work.full_scans,
        "scanned_pages": work.scanned,
        "collapsed": {str(order): count for order, count in work.collapsed.items()},
        "copied_bytes": work.copied << shift,
        "filled_bytes": work.filled << shift,
        "added_bytes": work.frames_added << shift,
        "folios_allocated": work.attempts,
        "refused_unused": work.lacking,
        "curve": {
            "time": [point.time for point in work.points],
            "collapsed": [point.collapsed << shift for point in work.points],
            "added": [point.added << shift for point in work.points],
        },
    }
