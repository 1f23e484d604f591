# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of laws: every number once, and every function says the number it stands under."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

import pytest

from mthp.laws.table import LAWS, Check, Law


def numbers(function: Callable[..., object]) -> set[int]:
    """The laws that a function's own Broken records name."""
    calls = ast.walk(ast.parse(inspect.getsource(function)))
    return {
        node.args[0].value
        for node in calls
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Broken"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, int)
    }


def checks() -> list[tuple[Law, Check]]:
    return [(law, check) for law in LAWS.values() for check in law.checks.values()]


@pytest.mark.parametrize(("law", "check"), checks(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_function_stands_under_its_own_number(law: Law, check: Check) -> None:
    assert check.__name__.startswith(f"law_{law.number}_")
    assert numbers(check) <= {law.number}


def test_every_law_has_a_sentence_and_a_function() -> None:
    assert list(LAWS) == list(range(1, 18))
    assert all(law.sentence and law.checks for law in LAWS.values())


def test_a_function_stands_in_the_table_once() -> None:
    every = [check for _, check in checks()]
    assert len(set(every)) == len(every)
