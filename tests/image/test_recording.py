# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings: what the records of a ring buffer become, and files that are refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mthp.image.capture.proc import CaptureError
from mthp.image.record.formats import EXIT, USER_FAULT, parse_event
from mthp.image.recording import (
    EventKind,
    FaultFlag,
    HowBegun,
    Recording,
    RecordingError,
    read_recording,
)
from tests.image.made import Made
from tests.image.made_recording import (
    CHILD,
    HEAP,
    PID,
    Ring,
    made_looked,
    made_recording,
    made_there,
)


def read(made: Made) -> Recording:
    return read_recording(io.BytesIO(made.packed()), "a.npz")


def test_a_life_is_read_as_it_was() -> None:
    recording = read(made_recording())
    kinds = [EventKind(kind).name for kind in recording.kind if kind != EventKind.IDLE]
    assert kinds == [
        *("PROGRAM", "FAULT", "CALL", "RETURN", "FAULT", "FAULT", "FAULT", "FAULT", "TASK"),
        *("FAULT", "END", "TASK", "CALL", "RETURN", "END", "CALL", "RETURN", "END"),
    ]
    assert recording.task_pid.tolist() == [PID, CHILD, CHILD + 1]
    assert recording.task_process.tolist() == [0, 1, 0]
    assert [each.how for each in recording.processes] == [HowBegun.EXEC, HowBegun.FORK]
    assert recording.processes[0].program == "/made"
    assert recording.processes[0].vmas is not None and len(recording.processes[0].vmas) == 1
    faults = recording.kind == EventKind.FAULT
    assert recording.value[faults].tolist()[:2] == [HEAP >> 12, (HEAP >> 12) + 256]
    assert set(recording.flags[faults].tolist()) == {2, 6, 7}
    assert recording.flags[faults][-1] & FaultFlag.PRESENT
    assert recording.sites[recording.site[faults]].tolist() == [0x10, *[0x20] * 4, 0x30]
    names = [recording.calls[kind] for kind in recording.call_kind]
    assert names == ["mmap", "madvise", "munmap"]
    assert recording.call_args[1].tolist() == [HEAP + (1 << 20), 8192, 4, 0, 0, 0]
    assert recording.call_result[0] == HEAP + (1 << 20)
    assert recording.sample_anon.tolist() == [2, 0]


def test_times_longer_than_a_column_are_kept() -> None:
    recording = read(made_recording())
    assert np.diff(recording.time).max() == 5 << 32
    assert recording.time[0] == 0 and np.all(np.diff(recording.time) >= 0)


def test_records_of_all_shapes_have_their_times() -> None:
    ring = Ring()
    ring.record(USER_FAULT, PID, 1, 2, 6)
    ring.discarded()
    ring.record(USER_FAULT, PID, 1, 2, 6, later=1 << 30)
    ring.stamped()
    ring.record(EXIT, PID, 0, PID, later=3, text=bytes(200))
    ring.page()
    times = [now for now, *_ in ring.read().records()]
    assert times == [1_010, 1_010 + (1 << 30), 1_013 + (1 << 30)]


def test_what_the_kernel_lost_is_counted() -> None:
    ring = Ring()
    ring.record(USER_FAULT, PID, 1, 2, 6)
    ring.page(missed=7)
    pages = ring.read()
    assert len(list(pages.records())) == 1
    assert pages.missed == 7


@pytest.mark.parametrize("at", [8, 16])
def test_a_damaged_page_is_refused(at: int) -> None:
    ring = Ring()
    ring.record(USER_FAULT, PID, 1, 2, 6, text=bytes(100))
    ring.page()
    page = bytearray(ring.pages[0])
    page[at : at + 8] = (0xFFFFF if at == 8 else 0xFFFF_FFFF_0000_0000).to_bytes(8, "little")
    ring.pages[0] = bytes(page)
    with pytest.raises(CaptureError, match="page"):
        list(ring.read().records())


def test_a_format_without_fields_is_refused() -> None:
    with pytest.raises(CaptureError, match="nothing that is understood"):
        parse_event("a/b", "name: b\n")


def _set(name: str, row: int, value: int) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        made.arrays[name][row] = value

    return change


def _meta(key: str, value: Any) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        made.meta[key] = value

    return change


def _twice(made: Made) -> None:
    made.arrays["event_value"][made.arrays["event_kind"] == EventKind.TASK] = 1


def _unlike(made: Made) -> None:
    made.arrays["event_flags"] = made.arrays["event_flags"][:-1]


def _later_call(made: Made) -> None:
    kind = made.arrays["event_kind"]
    rows = np.flatnonzero((kind == EventKind.CALL) | (kind == EventKind.RETURN))[:2]
    kind[rows] = kind[rows][::-1]


def _run_back(made: Made) -> None:
    row = np.flatnonzero(made.arrays["event_kind"] == EventKind.IDLE)[0]
    made.arrays["event_value"][row] = 2**64 - 5


def _process(key: str, value: Any) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        made.meta["processes"][1][key] = value

    return change


REFUSED: dict[str, tuple[Callable[[Made], None], str]] = {
    "lost": (_meta("lost", 3), "3 events were lost while it was recorded"),
    "another architecture": (_meta("machine", "aarch64"), "recorded on 'aarch64'"),
    "another schema": (_meta("schema", "mthp-snapshot/1"), "schema"),
    "no kernel": (_meta("kernel", None), "kernel"),
    "page size": (_meta("page_size", 4095), "powers of two"),
    "a call named twice": (_meta("calls", ["mmap", "mmap"]), "twice"),
    "an address": (_set("event_value", 1, 1 << 35), "an address that no process has"),
    "a kind": (_set("event_kind", 1, 9), "member event_kind: a value outside 1..7, in row 1"),
    "a flag": (_set("event_flags", 1, 32), "event_flags"),
    "a flag of a call": (_set("event_flags", 2, 2), "of what is no fault"),
    "a task": (_set("event_task", 1, 3), "event_task"),
    "a site": (_set("event_site", 1, 3), "call site"),
    "before its begin": (_set("event_task", 1, 1), "before its begin or after its end"),
    "a task twice": (_twice, "a task that begins twice"),
    "a call not there": (_set("event_value", 2, 3), "no system call of the file"),
    "a return before": (_later_call, "returns before it begins"),
    "times that run back": (_run_back, "time"),
    "a sample of nobody": (_set("sample_process", 0, 2), "sample_process"),
    "samples that run back": (_set("sample_time", 0, 1 << 50), "run back"),
    "a sample that ends before it begins": (_set("sample_until", 0, 1), "sample_until"),
    "a column cut": (_unlike, "member event_flags has shape"),
    "no parent": (_process("parent", None), "missing of what was forked"),
    "its own parent": (_process("parent", 1), "outside 0..0"),
    "an unknown way": (_process("how", "spawn"), "is not one of"),
    "a process nobody is in": (_set("task_process", 1, 0), "no task is ever in it"),
    "a mapping": (
        lambda made: made.meta["processes"][0]["vmas"][0].update(end=HEAP),
        "is no mapping, or not in order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    made = made_recording()
    change, why = REFUSED[name]
    change(made)
    with pytest.raises(RecordingError) as error:
        read(made)
    assert why in str(error.value) and str(error.value).startswith("a.npz: ")


def test_what_a_process_had_is_read() -> None:
    recording = read(made_there())
    assert recording.was_there and recording.start_order.tolist() == [2, 2, 2, 0, 0, 128]
    assert not read(made_recording()).was_there


@pytest.mark.parametrize(
    ("name", "row", "value", "why"),
    [
        ("start_page", 0, 1 << 40, "not ascending pages"),
        ("start_page", 5, 1 << 35, "a page in none of the process's mappings"),
        ("start_order", 0, 10, "no order up to 9"),
        ("start_order", 0, 3, "a folio of two orders"),
        ("start_order", slice(0, 5), 1, "a folio of two orders, or of more pages than it has"),
    ],
)
def test_what_a_process_cannot_have_had_is_refused(
    name: str, row: Any, value: int, why: str
) -> None:
    made = made_there()
    made.arrays[name][row] = value
    with pytest.raises(RecordingError, match=why):
        read(made)


def test_who_was_not_there_had_nothing() -> None:
    made = made_there()
    made.meta["processes"][0]["how"] = "exec"
    with pytest.raises(RecordingError, match="was not there already"):
        read(made)
    del made.arrays["start_folio"]
    with pytest.raises(RecordingError, match="no member start_folio"):
        read(made)


def test_looks_are_read() -> None:
    recording = read(made_looked())
    assert recording.looks and recording.look_process.tolist() == [0, 1]
    assert recording.run_pages.tolist() == [1, 4, 2] and recording.run_zero.tolist() == [0, 1, 1]
    plain = read(made_recording())
    assert not plain.looks and not len(plain.look_time)


def _without(*names: str) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        for name in names:
            del made.arrays[name]

    return change


MEMBERS = (
    *("look_time", "look_until", "look_process", "look_runs"),
    *("run_page", "run_pages", "run_zero"),
)


def _early(made: Made) -> None:
    made.arrays["look_process"][0] = 1
    made.arrays["look_time"][0] = 89  # the child begins at 90


NO_LOOKS: dict[str, tuple[Callable[[Made], None], str]] = {
    "a process that is not there": (_set("look_process", 1, 2), "look_process: a value outside"),
    "before the process": (_early, "look_time: before the process began"),
    "without end": (_set("look_time", 1, 1 << 62), "look_time: before the process began, or"),
    "times that run back": (_set("look_until", 0, 201), "look_until: before the look began, or"),
    "an end before the beginning": (_set("look_until", 1, 199), "look_until: before the look"),
    "an end without end": (_set("look_until", 1, 1 << 62), "look_until: before the look"),
    "no runs": (_set("look_runs", 0, 0), "look_runs: a value outside"),
    "other runs": (_set("look_runs", 0, 3), "look_runs: other runs of pages than there are"),
    "very many runs": (_set("look_runs", 0, 2**32 - 1), "look_runs: a value outside"),
    "a run of nothing": (_set("run_pages", 0, 0), "run_pages: a value outside"),
    "neither zero nor not": (_set("run_zero", 0, 2), "run_zero: a value outside 0..1, in row 0"),
    "an address": (_set("run_page", 2, 1 << 35), "run_page: an address that no process has"),
    "an address that overflows": (_set("run_page", 2, 2**64 - 1), "an address that no process"),
    "an end beyond all": (_set("run_page", 2, (1 << 35) - 1), "an address that no process has"),
    "runs that run back": (_set("run_page", 1, 5), "run_page: not ascending runs of a look"),
    "runs that overlap": (_set("run_pages", 0, 257), "run_page: not ascending runs of a look"),
    "a column cut": (
        lambda made: made.arrays.update(run_zero=made.arrays["run_zero"][:-1]),
        "member run_zero has shape",
    ),
    "a column of another width": (
        lambda made: made.arrays.update(run_pages=made.arrays["run_pages"].astype("u8")),
        "member run_pages is uint64, not u4",
    ),
    "a column missing": (_without("run_zero"), "no member run_zero"),
    "no columns": (_without(*MEMBERS), "no member look_time"),
    "no word of them": (_meta("looks", None), "looks: missing, and there are members of such"),
    "another version": (_meta("looks", {"version": 2}), "looks.version: 2 is not 1"),
    "no version": (_meta("looks", {}), "looks.version: missing"),
    "no object": (_meta("looks", 1), "looks: 1 is not an object"),
}


@pytest.mark.parametrize("name", NO_LOOKS)
def test_looks_that_nobody_can_have_made_are_refused(name: str) -> None:
    made = made_looked()
    change, why = NO_LOOKS[name]
    change(made)
    with pytest.raises(RecordingError, match=why):
        read(made)


def test_a_cut_file_is_refused() -> None:
    data = made_recording().packed()
    for end in (0, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(RecordingError, match=r"a\.npz: not a recording, or truncated"):
            read_recording(io.BytesIO(data[:end]), "a.npz")
