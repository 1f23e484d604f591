# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of a fuzz campaign, and of one scenario with both event lists side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group

_SHOWN = 10
_CAUSES = 2
_PATHS = {
    "scenario": "the whole state",
    "snap": "a capture (mthp snap)",
    "deep": "a deep capture (mthp snap --deep)",
}
_WIDTH = 58


def fuzz_text(document: Mapping[str, Any], coverage: str) -> str:
    """The text of a campaign's document. coverage: its table, as text."""
    return "\n".join(_lines(document, coverage)) + "\n"


def programs_text(document: Mapping[str, Any], smallest: Sequence[Mapping[str, Any]]) -> str:
    """The text of a campaign of programs. smallest: programs that differ, made small."""
    programs, agreed = document["programs"], document["agreed"]
    share = f"{agreed / programs:.2%}" if programs else "nothing to compare"
    lines = [
        f"kernel {document['kernel']}, seed {document['seed']}: {document['number']} programs drawn, "
        f"{programs} run; {agreed} agree after every operation ({share})",
        f"{document['operations_agreed']} of {document['operations']} operations",
        "",
        f"{'operation':<16}{'done':>8}   {'counter':<32}{'moved by':>8}",
    ]
    done, moved = document["coverage"]["operations"], document["coverage"]["counters"]
    for one, other in zip_longest(done.items(), moved.items(), fillvalue=("", "")):
        lines.append(f"{one[0]:<16}{one[1]:>8}   {other[0]:<32}{other[1]:>8}".rstrip())
    for title, items in (
        ("differences", [_difference(each) for each in document["differences"]]),
        ("not run", [f"{each['id']}: {each['reason']}" for each in document["not_run"]]),
    ):
        if items:
            lines += ["", f"{title}: {len(items)}", *(f"  {each}" for each in items[:_SHOWN])]
    for program in smallest:
        lines += ["", f"{program['id']}, made small: sizes {program['orders']}"]
        lines += [f"  {step['op']}" for step in program["steps"]]
    return "\n".join(lines) + "\n"


def fuzz_tests(entries: Iterable[Mapping[str, Any]]) -> list[KtapTest]:
    """The lines of a campaign's log as tests: each state one, by family."""
    families: dict[str, list[KtapTest]] = {}
    for entry in entries:
        notes = [_mismatch(each) for each in entry["mismatches"]]
        verdict = KtapVerdict.NOT_OK if notes else KtapVerdict.OK
        if entry["not_built"]:
            verdict = KtapVerdict.SKIP
        test = KtapTest(entry["id"], verdict, f"not built: {entry['not_built']}", notes)
        families.setdefault(entry["family"], []).append(test)
    return [ktap_group(name, families[name]) for name in sorted(families)]


def _lines(document: Mapping[str, Any], coverage: str) -> Iterator[str]:
    passes, agreed = document["passes"], document["agreed"]
    share = f"{agreed / passes:.2%}" if passes else "nothing to compare"
    yield (
        f"kernel {document['kernel']}, seed {document['seed']}: {document['number']} states drawn, "
        f"{document['built']} built; {agreed} of {passes} passes agree ({share})"
    )
    yield ""
    yield f"{'family':<16}{'drawn':>8}{'not built':>11}{'passes':>8}{'agree':>8}"
    for name, row in document["families"].items():
        yield (
            f"{name:<16}{row['drafts']:>8}{row['not_built']:>11}{row['passes']:>8}{row['agreed']:>8}"
        )
    for path, total in document["paths"].items():
        yield from _path_lines(path, total)
    for title, items in (
        ("disagreements", [_mismatch(each) for each in document["mismatches"]]),
        ("not built", [f"{each['id']}: {each['reason']}" for each in document["not_built"]]),
    ):
        if items:
            yield ""
            yield f"{title} ({len(items)}):"
            yield from (f"  {item}" for item in items[:_SHOWN])
            yield from _more(items)
    yield ""
    yield coverage.rstrip()


_COLUMNS = (
    *("passes", "agreed", "within_range", "in_full", "nothing_changes"),
    *("ptes", "changed", "over", "under"),
)


def _path_lines(path: str, total: Mapping[str, Any]) -> Iterator[str]:
    """A path's figures by family, with what PTEs were predicted wrong and why."""
    if not total["passes"]:
        return
    yield ""
    yield (
        f"predicted from {_PATHS[path]}: {total['agreed']} of {total['passes']} passes agree "
        f'({total["agreed"] / total["passes"]:.2%}; by "nothing changes" '
        f"{total['nothing_changes'] / total['passes']:.2%}); of {total['ptes']} PTEs "
        f"{total['over']} over, {total['under']} under, {total['changed']} changed"
    )
    if path == "scenario":
        return
    heads = (
        "passes",
        "agree",
        "in range",
        "in full",
        "nothing",
        "PTEs",
        "changed",
        "over",
        "under",
    )
    yield f"{'family':<16}" + "".join(f"{head:>9}" for head in heads)
    for name, row in total["families"].items():
        yield f"{name:<16}" + "".join(f"{row[key]:>9}" for key in _COLUMNS)
    for family, causes in total["causes"].items():
        for cause, ptes in list(causes.items())[:_CAUSES]:
            yield f"  {family}: {ptes} PTEs: {_short(cause)}"
    for why, states in total["why_no_prediction"].items():
        yield f"  no prediction of {states} states: {_short(why)}"


def _more(items: Sequence[object]) -> list[str]:
    """A line with the number of items that are not shown, if there are any."""
    rest = len(items) - _SHOWN
    return [f"  … and {rest} more (--json has all)"] if rest > 0 else []


def _mismatch(each: Mapping[str, Any]) -> str:
    return (
        f"{each['id']} pass {each['pass']} {each['where']}: "
        f"kernel {_short(each['expected'])}, engine {_short(each['got'])}"
    )


def _difference(each: Mapping[str, Any]) -> str:
    return (
        f"{each['id']} after {each['operation']!r} (step {each['step']}), {each['where']}: "
        f"kernel {_short(each['expected'])}, engine {_short(each['got'])}"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"


def rerun_text(document: Mapping[str, Any]) -> str:
    """The text of a scenario that was run on a kernel: its events beside the engine's, and what differs."""
    lines = [f"{document['id']} on {document['kernel'] or 'no kernel'}"]
    lines += [f"  not built: {document['not_built']}"] if document["not_built"] else []
    differs = document["state_differs"]
    lines += [f"  the guest's state differs: {each}" for each in differs[:_SHOWN]]
    lines += _more(differs)
    for number, each in enumerate(document["passes"]):
        errno = each["kernel"].get("errno")
        result = "" if errno is None else f", errno {errno}"
        lines += [f"pass {number}{result}", side_by_side(each["kernel"]["events"], each["engine"])]
    lines += [_mismatch(each) for each in document["mismatches"]]
    if document["passes"] and not document["mismatches"]:
        lines.append("engine and kernel agree: events, counters, every page")
    return "\n".join(lines) + "\n"


def side_by_side(kernel: Sequence[Mapping[str, Any]], engine: Sequence[Mapping[str, Any]]) -> str:
    """Sets two event lists side by side, a line for each place; `*` marks where they differ."""
    lines = [f"  {'kernel':<{_WIDTH}}  engine"]
    for real, ours in zip_longest(kernel, engine):
        mark = " " if real == ours else "*"
        lines.append(f"{mark} {_event(real):<{_WIDTH}}  {_event(ours)}".rstrip())
    return "\n".join(lines) + "\n"


_SHORT = {
    "mm_collapse_huge_page_swapin": "swapin",
    "mm_collapse_huge_page_isolate": "isolate",
    "mm_collapse_huge_page": "collapse",
    "mm_khugepaged_scan_pmd": "scan",
    "none_or_zero": "none",
}


def _event(event: Mapping[str, Any] | None) -> str:
    """One event as a line: its tracepoint's short name, its result, the other fields."""
    if event is None:
        return "(none)"
    words = [_SHORT.get(str(event["event"]), str(event["event"]))]
    for name, value in event.items():
        if name == "address":
            words.append(f"{value:#x}")
        elif name == "status":
            words.append(str(value))
        elif name != "event":
            words.append(f"{_SHORT.get(name, name)}={value}")
    return " ".join(words)
