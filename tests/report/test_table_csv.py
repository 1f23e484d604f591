# SPDX-License-Identifier: GPL-2.0-or-later
"""CSV says what JSON says, in the columns that docs/csv.md lists."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from mthp.cli import main
from mthp.report.table_csv import mapping_rows, process_rows, write_csv
from tests.cli.test_bad_input import REDIS, ROOT, refused
from tests.report.samples import OUTCOME, VMAS

ARGV = ["collapse", str(REDIS), "--profile", "7.3", "--enabled", "64kB=always", "--no-changes"]


def printed(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


def documented(of: str) -> set[str]:
    """The columns that the page says one kind of row has; its N stands for every order."""
    found: set[str] = set()
    for line in (ROOT / "docs/csv.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and (of in cells[2] or cells[2] == "all"):
            found.update(re.findall("`([^`]+)`", cells[0]))
    without = {"zero_page"} if of == "processes" else set()
    return found - without


def test_rows_of_mappings_are_those_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capfd, *ARGV, "--json"))
    table = rows(printed(capfd, *ARGV, "--csv"))
    assert len(table) == len(document["vmas"])
    assert {re.sub(r"order_\d+", "order_N", name) for name in table[0]} == documented("mappings")
    for row, vma in zip(table, document["vmas"], strict=True):
        assert (int(row["start"], 16), int(row["end"], 16)) == (vma["start"], vma["end"])
        for when in ("before", "after"):
            orders = {str(n): int(row[f"{when}_order_{n}"]) for n in range(10)}
            assert {n: size for n, size in orders.items() if size} == vma[when]
            assert int(row[when]) == sum(orders.values())
        assert int(row["memory_added"]) == vma["memory_added"] and row["gate"] == vma["gate"]
    pages = sum(refusal["pages"] for refusal in document["refusals"])
    assert sum(int(row["refused"]) for row in table) == pages * document["page_size"]
    statuses = {refusal["status"] for refusal in document["refusals"]}
    assert {row["reason"] for row in table if row["reason"]} <= statuses
    assert all((row["reason"] == "") == (row["refused"] == "0") for row in table)


def test_rows_of_processes_and_calls(capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capfd, *ARGV, "--json"))
    (row,) = rows(printed(capfd, *ARGV, "--csv-processes"))
    assert {re.sub(r"order_\d+", "order_N", name) for name in row} == documented("processes")
    (process,) = document["by_process"]
    assert int(row["pid"]) == process["pid"] and row["process"] == process["name"]
    assert int(row["after_order_4"]) == process["after"]["4"]
    argv = ["collapse", str(REDIS), "--madvise-collapse"]
    calls = json.loads(printed(capfd, *argv, "--json"))["ranges"]
    table = rows(printed(capfd, *argv, "--csv"))
    assert set(table[0]) == documented("calls") and len(table) == len(calls)
    for row, call in zip(table, calls, strict=True):
        assert (int(row["returns"]), row["errno"]) == (call["returns"], call["errno"] or "")
        for name in ("windows", "already_huge", "collapsed", "not_tried", "memory_added"):
            assert int(row[name]) == call[name]


def test_a_strange_name_stays_in_its_cell() -> None:
    name = 'a,"b"\n\x1b[2Jc\u202e'
    file = io.StringIO()
    write_csv(
        mapping_rows(replace(OUTCOME, vmas=(VMAS[0]._replace(name=name),), refusals=())), file
    )
    assert [row["mapping"] for row in rows(file.getvalue())] == ['a,"b"??[2Jc?']
    assert all(len(row) == len(next(iter(process_rows(OUTCOME)))) for row in process_rows(OUTCOME))


def test_one_output_at_a_time(capfd: pytest.CaptureFixture[str]) -> None:
    assert "exclude one another" in refused(capfd, *ARGV, "--csv", "--json")
    assert "--csv" in refused(capfd, *ARGV, "--madvise-collapse", "--csv-processes")
    conformance = ["collapse", "--conformance", str(ROOT / "tests/data/linux-7.3.4.jsonl.xz")]
    assert "--csv has no place" in refused(capfd, *conformance, "--csv")
