# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries as words: every predicate says yes to its own kinds of entries and to no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.mm.pgtable_types import (
    DIRTY,
    HUGE,
    KIND_MASK,
    NO_ACCESS,
    PFN_SHIFT,
    PMD_NONE,
    PRESENT,
    PTE_FLAGS_MASK,
    PTE_NONE,
    SOFT_DIRTY,
    SPECIAL,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    ZERO_PFN,
    Leaf,
    huge_pmd,
    leaf_kind,
    leaf_pte,
    mk_pte,
    pmd_bad,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_present,
    pmd_trans_huge,
    pte_dirty,
    pte_none,
    pte_none_or_zero,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_special,
    pte_swp_uffd_any,
    pte_uffd,
    pte_write,
    pte_young,
    table_pmd,
    zero_pte,
)
from tests.small_worlds import BAD_PMD

FLAGS = [WRITE, YOUNG, DIRTY, SOFT_DIRTY, UFFD_WP, SPECIAL, SWP_EXCLUSIVE, HUGE, NO_ACCESS]
Predicate = Callable[[int], bool]


def test_flags_kind_and_frame_do_not_overlap() -> None:
    parts = [PRESENT, *FLAGS, KIND_MASK, -1 << PFN_SHIFT]
    assert sum(parts) == -1 - (0b11 << 14)  # two bits are to spare
    assert all(one & two == 0 for one in parts for two in parts if one is not two)


PMDS = {
    "none": PMD_NONE,
    "table": table_pmd(7),
    "huge": huge_pmd(512, WRITE | YOUNG | DIRTY),
    "huge, no access": huge_pmd(512, WRITE | NO_ACCESS),
    "migration": leaf_pte(Leaf.MIGRATION, 512),
    "device": leaf_pte(Leaf.DEVICE, 1),
    "bad": BAD_PMD,
}


@pytest.mark.parametrize(
    ("predicate", "kinds"),
    [
        (pmd_none, {"none"}),
        (pmd_present, {"table", "huge", "huge, no access", "bad"}),
        (pmd_trans_huge, {"huge", "huge, no access"}),
        (pmd_is_migration_entry, {"migration"}),
        (pmd_is_table, {"table"}),
        (pmd_bad, {"bad"}),
    ],
)
def test_what_a_pmd_is(predicate: Predicate, kinds: set[str]) -> None:
    assert {kind for kind, pmd in PMDS.items() if predicate(pmd)} == kinds


def test_a_table_is_found_again_by_its_number() -> None:
    assert [pmd_pgtable(table_pmd(number)) for number in (1, 2, 1000)] == [1, 2, 1000]


@given(st.integers(0, 1 << 40), st.sets(st.sampled_from(FLAGS)))
def test_a_present_entry_is_its_frame_and_its_flags(pfn: int, flags: set[int]) -> None:
    pte = mk_pte(pfn, sum(flags))
    assert pte_present(pte) and not pte_none(pte)
    assert pte_pfn(pte) == pfn
    assert pte & PTE_FLAGS_MASK == sum(flags) | PRESENT
    said = {
        WRITE: pte_write, YOUNG: pte_young, DIRTY: pte_dirty, UFFD_WP: pte_uffd,
        SPECIAL: pte_special, NO_ACCESS: pte_protnone,
    }  # fmt: skip
    assert {flag for flag, test in said.items() if test(pte)} == flags & set(said)


@given(st.sampled_from(list(Leaf)[1:]), st.integers(0, 1 << 40), st.booleans())
def test_a_leaf_entry_is_its_kind_and_its_value(kind: Leaf, value: int, uffd: bool) -> None:
    pte = leaf_pte(kind, value, UFFD_WP if uffd else 0)
    assert not pte_present(pte) and not pte_none(pte) and not pte_none_or_zero(pte)
    assert leaf_kind(pte) is kind
    assert pte_pfn(pte) == value
    assert pte_swp_uffd_any(pte) == (uffd or kind is Leaf.UFFD_WP_MARKER)


def test_the_zero_page_is_special_and_counts_as_nothing() -> None:
    for pte in (zero_pte(), zero_pte(YOUNG | DIRTY)):
        assert pte_present(pte) and pte_special(pte) and not pte_write(pte)
        assert pte_pfn(pte) == ZERO_PFN
        assert pte_none_or_zero(pte)
    assert pte_young(zero_pte())
    assert leaf_kind(PTE_NONE) is Leaf.NONE and len(Leaf) == 7
    assert pte_none(PTE_NONE) and pte_none_or_zero(PTE_NONE)
    assert not pte_none_or_zero(mk_pte(1, 0))
