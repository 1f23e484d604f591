# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations by syntax alone: made as said, and caught where a rule is lost."""

from __future__ import annotations

import ast

import pytest

from mthp.check.mutate import try_mutation, worlds
from mthp.races.edits import source_of
from mthp.races.mutants.automatic import MODULES, mutations


@pytest.mark.parametrize("module", MODULES)
def test_each_mutation_changes_its_module(module: str) -> None:
    every = list(mutations(module))
    plain = ast.unparse(ast.parse(source_of(f"khugepaged.{module}")))
    assert len({mutation.text for mutation in every} | {plain}) == len(every) + 1
    for mutation in every:
        compile(mutation.text, mutation.module, "exec")


@pytest.mark.parametrize(
    ("module", "function", "what", "law"),
    [
        ("collapse", "_replace", "without __collapse_huge_page_copy()", 3),
        ("collapse", "_replace", "without restore_pmd()", 6),
        ("isolate", "lock_and_isolate", "without mem.folio_unlock()", 9),
        ("install", "install_pmd", "without pgtable_trans_huge_deposit()", 6),
        ("install", "__folio_mark_uptodate", "without kernel.mem.flags.store_bits()", 3),
        ("copy", "__collapse_huge_page_copy_succeeded", "without clear_ptes()", 6),
        ("copy", "__collapse_huge_page_copy_failed", "without pmd_populate()", 6),
    ],
)
def test_a_lost_rule_is_noticed(module: str, function: str, what: str, law: int) -> None:
    every = [m for m in mutations(module) if (m.function, m.what) == (function, what)]
    assert any(law in try_mutation(mutation).laws for mutation in every)


def test_every_rival_is_among_the_worlds() -> None:
    assert len({world.rivals for world in worlds()}) > 25
