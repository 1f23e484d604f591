# SPDX-License-Identifier: GPL-2.0-or-later
"""An outcome as rows of CSV: a header, then a row a mapping, a process, or a call of MADV_COLLAPSE.

docs/csv.md describes the columns. Sizes are bytes; addresses are hexadecimal, as /proc writes them.
"""

from __future__ import annotations

import csv
import errno
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from mthp.predict.records import AdvisedOutcome, Outcome, Refusal
from mthp.report.refusals import status_text
from mthp.words.files import shown

Row = Sequence[str | int]


def write_csv(rows: Iterable[Row], file: TextIO) -> None:
    """Write rows; what is in a name and cannot be printed is a question mark."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow(shown(cell) if isinstance(cell, str) else cell for cell in row)


def mapping_rows(outcome: Outcome) -> Iterator[Row]:
    """A row a mapping, by pid and address."""
    names = {process.pid: process.name for process in outcome.by_process}
    why = _refused_pages(outcome)
    yield (
        "pid", "process", "start", "end", "mapping", *_order_titles(outcome), "swapped", "zero_page",
        "memory_added", "refused", "gate", "reason",
    )  # fmt: skip
    for vma in outcome.vmas:
        pages = why.get((vma.pid, vma.start), Counter())
        yield (
            vma.pid, names.get(vma.pid, ""), f"{vma.start:x}", f"{vma.end:x}", vma.name,
            *_sizes(outcome, vma.before, vma.after), vma.swapped, vma.zero, vma.memory_added,
            sum(pages.values()) * outcome.page_size, vma.gate,
            pages.most_common(1)[0][0] if pages else "",
        )  # fmt: skip


def process_rows(outcome: Outcome) -> Iterator[Row]:
    """A row a process."""
    yield ("pid", "process", *_order_titles(outcome), "swapped", "memory_added")
    for process in outcome.by_process:
        sizes = _sizes(outcome, process.before, process.after)
        yield (process.pid, process.name, *sizes, process.swapped, process.memory_added)


def call_rows(outcome: AdvisedOutcome) -> Iterator[Row]:
    """A row a call of MADV_COLLAPSE."""
    yield (
        "pid", "start", "end", "mapping", "returns", "errno", "windows", "already_huge", "collapsed",
        "refused", "not_tried", "memory_added", "gate", "reason",
    )  # fmt: skip
    for call in outcome.ranges:
        worst = max(call.refused.items(), key=lambda item: item[1], default=None)
        yield (
            call.pid, f"{call.start:x}", f"{call.end:x}", call.name,
            "" if call.error is None else -1 if call.error else 0,
            errno.errorcode[call.error] if call.error else "",
            call.windows, call.already_huge, call.collapsed, sum(call.refused.values()),
            call.not_tried, call.memory_added, call.gate.name if call.gate else "",
            worst[0].string if worst else "",
        )  # fmt: skip


def _order_titles(outcome: Outcome) -> Iterator[str]:
    for when in ("before", "after"):
        yield when
        yield from (f"{when}_order_{order}" for order in range(outcome.pmd_order + 1))


def _sizes(outcome: Outcome, before: Mapping[int, int], after: Mapping[int, int]) -> Iterator[int]:
    for use in (before, after):
        yield sum(use.values())
        yield from (use.get(order, 0) for order in range(outcome.pmd_order + 1))


def _refused_pages(outcome: Outcome) -> dict[tuple[int, int], Counter[str]]:
    """Mapping (pid, start) -> status -> the pages that it was the last refusal of."""
    places = sorted((vma.pid, vma.start) for vma in outcome.vmas)
    found: dict[tuple[int, int], Counter[str]] = {}
    for refusal in outcome.refusals:
        found.setdefault(_mapping_of(refusal, places), Counter())[status_text(refusal.status)] += (
            refusal.pages
        )
    return found


def _mapping_of(refusal: Refusal, places: list[tuple[int, int]]) -> tuple[int, int]:
    return places[bisect_right(places, (refusal.pid, refusal.address)) - 1]
