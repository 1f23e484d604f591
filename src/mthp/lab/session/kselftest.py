# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel selftest prints (TAP, Documentation/dev-tools/ktap.rst), as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CaseResult", "CaseVerdict", "Context", "Output", "parse_output"]


class Context(StrEnum):
    """How a case of the khugepaged selftest has memory collapsed."""

    KHUGEPAGED = "khugepaged"
    MADVISE = "madvise"
    MTHP = "mthp_khugepaged"


class CaseVerdict(StrEnum):
    """What became of a case."""

    OK = "ok"
    NOT_OK = "not ok"
    SKIP = "skip"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class CaseResult:
    """One case. context, memory: as its heading names them, empty where it has none.

    complaints: the lines between its heading and its result that say something went wrong, a
    child's too; the verdict does not always follow them.
    """

    number: int
    name: str
    verdict: CaseVerdict
    context: str = ""
    memory: str = ""
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """One run. planned: how many cases it announced. bail_out: why it ended before the last."""

    planned: int
    cases: tuple[CaseResult, ...]
    bail_out: str = ""

    @property
    def passed(self) -> bool:
        """Every planned case ran, and each is ok or skipped."""
        good = (CaseVerdict.OK, CaseVerdict.SKIP)
        ran = 0 < self.planned <= len(self.cases)
        return ran and all(case.verdict in good for case in self.cases)

    @property
    def complaints(self) -> tuple[str, ...]:
        """All lines that say something went wrong, each with its case."""
        found = [f"{case.name}: {line}" for case in self.cases for line in case.complaints]
        return (*found, *([f"ended early: {self.bail_out}"] if self.bail_out else []))


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLAN = re.compile(r"1\.\.(\d+)(?:\s+#\s*SKIP\b\s*(.*))?")
_HEADING = re.compile(r"# Run test: (\S+) \((\w+):(\w+)\)")
_RESULT = re.compile(r"(not )?ok (\d+)\b(?: -)?(.*)")
_SKIPPED = re.compile(r"#\s*SKIP\b")
_TROUBLE = re.compile(r"Bail out! ?(.*)|.*\b(?:Fail\b.*|Timeout)")


def parse_output(text: str) -> Output:
    """The results in what a run printed; one without any says in bail_out what it printed last.

    A case that was begun and has no result counts as not ok.
    """
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    planned, skipped = _plan(lines)
    cases: list[CaseResult] = []
    heading, trouble = ("", "", ""), list[str]()
    for line in lines:
        if found := _HEADING.match(line):
            heading, trouble = (found[1], found[2], found[3]), []
        elif found := _RESULT.fullmatch(line):
            cases.append(_case(found, heading, trouble))
            heading, trouble = ("", "", ""), []
        elif _TROUBLE.fullmatch(line):
            trouble.append(line.lstrip("# "))
    if heading[0]:
        name, context, memory = heading
        number = len(cases) + 1
        cases.append(CaseResult(number, name, CaseVerdict.NOT_OK, context, memory, tuple(trouble)))
    early = not cases or len(cases) < planned or bool(heading[0])
    return Output(planned, tuple(cases), (skipped or _last_line(lines)) if early else "")


def _plan(lines: Sequence[str]) -> tuple[int, str]:
    """How many cases, and why none of them is run."""
    for line in lines:
        if found := _PLAN.fullmatch(line):
            return int(found[1]), found[2] or ""
    return 0, ""


def _case(found: re.Match[str], heading: tuple[str, str, str], trouble: list[str]) -> CaseResult:
    said = found[3]
    verdict = CaseVerdict.NOT_OK if found[1] else CaseVerdict.OK
    if _SKIPPED.search(said):
        verdict = CaseVerdict.SKIP
    name, context, memory = heading
    name = name or _SKIPPED.sub("", said).strip()
    return CaseResult(int(found[2]), name, verdict, context, memory, tuple(trouble))


def _last_line(lines: Sequence[str]) -> str:
    bails = [line.partition("! ")[2] for line in lines if line.startswith("Bail out!")]
    spoken = [line for line in lines if line]
    return (bails or spoken or ["it printed nothing"])[-1]
