# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace made by hand in the Informal Trace Format."""

from __future__ import annotations

import json

from mthp.check.records import (
    Breach,
    CpuStand,
    Entry,
    FolioStand,
    LateStore,
    PageStand,
    TableStand,
    Trace,
    Translation,
    WalkCacheLink,
    WorldState,
)
from mthp.report.itf import VARIABLES, itf_document
from tests.report.samples import golden

HOLE = Entry("none", 0, ())
PAGE = Entry("page", 7, ("write", "young"))
FOLIO = FolioStand(7, 0, 2, 1, ("anon", "locked"), (PageStand(7, 1, 100),))


def state(task: str, access: str, word: str, broken: tuple[Breach, ...] = ()) -> WorldState:
    return WorldState(
        task,
        0,
        "pmdp_collapse_flush()" if task else "",
        access,
        word,
        (("mm1.pmd4[0]", Entry("table", 1, ())),),
        (TableStand(1, "live", (PAGE, HOLE)),),
        (FOLIO,),
        (("khugepaged", ("mm1.mmap_lock(write)",)), ("gup", ())),
        (("vma40000.vm_lock", -1),),
        (
            CpuStand(0, (), (), (LateStore(7, 101),)),
            CpuStand(1, (Translation(1, 64, 0, PAGE),), (WalkCacheLink(1, 32, 1),), ()),
        ),
        broken,
    )


BROKEN = Breach(9, "locks balance", "task gup", "deadlock: gup")
TRACE = Trace(
    ("khugepaged", "gup"),
    (
        state("", "begin", ""),
        state("khugepaged", "write", "mm1.pmd4[0]"),
        state("", "end", "", (BROKEN,)),
    ),
    "A1:7.3:pmd:gup:a0",
)


def test_a_trace() -> None:
    golden("itf.json", json.dumps(itf_document(TRACE), indent=1) + "\n")


def test_every_state_has_every_variable() -> None:
    document = itf_document(TRACE)
    assert document["vars"] == list(VARIABLES)
    for number, each in enumerate(document["states"]):
        assert each.pop("#meta") == {"index": number}
        assert list(each) == document["vars"]
