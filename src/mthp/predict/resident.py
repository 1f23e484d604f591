# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the resident memory of a target is: what the kernel counted of it when it was captured, and
what of that a world has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from mthp.image.snapshot import ProcessTables, Snapshot
from mthp.mm.mm_types import Mm, Vma, vma_is_anonymous
from mthp.predict.measure import Measured, partly_mapped
from mthp.words.resident import MappingKind, Resident, total

_UNKNOWN = Resident(
    rss=None, pss=None, shmem=None, file=None, hugetlb=None, device=None, page_tables=None,
    unmodelled=None,
)  # fmt: skip
"""What nothing is known of where a scenario states the memory that it is about, and no other."""


def modelled(vmas: Sequence[Vma]) -> list[Vma]:
    """The mappings whose anonymous pages the world has: anonymous ones, and private ones of files that
    were written over.

    khugepaged collapses nothing in the latter: what it may do there is to the page cache of the file
    (collapse_scan_file()), and a table with an anonymous page is not even retracted after that.
    Kernel: mm/khugepaged.c, collapse_single_pmd(), file_backed_vma_is_retractable().
    """
    return [vma for vma in vmas if vma_is_anonymous(vma) or vma.anon_vma is not None]


def resident_memory(
    mms: Sequence[Mm], vmas: Sequence[Vma], measured: Measured, snapshot: Snapshot | None
) -> tuple[Resident, dict[Mm, Resident]]:
    """In all, and of each process: the kernel's numbers, with the anonymous memory that the world has
    as measured. vmas: those that were measured.
    """
    mapped = sum(measured.bytes.values(), np.zeros(len(vmas), np.int64)).tolist()
    sums = {mm: Counter[str]() for mm in mms}
    large: dict[Mm, set[int]] = {mm: set() for mm in mms}
    for vma, size, swapped in zip(vmas, mapped, measured.swapped.tolist(), strict=True):
        mine = sums[vma.vm_mm]
        mine["anonymous" if vma_is_anonymous(vma) else "anonymous_in_files"] += size
        mine["swap"] += swapped
    for k, folio in zip(*(each.tolist() for each in measured.large), strict=True):
        large[vmas[k].vm_mm].add(folio)
    sees_folios = snapshot is None or snapshot.privilege.kpageflags
    parts: dict[Mm, Resident] = {}
    captured: Sequence[ProcessTables] = snapshot.processes if snapshot is not None else ()
    for mm, process in zip_longest(mms, captured):
        own = sums[mm]
        resident = _UNKNOWN._replace(swap=own["swap"])
        if process is not None:
            resident = process.resident
            own["anonymous_in_files"] += sum(
                each.bytes for each in resident.mappings if each.kind is MappingKind.ANONYMOUS
            )
        parts[mm] = resident._replace(
            anonymous=own["anonymous"],
            anonymous_in_files=own["anonymous_in_files"],
            held_unmapped=partly_mapped(mm.kernel, large[mm]).held if sees_folios else None,
        )
    whole = total(parts.values())
    if sees_folios:
        whole = whole._replace(held_unmapped=measured.partly_mapped.held)
    return whole, parts
