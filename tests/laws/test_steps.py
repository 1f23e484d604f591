# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws around a step: each is broken by a task that does what it forbids, and by nothing that
looks like it and is allowed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from mthp.laws.broken import Broken, Kind
from mthp.machine.cpu import TlbEntry
from mthp.machine.hold import Mode
from mthp.machine.step import Access
from mthp.mm.mm_types import Mm, PmdPtr, TableState
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.page_flags import PG_LOCKED
from mthp.mm.pgtable import PteMap, pmd_lock, pmd_ptr, pmdp_get_lockless, pte_free
from mthp.mm.pgtable_types import (
    DIRTY,
    PMD_NONE,
    PTE_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    huge_pmd,
    leaf_pte,
    mk_pte,
    pte_pfn,
    table_pmd,
    zero_pte,
)
from mthp.mm.reports import (
    Discarding,
    Gone,
    Halfway,
    InstructionEnds,
    LoadedFrom,
    Moving,
    Pinned,
    Scanning,
    StoredTo,
    WalkedNothing,
    Zapping,
)
from mthp.mm.rmap import anon_vma_lock_write
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE
from mthp.races.stage import START, Stage
from mthp.races.world import RaceWorld
from mthp.words.events import CollapseHugePage
from mthp.words.results import ScanResult

Act = Callable[[Stage], object]


class Scene:
    """A stage on which steps are watched, and two who act: a collapser and another task."""

    def __init__(self, rival: str = "gup", world: str = "pmd") -> None:
        self.stage = RaceWorld.parse(world, "7.3", (rival,))()
        self.kernel, self.mm = self.stage.kernel, self.stage.mm
        self.mem = self.kernel.mem
        self.pending: tuple[Access, Any, int] | None = None
        self.kernel.machine.on_step = self.step
        self.page = self.stage.pages[0]
        self.ptes = self.stage.table.ptes
        self.number = self.stage.table.number
        self.ghost = self.stage.watch.ghost
        for task, _ in self.stage.tasks:
            task.maps.append(self.number)
        for frame in (16, 32):  # what is mapped here, rmap has counted
            self.mem.mapcount.raw[frame] = self.mem.entire_mapcount.raw[frame] = 1

    def step(self, access: Access, word: Any, index: int, bits: int) -> None:
        self.settle()
        self.stage.before(access, word, index)
        self.pending = access, word, index

    def settle(self) -> None:
        """The last step has been taken."""
        if self.pending is not None:
            self.stage.after(*self.pending)
        self.pending = None

    def collapser(self) -> Scene:
        return self._now(0)

    def other(self) -> Scene:
        return self._now(1)

    def _now(self, task: int) -> Scene:
        self.settle()
        self.stage.machine.current = self.stage.tasks[task][0]
        return self

    @property
    def pmd(self) -> PmdPtr:
        found = pmd_ptr(self.mm, START)
        assert found is not None
        return found

    def set_pmd(self, value: int) -> None:
        """Under the pmd lock."""
        lock = self.pmd.page.ptl
        with lock.lock() if lock.held_mode() is None else nullcontext():
            self.pmd.page.pmds.write(self.pmd.slot, value)

    def detach(self) -> int:
        """As a collapse does, mmap_lock held for writing; the old value."""
        if self.mm.mmap_lock.held_mode() is Mode.WRITE:
            vma_start_write(self.stage.vma)
        with pmd_lock(self.pmd):
            return self.pmd.page.pmds.swap(self.pmd.slot, PMD_NONE)

    def end(self, status: ScanResult) -> None:
        """A collapse has ended."""
        self.kernel.trace(CollapseHugePage(1, START, 0, status, 1))

    def rest(self) -> None:
        """Every task has ended."""
        self.settle()
        on_step, self.kernel.machine.on_step = self.kernel.machine.on_step, None
        self.stage.at_rest()
        self.kernel.machine.on_step = on_step

    def broken(self) -> list[Broken]:
        self.settle()
        return self.stage.broken

    def laws(self) -> list[tuple[int, str]]:
        """(law, the words that tell the case from others of the law)."""
        return [(each.law, each.text) for each in self.broken()]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def free(scene: Scene) -> None:
    """The first page, as its last user does."""
    scene.mem.mapcount.raw[scene.page] = 0
    scene.mem.folio_put(scene.page)


def lock(scene: Scene, *folios: int) -> None:
    """The collapser has locked them."""
    for folio in folios:
        scene.mem.head.raw[folio] = folio
        scene.ghost.trails["khugepaged"].flags[folio] = PG_LOCKED


def only(scene: Scene, law: int, text: str) -> None:
    """One law is broken, and it is said so."""
    assert [each.law for each in scene.broken()] == [law], scene.broken()
    (broken,) = scene.broken()
    assert text in broken.text
    assert isinstance(broken.object.kind, Kind) and isinstance(broken.object.name, int | str)


# Law 1


def test_a_freed_table_is_used(scene: Scene) -> None:
    scene.pmd.page.pmds.raw[scene.pmd.slot] = PMD_NONE
    scene.ptes.raw[0] = PTE_NONE
    with pmd_lock(scene.pmd):
        pte_free(scene.stage.table)
    assert scene.broken() == []
    scene.other().ptes.read(0)
    only(scene, 1, f"uses table {scene.number}, which was freed")


@pytest.mark.parametrize("write", [False, True])
def test_a_freed_page_is_used(scene: Scene, write: bool) -> None:
    free(scene)
    content = scene.other().mem.content
    if write:
        content.write(scene.page, 5)
    else:
        content.read(scene.page)
    only(scene, 1, f"uses page {scene.page}, which was freed")


def test_freeing_a_page_is_not_using_it(scene: Scene) -> None:
    free(scene.collapser())
    scene.other().mem.content.read(0)  # the zero page has no references
    assert scene.broken() == []


def test_a_frozen_folio_may_be_used(scene: Scene) -> None:
    assert scene.collapser().mem.folio_ref_freeze(scene.page, 1)
    scene.mem.content.read(scene.page)
    scene.other().mem.test(scene.page, 1)
    scene.mem.folio_ref_unfreeze(scene.page, 1)
    assert scene.broken() == []


def test_a_page_is_freed_twice(scene: Scene) -> None:
    free(scene)
    scene.other().mem.content.free(scene.page)
    only(scene, 1, f"uses page {scene.page}, which was freed")


def test_a_freed_folio_is_looked_at(scene: Scene) -> None:
    free(scene)
    scene.other().mem.flags.test_bits(scene.page, 1)
    only(scene, 1, f"looks at folio {scene.page}, which was freed")


def test_waiting_for_the_lock_of_a_freed_folio_is_allowed(scene: Scene) -> None:
    free(scene)
    scene.other().mem.folio_wait_locked(scene.page)
    assert scene.broken() == []


def test_an_anon_vma_without_vmas_is_locked_by_a_collapser(scene: Scene) -> None:
    (anon_vma,) = scene.kernel.anon_vmas
    anon_vma.vmas.clear()
    scene.other()
    anon_vma_lock_write(anon_vma).release()
    assert scene.broken() == []
    scene.collapser()
    anon_vma_lock_write(anon_vma)
    only(scene, 1, f"locks anon_vma {anon_vma.number}, which has no VMA left")


# Laws 2 and 3: contents


@pytest.mark.parametrize("stored_first", [True, False])
@pytest.mark.parametrize(("pinned", "law", "text"), [
    (False, 2, "can still write page"),
    (True, 3, "writes pinned page"),
])  # fmt: skip
def test_a_page_is_written_after_a_collapse_copied_it(
    scene: Scene, pinned: bool, law: int, text: str, stored_first: bool
) -> None:
    """Whether the collapse has said that it succeeded is no step, and must not matter."""
    if pinned:
        scene.kernel.report(Pinned(scene.mm, START, scene.page, True, "gup"))
        scene.kernel.report(Pinned(scene.mm, START, scene.page, True, "somebody else"))
    scene.collapser().mem.content.read(scene.page)
    scene.other().mem.content.read(scene.page)
    if not stored_first:
        scene.collapser().end(ScanResult.SUCCEED)
    scene.other().mem.content.write(scene.page, 7)
    if stored_first:
        assert scene.broken() == []
        scene.collapser().end(ScanResult.SUCCEED)
    only(scene, law, f"{text} {scene.page}")


@pytest.mark.parametrize("stored_first", [True, False])
def test_a_copy_is_of_no_use_where_the_collapse_fails(scene: Scene, stored_first: bool) -> None:
    scene.collapser().mem.content.read(scene.page)
    if not stored_first:
        scene.end(ScanResult.COPY_MC)
    scene.other().mem.content.write(scene.page, 7)
    scene.kernel.report(StoredTo(scene.mm, START, 7, "gup"))
    if stored_first:
        scene.collapser().end(ScanResult.COPY_MC)
    scene.collapser().end(ScanResult.SUCCEED)
    scene.rest()
    assert 2 not in {law for law, _ in scene.laws()}
    scene.collapser().mem.content.read(scene.page)
    scene.other().mem.content.write(scene.page, 8)
    scene.kernel.report(StoredTo(scene.mm, START, 8, "gup"))
    scene.rest()  # it never says how it ended
    assert (2, f"gup can still write page {scene.page} after it was copied") in scene.laws()


def test_a_write_before_the_copy_of_another_page_or_by_the_collapser_is_allowed(
    scene: Scene,
) -> None:
    scene.other().mem.content.write(scene.page, 7)
    scene.collapser().mem.content.read(scene.page)
    scene.collapser().mem.content.write(scene.page, 8)
    scene.other().mem.content.write(scene.mem.new_frames(0, 0), 7)
    scene.collapser().end(ScanResult.SUCCEED)
    assert [law for law, _ in scene.laws()] == [1]  # a frame that no folio has


def test_a_small_and_a_huge_translation_of_one_address(scene: Scene) -> None:
    vpn = START >> 12
    huge = TlbEntry(1, vpn, 1, huge_pmd(scene.page, 0))
    tlb = scene.kernel.cpus[1].tlb
    for allowed in (
        (huge,),
        (huge, TlbEntry(1, vpn + 2, 0, 0)),
        (huge, TlbEntry(1, vpn - 1, 0, 0)),
        (huge, TlbEntry(2, vpn, 0, 0)),
        (TlbEntry(1, vpn, 0, 0), TlbEntry(1, vpn + 1, 0, 0)),
    ):
        tlb.value = allowed
        scene.kernel.report(InstructionEnds(1))
    assert scene.broken() == []
    tlb.value = (TlbEntry(1, vpn + 1, 0, 0), huge)
    scene.kernel.report(InstructionEnds(0))
    assert scene.broken() == []
    scene.kernel.report(InstructionEnds(1))
    only(scene, 2, f"CPU 1 holds a small and a huge entry of page {vpn + 1:#x}")


def test_a_load_sees_what_was_never_stored(scene: Scene) -> None:
    mm = scene.mm
    content = scene.mem.content.raw[scene.page]
    scene.kernel.report(LoadedFrom(mm, START, content, "other"))
    scene.kernel.report(StoredTo(mm, START, 200, "other"))
    scene.kernel.report(LoadedFrom(mm, START, 200, "other"))
    scene.kernel.report(LoadedFrom(mm, START, content, "other"))
    scene.kernel.report(LoadedFrom(mm, START + 0x1000, 0, "other"))
    scene.kernel.report(Zapping(mm, START, START + 0x1000))
    scene.kernel.report(LoadedFrom(mm, START, 0, "other"))
    assert scene.broken() == []
    scene.kernel.report(LoadedFrom(mm, START + 0x1000, 200, "other"))
    only(scene, 3, f"other reads 200 at {START + 0x1000:#x}, which was never stored there")


# Law 6: tables


def test_a_cpu_walks_by_a_link_from_before_the_flush(scene: Scene) -> None:
    cpu = scene.kernel.cpus[1]
    hold = scene.collapser().mm.mmap_write_lock()
    scene.detach()
    cpu.instruction.wait()  # the IPI of the flush
    scene.other()
    cpu.instruction.value = True
    scene.ptes.read(0)
    only(scene, 6, f"walks table {scene.number} by a link from before the flush")
    scene.collapser()
    hold.release()


@pytest.mark.parametrize("flushed", [False, True])
def test_a_table_is_freed_only_after_a_flush_of_every_cpu(scene: Scene, flushed: bool) -> None:
    table = scene.kernel.tables[scene.number]
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        if flushed:
            for cpu in scene.kernel.cpus[1:]:
                cpu.instruction.wait()
        pte_free(table)
    if flushed:
        assert not scene.broken()
    else:
        only(scene, 6, f"frees table {scene.number}, to which CPU 1 may have a link left")


@pytest.mark.parametrize("by_another", [False, True])
def test_only_who_has_taken_a_table_away_may_free_it(scene: Scene, by_another: bool) -> None:
    hold = scene.collapser().mm.mmap_write_lock()
    scene.detach()
    for cpu in scene.kernel.cpus[1:]:
        cpu.instruction.wait()
    for task, _ in scene.stage.tasks:
        task.maps.clear()
    if by_another:
        scene.other()
    pte_free(scene.kernel.tables[scene.number])
    texts = [each.text for each in scene.broken() if each.law != 9]
    scene.collapser()
    hold.release()
    wrong = f"gup uses table {scene.number} and has not mapped it, or no longer"
    assert texts == ([wrong] if by_another else [])


def test_a_cpu_that_has_read_the_pmd_since_may_walk(scene: Scene) -> None:
    cpu = scene.kernel.cpus[1]
    with scene.collapser().mm.mmap_write_lock():
        old = scene.detach()
        cpu.instruction.wait()
        with pmd_lock(scene.pmd):
            scene.set_pmd(old)
        scene.settle()
        scene.other()
        cpu.instruction.value = True
        pmdp_get_lockless(scene.pmd)
        scene.ptes.read(0)
        cpu.instruction.value = False
        scene.collapser()
    assert scene.broken() == []


def test_a_table_is_filled_by_a_link_from_before_it_was_detached(scene: Scene) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.stage.table.ptl.lock().release()
        with scene.other().stage.table.ptl.lock():
            scene.ptes.write(1, PTE_NONE)
            assert scene.broken() == []
            scene.ptes.write(1, mk_pte(scene.page, YOUNG))
        scene.collapser()
    only(scene, 6, f"fills table {scene.number} by a link from before it was detached")


def test_whoever_detached_a_table_may_fill_it(scene: Scene) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        with scene.stage.table.ptl.lock():
            scene.ptes.write(1, mk_pte(scene.page, YOUNG | SOFT_DIRTY))
        scene.ptes.write(1, PTE_NONE)  # nobody else can reach it
    assert scene.broken() == []


def test_a_deposited_table_is_changed(scene: Scene) -> None:
    other = scene.kernel.new_table()
    scene.pmd.page.deposited[1] = [other.number]
    scene.other()
    with PteMap(scene.kernel, other, 0) as pte:
        pte.ptes.write(0, mk_pte(scene.page, YOUNG))
    said = scene.laws()
    assert (
        6,
        f"{scene.stage.tasks[1][0].name} changes table {other.number}, which is deposited",
    ) in said
    assert {law for law, _ in said} == {6, 9}


def test_a_withdrawn_table_is_filled_under_the_pmd_lock(scene: Scene) -> None:
    other = scene.kernel.new_table()
    with scene.other().stage.kernel.mms[0].mmap_read_lock(), pmd_lock(scene.pmd):
        other.ptes.write(0, mk_pte(scene.page, YOUNG))
    assert scene.broken() == []
    with PteMap(scene.kernel, other, 0) as pte:
        pte.ptes.write(1, mk_pte(scene.page, YOUNG))
    only(scene, 9, f"changes a PTE of table {other.number} without its lock")


@pytest.mark.parametrize("state", [TableState.DEFERRED, TableState.FREED, None])
def test_a_table_that_is_no_table_any_more_is_linked(
    scene: Scene, state: TableState | None
) -> None:
    number = 99
    if state is not None:
        table = scene.kernel.new_table()
        number, table.state = table.number, state
    scene.other().pmd.page.pmds.raw[1] = PMD_NONE
    with pmd_lock(scene.pmd):
        scene.pmd.page.pmds.write(1, table_pmd(number))
    only(scene, 6, f"links table {number}, which is no table any more")


# Law 7: PMDs


def test_a_pmd_that_points_to_a_table_is_overwritten(scene: Scene) -> None:
    scene.other().set_pmd(huge_pmd(16, 0))
    assert (
        7,
        f"{scene.stage.tasks[1][0].name} overwrites a PMD that points to table {scene.number}",
    ) in (scene.laws())


def test_a_huge_pmd_is_taken_for_a_table(scene: Scene) -> None:
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.other().pmd.page.pmds.swap(scene.pmd.slot, PMD_NONE)
    assert scene.broken() == []
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.collapser().pmd.page.pmds.swap(scene.pmd.slot, PMD_NONE)
    only(scene, 7, "clears a huge PMD (folio 16) as if it were a table")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (huge_pmd(16, WRITE), huge_pmd(16, 0)),
        (huge_pmd(16, 0), leaf_pte(Leaf.MIGRATION, 16)),
        (leaf_pte(Leaf.MIGRATION, 16), huge_pmd(32, 0)),
        (PMD_NONE, huge_pmd(16, 0)),
        (huge_pmd(16, 0), PMD_NONE),
    ],
)
def test_what_may_follow_in_a_pmd(scene: Scene, old: int, new: int) -> None:
    scene.pmd.page.pmds.raw[scene.pmd.slot] = old
    scene.other().set_pmd(new)
    assert scene.broken() == []


def test_a_huge_pmd_is_overwritten(scene: Scene) -> None:
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.other().set_pmd(huge_pmd(32, 0))
    only(scene, 7, "overwrites a PMD that maps folio 16")


def test_a_split_is_not_a_collapsers_and_links_the_table_once(scene: Scene) -> None:
    split = scene.kernel.new_table()
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.other().set_pmd(table_pmd(split.number))
    assert scene.broken() == []
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.collapser().set_pmd(table_pmd(split.number))
    only(scene, 7, "overwrites a PMD that maps folio 16")


def test_a_split_to_a_table_that_is_linked_elsewhere(scene: Scene) -> None:
    scene.pmd.page.pmds.raw[1] = table_pmd(scene.number)
    scene.pmd.page.pmds.raw[scene.pmd.slot] = huge_pmd(16, 0)
    scene.other().set_pmd(table_pmd(scene.number))
    only(scene, 7, "overwrites a PMD that maps folio 16")


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (mk_pte(5, YOUNG), mk_pte(16, YOUNG), True),
        (leaf_pte(Leaf.SWAP, 5), leaf_pte(Leaf.MIGRATION, 16), True),
        (leaf_pte(Leaf.MIGRATION, 5), mk_pte(16, YOUNG), True),  # somebody else's
        (leaf_pte(Leaf.GUARD), mk_pte(16, YOUNG), True),
        (leaf_pte(Leaf.SWAP, 3), mk_pte(16, YOUNG), False),  # swapped in
        (mk_pte(5, YOUNG), leaf_pte(Leaf.MIGRATION, 5), False),
        (zero_pte(), mk_pte(16, YOUNG), False),
        (PTE_NONE, mk_pte(16, YOUNG), False),
    ],
)
def test_a_pte_is_overwritten(scene: Scene, old: Pte, new: Pte, broken: bool) -> None:
    scene.ptes.raw[0] = old
    lock(scene, 5, 16)
    with scene.collapser().stage.table.ptl.lock():
        scene.ptes.write(0, new)
    if broken:
        only(scene, 7, f"overwrites PTE 0 of table {scene.number}, which names {pte_pfn(old)}")
    else:
        assert scene.broken() == []


def test_what_a_collapser_has_put_in_flight_is_its_own(scene: Scene) -> None:
    entry = leaf_pte(Leaf.MIGRATION, scene.page, SOFT_DIRTY)
    scene.ptes.raw[0] = mk_pte(scene.page, SOFT_DIRTY)
    lock(scene, scene.page)
    with scene.collapser().stage.table.ptl.lock():
        scene.ptes.write(0, entry)
        scene.ptes.write(0, mk_pte(16, SOFT_DIRTY))
    assert scene.broken() == []


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("in_flight", [False, True])
def test_a_table_of_pages_in_flight_may_be_replaced(
    scene: Scene, locked: bool, in_flight: bool
) -> None:
    """By whoever put them there and has locked it; a table that maps something may not."""
    table = scene.collapser().stage.table
    lock(scene, scene.page)
    ptl = table.ptl.lock()
    if in_flight:
        scene.ptes.write(0, leaf_pte(Leaf.MIGRATION, scene.page, SOFT_DIRTY))
    ptl.release()
    with pmd_lock(scene.pmd):
        ptl = table.ptl.lock()
        if not locked:
            ptl.release()
        scene.set_pmd(huge_pmd(16, SOFT_DIRTY))
        if locked:
            ptl.release()
    if locked and in_flight:
        assert scene.broken() == []
    else:
        only(scene, 7, f"overwrites a PMD that points to table {scene.number}")


# Law 8: marks


def test_a_collapser_takes_a_write_protected_entry_away(scene: Scene) -> None:
    scene.ptes.raw[0] |= UFFD_WP
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
        scene.ptes.write(0, mk_pte(16, YOUNG | DIRTY | SOFT_DIRTY))
    only(scene, 8, f"loses the write protection of PTE 0 of table {scene.number}")


def test_a_collapser_loses_a_soft_dirty_mark(scene: Scene) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
        scene.ptes.write(0, mk_pte(16, YOUNG | DIRTY))
    only(scene, 8, f"loses the soft-dirty mark of PTE 0 of table {scene.number}")


@pytest.mark.parametrize("mark", [0, SOFT_DIRTY])
def test_a_huge_pmd_has_the_marks_of_its_table(scene: Scene, mark: int) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
        with pmd_lock(scene.pmd):
            scene.pmd.page.deposited[scene.pmd.slot] = [scene.number]
            scene.set_pmd(huge_pmd(16, YOUNG | DIRTY | mark))
    if mark:
        assert scene.broken() == []
    else:
        only(scene, 8, f"loses the soft-dirty mark of table {scene.number}")


def test_a_table_under_a_huge_pmd_is_nobodys_any_more(scene: Scene) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
        with pmd_lock(scene.pmd):
            scene.pmd.page.deposited[scene.pmd.slot] = [scene.number]
            scene.set_pmd(huge_pmd(16, YOUNG | DIRTY | SOFT_DIRTY))
        assert scene.broken() == []
        scene.ptes.write(0, mk_pte(16, YOUNG | DIRTY | SOFT_DIRTY))
    assert {law for law, _ in scene.laws()} == {6, 9}


# Law 9: locks


def test_a_pte_is_changed_without_its_lock(scene: Scene) -> None:
    with scene.other().stage.table.ptl.lock():
        scene.ptes.write(1, mk_pte(scene.page, YOUNG))
    assert scene.broken() == []
    scene.ptes.write(1, PTE_NONE)
    only(scene, 9, f"changes a PTE of table {scene.number} without its lock")


def test_a_page_is_put_in_flight_and_its_folio_is_not_locked(scene: Scene) -> None:
    entry = leaf_pte(Leaf.MIGRATION, scene.page, SOFT_DIRTY)
    with scene.collapser().stage.table.ptl.lock():
        scene.ptes.write(0, entry)
    only(scene, 9, f"puts folio {scene.page} in flight and has not locked it")


def test_writing_what_stands_there_already_changes_nothing(scene: Scene) -> None:
    scene.other().ptes.write(0, scene.ptes.raw[0])
    assert scene.broken() == []


def test_a_detached_table_is_another_tasks_only_under_its_lock(scene: Scene) -> None:
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.other().ptes.write(0, PTE_NONE)
        scene.collapser()
    only(scene, 9, "without its lock")


def test_who_detached_it_needs_mmap_lock_for_writing(scene: Scene) -> None:
    scene.collapser()
    with scene.mm.mmap_read_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
    only(scene, 9, "without its lock")


def test_a_cpu_makes_entries_young_and_dirty_and_nothing_else(scene: Scene) -> None:
    scene.other()
    scene.kernel.cpus[1].instruction.value = True
    scene.ptes.raw[0] &= ~(YOUNG | DIRTY)
    scene.ptes.write(0, scene.ptes.raw[0] | YOUNG | DIRTY)
    assert scene.broken() == []
    scene.ptes.write(0, scene.ptes.raw[0] & ~WRITE)
    only(scene, 9, "CPU changes more than young and dirty")


def test_the_architectures_hook_finds_no_table(scene: Scene) -> None:
    scene.kernel.report(WalkedNothing(scene.mm, START, "khugepaged"))
    only(scene, 9, "khugepaged: update_mmu_cache_range() walks a PMD that points to no table")


# Laws 10 and 13: mappings


@pytest.mark.parametrize(("law", "text"), [(10, "looked up before mmap_lock was let go"),
                                           (13, "collapses exec's temporary stack")])  # fmt: skip
def test_a_collapser_works_on_a_mapping_that_it_may_not(scene: Scene, law: int, text: str) -> None:
    vma = scene.stage.vma
    with scene.other().mm.mmap_write_lock():
        if law == 10:
            scene.mm.unlink_vma(vma)
        else:
            vma.vm_flags |= VM_STACK_INCOMPLETE
        vma_start_write(vma)
    assert scene.broken() == []
    with scene.collapser().mm.mmap_write_lock():
        vma_start_write(vma)
    only(scene, law, text)


def test_a_collapser_walks_an_mm_that_has_ended(scene: Scene) -> None:
    other: Mm = scene.kernel.new_mm(2)
    scene.kernel.report(Gone(other))
    pmdp_get_lockless(scene.collapser().pmd)
    scene.kernel.report(Gone(scene.mm))
    pmdp_get_lockless(scene.other().pmd)
    assert scene.broken() == []
    pmdp_get_lockless(scene.collapser().pmd)
    only(scene, 13, "walks an mm that has ended")


def test_a_collapser_locks_an_mm_that_is_half_built(scene: Scene) -> None:
    scene.kernel.report(Halfway(scene.mm, True))
    with scene.other().mm.mmap_write_lock():
        scene.collapser()
        assert scene.mm.mmap_read_trylock() is None  # whoever builds it has the lock
        scene.other()
    assert scene.broken() == []
    hold = scene.collapser().mm.mmap_read_trylock()
    assert hold is not None
    only(scene, 13, f"walks mm {scene.mm.number}, which is half built")


def test_an_mm_that_was_built_may_be_locked(scene: Scene) -> None:
    scene.kernel.report(Halfway(scene.mm, True))
    scene.kernel.report(Halfway(scene.mm, False))
    with scene.collapser().mm.mmap_read_lock():
        pass
    assert scene.broken() == []


def test_a_mapping_that_began_before_it_was_half_built_may_be_left(scene: Scene) -> None:
    hold = scene.collapser().mm.mmap_read_lock()
    scene.kernel.report(Halfway(scene.mm, True))
    hold.release()
    assert scene.broken() == []


def test_where_a_page_moved_from_and_to_both_contents_may_be_seen(scene: Scene) -> None:
    mm, far = scene.mm, START + 0x8000
    content = scene.mem.content.raw[scene.page]
    scene.kernel.report(StoredTo(mm, START, 200, "other"))
    scene.kernel.report(Moving(mm, START, far, 0x1000, "mremap"))
    for address, value in ((START, 0), (START, 200), (far, 200), (far, content), (far, 0)):
        scene.kernel.report(LoadedFrom(mm, address, value, "other"))
    assert scene.broken() == []
    scene.kernel.report(LoadedFrom(mm, far, 1, "other"))
    scene.kernel.report(LoadedFrom(mm, START, 1, "other"))
    assert [law for law, _ in scene.laws()] == [3, 3]


def test_what_was_given_up_may_read_as_nothing(scene: Scene) -> None:
    scene.kernel.report(Discarding(scene.mm, START, START + 0x1000, "x"))
    scene.kernel.report(LoadedFrom(scene.mm, START, 0, "other"))
    assert scene.broken() == []
    scene.kernel.report(LoadedFrom(scene.mm, START, 1, "other"))
    only(scene, 3, "other reads 1")


def test_a_range_is_looked_at_by_a_mapping_that_has_it_not(scene: Scene) -> None:
    vma = scene.stage.vma
    report = scene.collapser().kernel.report
    with scene.mm.mmap_read_lock():
        report(Scanning(vma, START, START + 0x2000, "khugepaged"))
        assert scene.broken() == []
        report(Scanning(vma, START + 0x2000, START + 0x4000, "khugepaged"))
    only(scene, 10, "looks at 0x42000-0x44000")
