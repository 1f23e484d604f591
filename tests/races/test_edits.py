# SPDX-License-Identifier: GPL-2.0-or-later
"""Edits of the syntax tree: what they match, what they make of it, and that layout is no matter."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from mthp.races.edits import Edit, edited, source_of
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.questions import QUESTIONS, Question

SOURCE = """
def walk(table):
    # a comment
    with table.lock(), table.rcu():
        first = find(table, 1)
        second = find(table, 2)
    if first and second:
        flush(
            first, how=ALL | SOME
        )
    return first != second

def other(table):
    flush(table)
"""


def plain(text: str) -> str:
    return ast.unparse(ast.parse(dedent(text)))


def changed(old: str, new: str = "") -> str:
    """The function, edited."""
    return edited([Edit("m", "walk", old, new)], lambda _: SOURCE)["m"]


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        ("flush(...)", "", "flush(\n            first, how=ALL | SOME\n        )", "pass"),
        ("table.lock()", "", "table.lock(), table.rcu()", "table.rcu()"),
        ("table.lock()", "table.trylock()", "table.lock()", "table.trylock()"),
        ("first and second", "third or _", "first and second", "third or (first and second)"),
        ("ALL | SOME", "ALL", "ALL | SOME", "ALL"),
        ("first != second", "True", "first != second", "True"),
        (
            "return ...",
            "_\nreturn 1",
            "return first != second",
            "return first != second\n    return 1",
        ),
        ("first = ...\nsecond = ...", "_2", "first = find(table, 1)", ""),
        (
            "if ...: ...",
            "if third:\n _",
            "if first and second:\n        flush(\n            first, how=ALL | SOME\n        )",
            "if third:\n        if first and second:\n            flush(first, how=ALL | SOME)",
        ),
    ],
)
def test_what_an_edit_makes(old: str, new: str, before: str, after: str) -> None:
    assert SOURCE.count(before) == 1
    assert changed(old, new) == plain(SOURCE.replace(before, after))


def test_statements_change_places() -> None:
    wanted = SOURCE.replace("first = find(table, 1)", "third").replace(
        "second = find(table, 2)", ""
    )
    wanted = wanted.replace("third", "second = find(table, 2)\n        first = find(table, 1)")
    assert changed("first = ...\nsecond = ...", "_2\n_1") == plain(wanted)


def test_a_with_without_locks_is_none() -> None:
    both = [Edit("m", "walk", "table.lock()"), Edit("m", "walk", "table.rcu()")]
    assert "with" not in edited(both, lambda _: SOURCE)["m"]


@pytest.mark.parametrize("old", ["nothing(...)", "find(...)", "first", "flush()"])
def test_a_pattern_must_be_met_once(old: str) -> None:
    with pytest.raises(ValueError, match="times"):
        changed(old)


KNOWN: list[Mutant | Question] = [*MUTANTS.values(), *HALVES.values(), *QUESTIONS.values()]
EVERY = [each for each in KNOWN if each.edits]


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.id)
def test_no_reformatting_breaks_an_edit(each: Mutant | Question) -> None:
    """The engine's modules written anew, without comments and in another layout."""

    def reformatted(module: str) -> str:
        return ast.unparse(ast.parse(source_of(module)))

    texts = edited(each.edits)
    assert edited(each.edits, reformatted) == texts
    assert all(ast.unparse(ast.parse(source_of(module))) != text for module, text in texts.items())
