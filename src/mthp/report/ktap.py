# SPDX-License-Identifier: GPL-2.0-or-later
"""Test results as KTAP, version 1, which kernel CI reads (the kernel's Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from mthp.words.files import one_line


class KtapVerdict(Enum):
    """What came of a test: how its line begins, and the directive that ends it, if any.

    XFAIL: it failed as it was expected to. ERROR: it could not be run.
    """

    OK = ("ok", "")
    NOT_OK = ("not ok", "")
    SKIP = ("ok", "SKIP")
    XFAIL = ("ok", "XFAIL")
    ERROR = ("not ok", "ERROR")

    @property
    def passed(self) -> bool:
        """Whether a test of which this is a part may pass."""
        return self.value[0] == "ok"


@dataclass(frozen=True)
class KtapTest:
    """A test. reason: of the verdict, where it is neither OK nor NOT_OK. notes: lines before that of the
    result. parts: its subtests."""

    name: str
    verdict: KtapVerdict
    reason: str = ""
    notes: Sequence[str] = ()
    parts: Sequence[KtapTest] = ()


def ktap_group(name: str, parts: Sequence[KtapTest], notes: Sequence[str] = ()) -> KtapTest:
    """A test of these parts: it passes if all of them do, and is skipped if all of them are."""
    verdicts = {part.verdict for part in parts}
    if verdicts == {KtapVerdict.SKIP}:
        return KtapTest(name, KtapVerdict.SKIP, "", notes, parts)
    passed = all(verdict.passed for verdict in verdicts)
    return KtapTest(name, KtapVerdict.OK if passed else KtapVerdict.NOT_OK, "", notes, parts)


def ktap_lines(tests: Sequence[KtapTest]) -> Iterator[str]:
    """The lines of these tests, with a version line and a plan before them."""
    yield "KTAP version 1"
    yield f"1..{len(tests)}"
    for number, test in enumerate(tests, 1):
        if test.parts:
            yield from (f"  {line}" for line in ktap_lines(test.parts))
        yield from (f"# {one_line(note)}" for note in test.notes)
        yield _result(number, test)


def _result(number: int, test: KtapTest) -> str:
    begin, directive = test.verdict.value
    line = f"{begin} {number} {one_line(test.name).replace('#', '-')}".rstrip()
    return f"{line} # {directive} {one_line(test.reason)}".rstrip() if directive else line
