# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of KTAP that takes nothing but what the kernel's Documentation/dev-tools/ktap.rst describes."""

from __future__ import annotations

import re
from dataclasses import dataclass

EITHER = ("ok", "not ok")
DIRECTIVES = {"SKIP": EITHER, "TODO": EITHER, "XFAIL": EITHER}
DIRECTIVES |= dict.fromkeys(("TIMEOUT", "ERROR"), ("not ok", "not ok"))
RESULT = re.compile(r"(ok|not ok) ([1-9]\d*)(?: ([^#\n]*?))?(?: # ?(?:([A-Z]+)\b)? ?(.*))?")


@dataclass
class ReadTest:
    name: str
    passed: bool
    directive: str
    data: str
    notes: list[str]
    parts: list[ReadTest]


def read_ktap(text: str) -> list[ReadTest]:
    """The tests of a whole output. AssertionError: it is not KTAP, or breaks a rule of it."""
    assert text.endswith("\n") and not text.endswith("\n\n")
    lines = text[:-1].split("\n")
    found, rest = _read(lines, "")
    assert not rest, f"after the end: {rest[0]!r}"
    return found


def _read(lines: list[str], indent: str) -> tuple[list[ReadTest], list[str]]:
    head, plan, *rest = lines
    assert head == f"{indent}KTAP version 1"
    planned = re.fullmatch(rf"{indent}1\.\.(0|[1-9]\d*)", plan)
    assert planned, f"no plan: {plan!r}"
    tests: list[ReadTest] = []
    while len(tests) < int(planned[1]):
        parts: list[ReadTest] = []
        if rest[0] == f"{indent}  KTAP version 1":
            parts, rest = _read(rest, f"{indent}  ")
        notes = []
        while rest[0].startswith(f"{indent}# "):
            notes.append(rest.pop(0).removeprefix(f"{indent}# "))
        test = _result(rest.pop(0), indent, len(tests) + 1)
        test.notes, test.parts = notes, parts
        if any(not part.passed for part in parts):
            assert not test.passed, f"{test.name}: a part failed"
        tests.append(test)
    return tests, rest


def _result(line: str, indent: str, number: int) -> ReadTest:
    assert line.startswith(indent) and line.isprintable() and line == line.rstrip(), repr(line)
    found = RESULT.fullmatch(line.removeprefix(indent))
    assert found, f"no result: {line!r}"
    word, counted, name, directive, data = found.groups()
    assert int(counted) == number, f"{line!r}: should be number {number}"
    if directive is not None and directive not in DIRECTIVES:
        directive, data = None, f"{directive} {data}".rstrip()
    assert word in DIRECTIVES.get(directive or "", EITHER)
    return ReadTest(name or "", word == "ok", directive or "", data or "", [], [])
