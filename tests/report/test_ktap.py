# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as KTAP, read by a strict reader of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group, ktap_lines
from tests.report.strict_ktap import ReadTest, read_ktap

NESTED = """\
KTAP version 1
1..3
  KTAP version 1
  1..3
  ok 1 one
  # what was seen
  # and where
  not ok 2 two
  ok 3 three # SKIP not built
# all of it
not ok 1 first
  KTAP version 1
  1..1
    KTAP version 1
    1..1
    ok 1 deep # XFAIL known
  ok 1 deeper
ok 2 second
not ok 3 third # ERROR it ended
"""


def text_of(*tests: KtapTest) -> str:
    return "".join(f"{line}\n" for line in ktap_lines(tests))


def nested() -> list[KtapTest]:
    ok, skip = KtapVerdict.OK, KtapVerdict.SKIP
    seen = ("what was seen", "and where")
    two = KtapTest("two", KtapVerdict.NOT_OK, notes=seen)
    first = [KtapTest("one", ok), two, KtapTest("three", skip, "not built")]
    deep = ktap_group("deeper", [KtapTest("deep", KtapVerdict.XFAIL, "known")])
    third = KtapTest("third", KtapVerdict.ERROR, "it ended")
    return [ktap_group("first", first, ["all of it"]), ktap_group("second", [deep]), third]


def test_the_lines() -> None:
    assert text_of(*nested()) == NESTED


def test_the_reader_is_strict() -> None:
    first, second, third = read_ktap(NESTED)
    assert [part.name for part in first.parts] == ["one", "two", "three"]
    assert first.parts[1].notes == ["what was seen", "and where"] and first.notes == ["all of it"]
    assert (second.parts[0].parts[0].directive, third.directive) == ("XFAIL", "ERROR")
    for old, new in (
        ("version 1\n1..3", "version 2\n1..3"),
        ("1..3\n  KTAP", "1..4\n  KTAP"),
        ("1..3\n  KTAP", "1..2\n  KTAP"),
        ("ok 2 second", "ok 3 second"),
        ("not ok 1 first", "ok 1 first"),
        ("  not ok 2 two", " not ok 2 two"),
        ("not ok 3 third", "ok 3 third"),
        ("# all of it", "all of it"),
        ("  ok 1 one\n", ""),
    ):
        assert old in NESTED
        with pytest.raises((AssertionError, IndexError)):
            read_ktap(NESTED.replace(old, new, 1))


def test_a_group_of_skipped_tests_is_skipped() -> None:
    skipped = KtapTest("a", KtapVerdict.SKIP)
    assert ktap_group("g", [skipped, skipped]).verdict is KtapVerdict.SKIP
    assert ktap_group("g", [skipped, KtapTest("b", KtapVerdict.OK)]).verdict is KtapVerdict.OK


TEXTS = st.text(max_size=20)
LEAVES = st.builds(
    KtapTest, TEXTS, st.sampled_from(KtapVerdict), TEXTS, st.lists(TEXTS, max_size=2)
)
TREES = st.recursive(
    LEAVES, lambda parts: st.builds(ktap_group, TEXTS, st.lists(parts, min_size=1))
)


def same(test: KtapTest, read: ReadTest) -> bool:
    begin, directive = test.verdict.value
    return (
        (read.passed, len(read.notes)) == (begin == "ok", len(test.notes))
        and read.directive == directive
        and len(read.parts) == len(test.parts)
        and all(map(same, test.parts, read.parts))
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(TREES, max_size=3))
def test_whatever_it_is_called_it_is_ktap(tests: list[KtapTest]) -> None:
    read = read_ktap(text_of(*tests))
    assert len(read) == len(tests) and all(map(same, tests, read))
