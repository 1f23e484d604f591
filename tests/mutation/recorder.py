# SPDX-License-Identifier: GPL-2.0-or-later
"""Which test executes which lines, asked of one test file once.

Runs in a process of its own, in a copy of the project.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.plugin import pytest_arguments


class _Recorder:
    """Tells coverage.py which test is running, and the clock how long it took."""

    def __init__(self, cov: coverage.Coverage) -> None:
        self.cov = cov
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.cov.switch_context(item.nodeid)
        started = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = round(time.monotonic() - started, 3)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)


def record(test_file: str, rooms: list[str], target: Path) -> None:
    """Write {test: {seconds, lines: {path: [...]}}} of the tests that pass."""
    here = Path.cwd()
    cov = coverage.Coverage(
        data_file=None,
        include=[str(here / room / "*") for room in rooms],
        concurrency="greenlet",
        config_file=False,
        messages=False,
    )
    cov.start()
    recorder = _Recorder(cov)
    pytest.main([*pytest_arguments(), test_file], plugins=[recorder])
    cov.stop()
    data = cov.get_data()
    tests: dict[str, Any] = {
        test: {"seconds": seconds, "lines": {}}
        for test, seconds in recorder.seconds.items()
        if test not in recorder.failed
    }
    for name in data.measured_files():
        path = str(Path(name).relative_to(here))
        for line, contexts in data.contexts_by_lineno(name).items():
            for test in contexts:
                if test in tests:
                    tests[test]["lines"].setdefault(path, []).append(line)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(tests), encoding="utf-8")
