# SPDX-License-Identifier: GPL-2.0-or-later
"""Which test runs through which blocks of the engine, asked of one test file once.

The copy of the project in which it is asked has one call more at the beginning of every block: that
is quicker than tracing lines, and sees into the tasks of the explorers.
"""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.edits import blocks
from tests.mutation.plugin import pytest_arguments

SITE = "import builtins\nbuiltins._block = lambda number: None\n"
"""For Python processes that a test starts: what they run through is not asked."""


def instrument(copy: Path, rooms: list[str]) -> list[tuple[str, int]]:
    """Put a call before every block. The n-th one reports n: (path, line) of block n."""
    found: list[tuple[str, int]] = []
    for path in sorted(path for room in rooms for path in (copy / room).rglob("*.py")):
        source = path.read_bytes()
        lines = source.splitlines(keepends=True)
        for line in blocks(source):
            text = lines[line - 1]
            indent = text[: len(text) - len(text.lstrip())].decode()
            lines[line - 1] = f"{indent}_block({len(found)})\n".encode() + text
            found.append((str(path.relative_to(copy)), line))
        path.write_bytes(b"".join(lines))
    (copy / "src" / "sitecustomize.py").write_text(SITE)
    return found


class _Recorder:
    """Keeps what each test ran through, and how long it took."""

    def __init__(self, found: list[tuple[str, int]]) -> None:
        self.found = found
        self.met: set[int] = set()
        self.tests: dict[str, dict[str, Any]] = {}
        vars(builtins)["_block"] = self.met.add

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.met.clear()
        started = time.monotonic()
        result = yield
        seconds = round(time.monotonic() - started, 3)
        met: dict[str, list[int]] = {}
        for number in self.met:
            path, line = self.found[number]
            met.setdefault(path, []).append(line)
        self.tests[item.nodeid] = {"seconds": seconds, "blocks": met}
        return result


class _Failures:
    def __init__(self) -> None:
        self.tests: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.tests.add(report.nodeid)


def record(test_file: str, found: list[tuple[str, int]], target: Path) -> int:
    """Write {test: {seconds, blocks: {path: [...]}}} of the tests that pass."""
    recorder, failures = _Recorder(found), _Failures()
    pytest.main([*pytest_arguments(), test_file], plugins=[recorder, failures])
    passed = {test: of for test, of in recorder.tests.items() if test not in failures.tests}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(passed), encoding="utf-8")
    return 0
