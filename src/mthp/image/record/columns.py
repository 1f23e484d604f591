# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a recording: docs/recording-format.md describes it."""

from __future__ import annotations

from array import array
from typing import IO, Any, Iterable, NamedTuple

from mthp.image.capture.columns import ArrayMember, write_arrays
from mthp.image.record.attached import Attached
from mthp.image.record.decode import Decoder, EventRows
from mthp.image.record.formats import CALLS
from mthp.image.record.looks import Looks

SCHEMA = "mthp-recording/1"
ARGS = 6
"""Of a system call."""
COLUMNS = {
    "event_later": 4, "event_task": 4, "event_kind": 1, "event_flags": 1, "event_value": 8,
    "event_site": 4, "site_ip": 8, "call_kind": 1, "call_args": 8, "call_result": 8, "task_pid": 4,
    "task_process": 4, "task_flags": 8, "sample_time": 8, "sample_until": 8, "sample_process": 4,
    "sample_anon": 8, "sample_swap": 8,
}  # fmt: skip
"""The members of the file -> bytes of a value."""
START = {"start_page": 8, "start_order": 1, "start_folio": 8}
"""Those of what a process had that was there already."""
LOOKS = {
    "look_time": 8, "look_until": 8, "look_process": 4, "look_runs": 4, "run_page": 8, "run_pages": 4,
    "run_zero": 1,
}  # fmt: skip
"""Those of looks at which pages are zero."""
TYPE = {1: "|u1", 4: "u4", 8: "u8"}


class Sample(NamedTuple):
    """What /proc said of a process between two times: pages of anonymous memory that it had, and of swap."""

    time: int
    until: int
    pid: int
    anon: int
    swap: int


def sampled(decoder: Decoder, samples: Iterable[Sample]) -> dict[str, array[int]]:
    """The columns of the samples that fall to a process that was recorded then."""
    names = ("sample_time", "sample_until", "sample_process", "sample_anon", "sample_swap")
    columns = {name: array("I" if COLUMNS[name] == 4 else "Q") for name in names}
    for each in samples:
        index = decoder.index_at(each.pid, each.time)
        if index is not None:
            began = decoder.began
            row = (each.time - began, each.until - began, index, each.anon, each.swap)
            for name, value in zip(names, row):
                columns[name].append(value)
    return columns


def looked(decoder: Decoder, looks: Looks) -> dict[str, array[int] | bytearray]:
    """The columns of the looks that fall to a process that was recorded then."""
    times, until, process, runs = (array(each) for each in "QQII")
    page, pages, zero = array("Q"), array("I"), bytearray()
    at = 0
    for now, end, pid, count in zip(looks.time, looks.until, looks.pid, looks.runs):
        index = decoder.index_at(pid, now)
        if index is not None and count:
            times.append(now - decoder.began)
            until.append(end - decoder.began)
            process.append(index)
            runs.append(count)
            page.extend(looks.page[at : at + count])
            pages.extend(looks.pages[at : at + count])
            zero += looks.zero[at : at + count]
        at += count
    return dict(zip(LOOKS, (times, until, process, runs, page, pages, zero)))


def _arrays(
    rows: EventRows,
    samples: dict[str, array[int]],
    start: Attached | None,
    looks: dict[str, array[int] | bytearray],
) -> Iterable[ArrayMember]:
    found: dict[str, array[int] | bytearray] = {
        "event_later": rows.later, "event_task": rows.task, "event_kind": rows.kind,
        "event_flags": rows.flags, "event_value": rows.value, "event_site": rows.site,
        "site_ip": array("Q", rows.sites), "call_kind": rows.call_kind,
        "call_args": rows.call_args, "call_result": rows.call_result, "task_pid": rows.task_pid,
        "task_process": rows.task_process, "task_flags": rows.task_flags, **samples,
    }  # fmt: skip
    widths = dict(COLUMNS)
    if start is not None:
        widths.update(START)
        found.update(start_page=start.page, start_order=start.order, start_folio=start.folio)
    if looks:
        widths.update(LOOKS)
        found.update(looks)
    for name, width in widths.items():
        column = found[name]
        shape = (len(column) // ARGS, ARGS) if name == "call_args" else (len(column),)
        yield name, TYPE[width], shape, [memoryview(column).tobytes()]


def write_recording(
    target: IO[bytes],
    meta: dict[str, Any],
    decoder: Decoder,
    samples: Iterable[Sample],
    start: Attached | None = None,
    looks: Looks | None = None,
) -> None:
    """Write the file. meta: what is known of the host and of how it was recorded. start: a process that was
    there, with what it had. looks: at which pages are zero."""
    document = {
        "schema": SCHEMA,
        **meta,
        "looks": looks.told() if looks is not None else None,
        "calls": list(CALLS),
        "processes": decoder.rows.processes,
        "unseen_tasks": decoder.unseen,
    }
    seen = looked(decoder, looks) if looks is not None else {}
    arrays = _arrays(decoder.rows, sampled(decoder, samples), start, seen)
    write_arrays(target, document, arrays, level=1)
