# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations on the engine: what they answer, and what they leave."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from mthp.life.layout import layout
from mthp.life.program import parse_operation
from mthp.life.run import Life, switched
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry

ORDERS = Geometry().anon_orders


def lived(orders: Iterable[int], *lines: str) -> tuple[Life, list[int]]:
    """A life after operations, and their answers."""
    sizes = switched(ORDERS, sum(1 << order for order in orders))
    life = Life(Settings(enabled=Enabled.MADVISE, sizes=sizes))
    return life, [life.perform(parse_operation(line)) for line in lines]


def orders_of(life: Life, process: str, pages: range) -> list[int]:
    (tokens,) = layout(life.mm(process), pages)
    return [token.order if token.mapcount else -1 for token in tokens]


def test_a_fault_takes_the_largest_size_that_is_free_around_it() -> None:
    life, _ = lived([2, 4], "s mmap 0 64", "s adv 0 64 14", "s wr 20 1", "s wr 33 1")
    assert orders_of(life, "s", range(64)) == [-1] * 16 + [4] * 16 + [4] * 16 + [-1] * 16
    life, _ = lived([4], "s mmap 0 64", "s adv 0 64 14", "s rd 20 1", "s wr 21 1", "s wr 20 1")
    assert [i for i, order in enumerate(orders_of(life, "s", range(64))) if order == 0] == [20, 21]


def test_what_a_process_may_not_do_fails_and_ends_nothing() -> None:
    life, answers = lived(
        [4],
        "s mmap 0 16", "s mprotect 0 8 1", "s wr 0 1", "s rd 0 1", "s wr 100 1", "s adv 0 32 4",
        "s mremap 50 4 100", "s mprotect 0 32 3", "s forkkill 0", "s adv 0 16 99",
    )  # fmt: skip
    assert answers == [
        0, 0, -errno.EFAULT, 0, -errno.EFAULT, -errno.ENOMEM, -errno.EFAULT, -errno.ENOMEM,
        -errno.ESRCH, -errno.EINVAL,
    ]  # fmt: skip
    assert life.kernel.machine.current.held == []


def test_a_store_after_fork_copies_one_page_whatever_the_folio() -> None:
    life, _ = lived(
        [4, 9], "s mmap 0 700", "s adv 0 700 14", "s wr 0 512", "s wr 600 1", "s forkto t",
        "t wr 5 1", "s wr 6 1", "s wr 600 1",
    )  # fmt: skip
    assert orders_of(life, "t", range(4, 8)) == [9, 0, 9, 9]
    assert orders_of(life, "s", range(4, 8)) == [9, 9, 0, 9]
    assert orders_of(life, "s", range(599, 602)) == [4, 0, 4]
    life.perform(parse_operation("t exit"))
    assert "t" not in life.mms


def test_the_huge_zero_page_becomes_a_huge_page_by_a_store() -> None:
    life, _ = lived([9], "s mmap 0 512", "s adv 0 512 14", "s rd 7 1")
    assert orders_of(life, "s", range(512)) == [-1] * 512
    assert life.kernel.vmstat.mthp[9, "anon_fault_alloc"] == 0
    life.perform(parse_operation("s wr 9 1"))
    assert orders_of(life, "s", range(512)) == [9] * 512
    assert life.kernel.vmstat.mthp[9, "anon_fault_alloc"] == 1


def test_a_fault_registers_with_khugepaged_only_where_a_pmd_could_be() -> None:
    """Kernel: do_huge_pmd_anonymous_page() calls khugepaged_enter_vma(), do_anonymous_page() does not."""
    small, _ = lived([4], "s mmap 0 512", "s adv 0 512 14", "s wr 0 16")
    assert small.khugepaged.mm_slots == []
    huge, _ = lived([4, 9], "s mmap 0 512", "s adv 0 512 14", "s wr 0 16")
    assert huge.khugepaged.mm_slots == [huge.mm("s")]
    advised, _ = lived([4], "s mmap 0 512", "s wr 0 16", "s adv 0 512 14")
    assert advised.khugepaged.mm_slots == [advised.mm("s")]
