# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests chosen for one mutant, in the order given, until one fails or hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

HANGS = 97
"""The exit code of a process of which a test ran far longer than it does without the mutation."""


@dataclass(frozen=True)
class Chosen:
    """One test. seconds: how long it takes on the sound project."""

    test: str
    seconds: float

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


def pytest_arguments() -> list[str]:
    """The same examples every time, and no time spent on making a failure small."""
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    return ["--no-header", "--tb=no", "-p", "no:cacheprovider"]


class _Selection:
    """Runs the chosen tests alone, those of a file together, and ends the process where one hangs."""

    def __init__(self, chosen: list[Chosen], told: Path) -> None:
        self.seconds = {each.test: each.seconds for each in chosen}
        self.place = {each.test: n for n, each in enumerate(chosen)}
        self.told = told

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [each for each in items if each.nodeid in self.place]
        items.sort(key=lambda each: self.place[each.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.told.write_text(item.nodeid, encoding="utf-8")
        signal.setitimer(signal.ITIMER_REAL, 15 + 10 * self.seconds[item.nodeid])
        result = yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        return result


def run(chosen: list[Chosen], told: Path) -> int:
    """0 if all pass, HANGS, or what pytest says. told: gets the name of the test that runs."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(HANGS))
    own = chosen[0].file.rpartition("/")[0]
    rooms = [
        [each for each in chosen if each.file.startswith(f"{own}/")],
        [each for each in chosen if not each.file.startswith(f"{own}/")],
    ]
    for tests in filter(None, rooms):
        files = list(dict.fromkeys(each.file for each in tests))
        status = pytest.main(["-x", *pytest_arguments(), *files], plugins=[_Selection(tests, told)])
        if status:
            return int(status)
    return 0
