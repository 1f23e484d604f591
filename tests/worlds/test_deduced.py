# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from a capture about khugepaged's list and about prctl."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mthp.image.snapshot import Pte, Snapshot
from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    MMF_VM_HUGEPAGE,
)
from mthp.words.profiles import DEFAULT
from mthp.words.settings import Enabled, Settings
from mthp.worlds.build import build_world
from mthp.worlds.deduced import enabled_later, is_registered, is_taken_on, mm_flags
from mthp.worlds.unseen import LIKELY, Assumed
from tests.worlds.captured import heap_of

MADVISE = Settings(enabled=Enabled.MADVISE)
SMALL_ALONE = Settings(enabled=Enabled.NEVER, sizes={4: Enabled.ALWAYS, 9: Enabled.NEVER})


def advised(image: Snapshot, *codes: str, eligible: bool | None = None) -> Snapshot:
    process = image.processes[0]
    heap = process.vmas[0]
    vma = heap._replace(flags=heap.flags - {"hg", "nh"} | {*codes}, thp_eligible=eligible)
    return dataclasses.replace(image, processes=(dataclasses.replace(process, vmas=(vma,)),))


def registered(image: Snapshot, assumed: Assumed = LIKELY) -> bool | None:
    return is_registered(image, image.processes[0], assumed)


def test_a_huge_page_tells_that_a_process_is_registered_and_advice_does_not() -> None:
    assert registered(advised(heap_of(1))) is None
    assert registered(advised(heap_of(1, settings=MADVISE), "hg")) is None, "enabled later, perhaps"
    huge = advised(heap_of(1))
    huge.processes[0].pte[0] |= np.uint16(Pte.HUGE)
    assert registered(huge) is True
    by_ptes = advised(heap_of(1))
    assert by_ptes.processes[0].folio_order is not None
    by_ptes.processes[0].folio_order[0] = 9
    assert registered(by_ptes) is True
    assert registered(by_ptes, Assumed(registered=False)) is False, "who asks knows better"


def later(image: Snapshot, began: int | None = 500, pid: int = 4) -> Snapshot:
    """A process that started at 300, and khugepaged's thread."""
    meta = {**image.meta, "khugepaged": {"started": began}}
    process = image.processes[0]
    made = dataclasses.replace(process, pid=pid, meta={**process.meta, "started": 300})
    return dataclasses.replace(image, meta=meta, processes=(made,))


def taken_on(image: Snapshot, assumed: Assumed = LIKELY) -> bool:
    return is_taken_on(image, image.processes[0], assumed)


def test_a_process_older_than_khugepageds_thread_is_taken_not_to_be_on_its_list() -> None:
    """What enabled sizes registers nobody."""
    image = later(advised(heap_of(1, settings=MADVISE), "hg"))
    assert enabled_later(image, image.processes[0])
    assert registered(image) is None
    assert not taken_on(image)
    assert taken_on(image, Assumed(registered=True))
    world = build_world(image, DEFAULT)
    assert world.khugepaged.mm_slots == []
    assert any("(--registered yes)" in each for each in world.assumptions)
    both = build_world(image, DEFAULT, assumed=Assumed(registered=True))
    assert len(both.khugepaged.mm_slots) == 1
    assert not any("--registered" in each for each in both.assumptions)


@pytest.mark.parametrize("began", [None, 0, 299, 300])
def test_a_younger_process_is_taken_to_be_there(began: int | None) -> None:
    assert taken_on(later(advised(heap_of(1)), began))


def test_who_is_older_and_is_taken_to_be_there_all_the_same() -> None:
    image = later(advised(heap_of(1)))
    assert taken_on(later(image, pid=1)), "the first process starts before the kernel is ready"
    unknown = dataclasses.replace(image.processes[0], meta={"started": None})
    assert taken_on(dataclasses.replace(image, processes=(unknown,)))
    old_file = {key: each for key, each in image.meta.items() if key != "khugepaged"}
    assert taken_on(dataclasses.replace(image, meta=old_file))
    for order, on in ((1, True), (9, True), (0, False)):
        large = later(advised(heap_of(1)))
        process = large.processes[0]
        assert process.folio_order is not None
        process.folio_order[0] = order
        assert taken_on(large) == on, "it went on when sizes were enabled"
        process.pte[0] |= np.uint16(Pte.FILE)
        assert not taken_on(large), "large folios of a file say nothing"


@pytest.mark.parametrize(("said", "on_list"), [(None, 1), (True, 1), (False, 0)])
def test_a_world_has_those_on_the_list_that_are_taken_to_be(
    said: bool | None, on_list: int
) -> None:
    world = build_world(heap_of(1), DEFAULT, assumed=Assumed(registered=said))
    assert len(world.khugepaged.mm_slots) == on_list
    assert world.kernel.mms[0].mm_flags_test(MMF_VM_HUGEPAGE) == bool(on_list)


def prctl(image: Snapshot) -> int | None:
    return mm_flags(image, image.processes[0])


def test_except_advised_shows_where_others_are_eligible() -> None:
    always = heap_of(2)
    assert prctl(advised(always, eligible=False)) == MMF_DISABLE_THP_EXCEPT_ADVISED
    assert prctl(advised(always, eligible=True)) == 0
    assert prctl(advised(always)) is None, "an old file"
    assert prctl(advised(always, "hg", eligible=True)) is None, "advised mappings tell nothing"
    assert prctl(advised(heap_of(2, settings=MADVISE), eligible=False)) is None
    assert prctl(advised(heap_of(2, settings=SMALL_ALONE), eligible=False)) == (
        MMF_DISABLE_THP_EXCEPT_ADVISED
    )
    assert prctl(advised(heap_of(2, kernel="6.12.9"), eligible=False)) == 0, "no such mode yet"
    assert (
        prctl(advised(heap_of(2, thp_disable=True), eligible=False)) == MMF_DISABLE_THP_COMPLETELY
    )


def test_a_mapping_too_short_for_any_size_tells_nothing_of_prctl() -> None:
    image = advised(heap_of(1), eligible=False)
    process = image.processes[0]
    short = process.vmas[0]._replace(end=process.vmas[0].end - 4096)
    assert (
        prctl(dataclasses.replace(image, processes=(dataclasses.replace(process, vmas=(short,)),)))
        is None
    )
