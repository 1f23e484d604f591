# SPDX-License-Identifier: GPL-2.0-or-later
"""What a task holds, has given up or took away: each law is broken by a task that does what it forbids,
and by nothing that looks like it and is allowed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from mthp.laws.broken import Kind
from mthp.machine.store_buffer import StoreBuffer
from mthp.mm.mm_types import TableState
from mthp.mm.mmap_lock import lock_vma_under_rcu, vma_start_write
from mthp.mm.page_flags import PAGE_HWPOISON, PG_DIRTY
from mthp.mm.pgtable import PteMap, pmd_lock
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PMD_NONE,
    PTE_NONE,
    SOFT_DIRTY,
    SPECIAL,
    YOUNG,
    huge_pmd,
    mk_pte,
)
from mthp.mm.rmap import anon_vma_lock_write
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.races.stage import START
from mthp.races.world import RaceWorld
from mthp.words.results import KernelBug, Rule
from tests.laws.test_steps import Scene, only


@pytest.fixture
def scene() -> Scene:
    return Scene()


# A table after its map was given up


def test_a_table_is_used_through_a_map_that_was_given_up(scene: Scene) -> None:
    scene.other()
    with PteMap(scene.kernel, scene.stage.table, 0) as pte:
        pte.unmap()
        for use in (lambda: pte.get(0), lambda: pte.table.ptl.lock()):
            with pytest.raises(KernelBug, match="table 1 is used after it was unmapped") as raised:
                use()
            assert raised.value.rule is Rule.USE


def test_a_table_is_used_that_the_task_has_not_mapped(scene: Scene) -> None:
    task = scene.stage.tasks[1][0]
    scene.other().ptes.read(0)
    assert scene.broken() == []
    task.maps.clear()
    scene.ptes.read(0)
    only(scene, 10, f"{task.name} uses table {scene.number} and has not mapped it")


def test_a_cpu_and_whoever_withdrew_a_table_need_no_map(scene: Scene) -> None:
    scene.other()
    scene.stage.tasks[1][0].maps.clear()
    scene.kernel.cpus[1].instruction.value = True
    scene.ptes.read(0)
    scene.kernel.cpus[1].instruction.value = False
    withdrawn = scene.kernel.new_table()
    with pmd_lock(scene.pmd):
        withdrawn.ptes.write(0, PTE_NONE)
    assert scene.broken() == [] and withdrawn.state is TableState.LIVE


# A VMA after its lock was given up


def test_a_vma_is_used_without_a_lock_that_keeps_it(scene: Scene) -> None:
    vma, anon_vma = scene.stage.vma, scene.kernel.anon_vmas[0]
    with scene.other().mm.mmap_read_lock():
        assert vma.vm_end > vma.vm_start
    locked = lock_vma_under_rcu(scene.mm, START)
    assert locked is vma and vma.vm_flags
    vma.vm_lock.leave()
    with anon_vma_lock_write(anon_vma):
        assert vma.vm_pgoff
    for name in ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "anon_vma", "file"):
        with pytest.raises(KernelBug, match="holds no lock that keeps it") as raised:
            getattr(vma, name)
        assert raised.value.rule is Rule.USE
    scene.kernel.machine.on_step = None
    assert vma.vm_flags == VM_DEFAULT


def test_a_vma_is_used_after_it_was_unmapped(scene: Scene) -> None:
    vma = scene.stage.vma
    with scene.other().mm.mmap_write_lock():
        scene.mm.unlink_vma(vma)
        assert vma.vm_end  # whoever unmaps it has it still
    with scene.mm.mmap_read_lock(), pytest.raises(KernelBug, match="unmapped and freed"):
        assert vma.vm_end


def test_only_who_entered_a_vma_leaves_it(scene: Scene) -> None:
    with pytest.raises(KernelBug, match="unentered"):
        scene.other().stage.vma.vm_lock.leave()


def test_an_error_says_which_law() -> None:
    stage = RaceWorld.parse("pmd", "7.3", ())()
    for rule in Rule:
        stage.watch.raised(stage.tasks[0][0], KernelBug(rule, rule.name))
    laws = {each.text.split()[-1]: each.law for each in stage.broken}
    assert laws == {"COUNTS": 5, "LOCKS": 9, "MAPS": 9, "USE": 10, "STATE": 9}


# Late stores, judged when they are made


LATE = "pmd+lkmm+ptes+each"


def late(scene: Scene) -> StoreBuffer:
    buffer = scene.kernel.machine.current.buffer
    assert buffer is not None and buffer.waiting
    return buffer


def test_a_late_store_is_made_without_map_and_lock() -> None:
    scene = Scene(world=LATE)
    task = scene.stage.tasks[1][0]
    task.maps.clear()
    scene.other().ptes.write(0, PTE_NONE)
    late(scene)
    assert sorted(each.law for each in scene.broken()) == [9, 10]


def test_what_others_do_before_a_late_store_is_seen_is_not_its_tasks_fault() -> None:
    """The table is detached, and its lock taken by who did that: the link that the store went by is old."""
    scene = Scene(world=LATE)
    with scene.other().mm.mmap_read_lock(), scene.stage.table.ptl.lock():
        scene.ptes.write(0, scene.ptes.raw[0] | NO_ACCESS)
        late(scene)
        place = late(scene).places[0]
        task = next(each for each, _ in scene.stage.tasks if each.name == "store-buffer-2")
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        with scene.stage.table.ptl.lock():
            scene.settle()
    scene.kernel.machine.current, task.drains = task, place[0]
    task.drains.drain()
    assert scene.broken() == [] and scene.ptes.raw[0] & NO_ACCESS
    scene.other()
    with scene.stage.table.ptl.lock():
        scene.ptes.write(0, scene.ptes.raw[0] & ~NO_ACCESS)
    only(scene, 6, "by a link from before it was detached")


@pytest.mark.parametrize("is_seen", [False, True])
@pytest.mark.parametrize("is_locked", [False, True])
def test_a_table_is_linked_and_its_ptes_may_be_seen_later(is_seen: bool, is_locked: bool) -> None:
    scene = Scene(world=LATE)
    table = scene.stage.table
    with scene.collapser().mm.mmap_write_lock():
        old = scene.detach()
        with pmd_lock(scene.pmd), table.ptl.lock() if is_locked else nullcontext():
            scene.ptes.write(0, scene.ptes.raw[0] | NO_ACCESS)
            waiting = late(scene)
            if is_seen:
                waiting.wait_until_seen()
            scene.pmd.page.pmds.write(scene.pmd.slot, old)
        if is_seen or is_locked:
            assert scene.broken() == []
        else:
            only(
                scene, 9, f"links table {table.number}, and what it stored there may be seen later"
            )


# Which PMDs may be filled, and which tables a collapser may take


def test_a_pmd_is_filled_without_its_lock(scene: Scene) -> None:
    pmds, slot = scene.other().pmd.page.pmds, scene.pmd.slot + 1
    with pmd_lock(scene.pmd):
        pmds.write(slot, huge_pmd(16, 0))
    pmds.write(slot, PMD_NONE)
    assert scene.broken() == []
    pmds.write(slot, huge_pmd(16, 0))
    only(scene, 9, f"{scene.stage.tasks[1][0].name} fills mm1.pmd16[{slot}] without its lock")


def test_a_table_is_taken_whose_vmas_are_not_all_locked(scene: Scene) -> None:
    end = scene.stage.end
    with scene.collapser().mm.mmap_write_lock():
        scene.mm.vma_set_range(scene.stage.vma, scene.stage.vma.vm_start, end - 0x1000)
        second = scene.mm.mmap(end - 0x1000, end)
        vma_start_write(scene.stage.vma)
        with pmd_lock(scene.pmd):
            scene.pmd.page.pmds.swap(scene.pmd.slot, 0)
    only(scene, 13, f"takes the table at {START:#x}, and has not locked {second}")


# Memory that failed


def test_memory_that_failed_is_copied() -> None:
    scene = Scene("poisoned")
    page = scene.page
    assert scene.mem.page_flags.raw[page] & PAGE_HWPOISON
    scene.other().mem.content.read(page)
    scene.collapser().mem.content.write(page, 5)
    assert scene.broken() == []
    scene.mem.content.read(page)
    only(scene, 17, f"khugepaged reads page {page}, whose memory failed")


# What rmap counts


@pytest.mark.parametrize("huge", [False, True])
def test_a_collapser_maps_what_rmap_does_not_count(scene: Scene, huge: bool) -> None:
    scene.mem.mapcount.raw[16] = scene.mem.entire_mapcount.raw[16] = 0
    replace(scene, YOUNG | DIRTY, huge)
    only(scene, 4, "khugepaged maps page 16 before rmap counts the mapping")


# Bits of entries


@pytest.mark.parametrize(("bits", "kind"), [(DIRTY, Kind.YOUNG_BIT), (YOUNG, Kind.DIRTY_BIT)])
@pytest.mark.parametrize("huge", [False, True])
def test_a_collapser_loses_a_bit(scene: Scene, bits: int, kind: Kind, huge: bool) -> None:
    replace(scene, bits, huge)
    (broken,) = scene.broken()
    assert (broken.law, broken.object.kind) == (16, kind)


@pytest.mark.parametrize("huge", [False, True])
def test_a_collapser_adds_a_bit(scene: Scene, huge: bool) -> None:
    replace(scene, YOUNG | DIRTY | SPECIAL, huge)
    (broken,) = scene.broken()
    assert broken.law == 16 and "bits 0x40, which no mapping has" in broken.text


def test_a_bit_that_was_there_may_come_back(scene: Scene) -> None:
    scene.ptes.raw[0] |= NO_ACCESS
    replace(scene, YOUNG | DIRTY | NO_ACCESS, huge=False)
    assert scene.broken() == []


@pytest.mark.parametrize("huge", [False, True])
def test_a_dirty_folio_makes_up_for_an_entry_that_is_not(scene: Scene, huge: bool) -> None:
    scene.mem.flags.raw[scene.mem.prep_folio(16, 0)] |= PG_DIRTY
    replace(scene, YOUNG, huge)
    assert scene.broken() == []


@pytest.mark.parametrize("huge", [False, True])
def test_what_an_attempt_took_does_not_matter_to_the_next(scene: Scene, huge: bool) -> None:
    with scene.collapser().mm.mmap_write_lock():
        old = scene.detach()
        scene.ptes.write(0, PTE_NONE)
        with pmd_lock(scene.pmd):
            scene.set_pmd(old)
    scene.settle()
    scene.ghost.attempt_is_over(scene.stage.tasks[0][0].name)
    replace(scene, 0, huge)
    assert scene.broken() == []


def replace(scene: Scene, bits: int, huge: bool) -> None:
    """A collapser takes PTE 0 away and maps frame 16 in its place, with these bits."""
    with scene.collapser().mm.mmap_write_lock():
        scene.detach()
        scene.ptes.write(0, PTE_NONE)
        if not huge:
            scene.ptes.write(0, mk_pte(16, bits | SOFT_DIRTY))
            return
        with pmd_lock(scene.pmd):
            scene.pmd.page.deposited[scene.pmd.slot] = [scene.number]
            scene.set_pmd(huge_pmd(16, bits | SOFT_DIRTY))
