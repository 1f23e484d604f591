# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of the folio that each anonymous PTE maps, in a snapshot and in a world after a run."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import ProcessTables, Pte, Snapshot
from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, pmd_is_table, pmd_pgtable
from mthp.predict.measure import populated_parts
from mthp.worlds.build import BuiltWorld

Orders = dict[tuple[int, int], NDArray[np.int8]]
"""(pid, first address of a table's range) -> (PTRS,) array of folio orders or Mapped codes."""


class Mapped(IntEnum):
    """Codes beside the orders. PMD: a folio that a PMD maps."""

    NONE = -1
    ZERO = -2
    SWAPPED = -3
    PMD = 100


def orders_of_snapshot(snapshot: Snapshot) -> Orders:
    """The orders of every process. ValueError: the capture shows no folios (it was not made as root)."""
    found: Orders = {}
    for process in snapshot.processes:
        codes = _codes(process)
        for address, row in zip(process.table_address.tolist(), codes, strict=True):
            found[process.pid, address] = row
    return found


def _codes(process: ProcessTables) -> NDArray[np.int8]:
    if process.folio_order is None:
        raise ValueError(f"process {process.pid}: the snapshot shows no folios (not root)")
    pte = process.pte
    codes = np.where(pte & Pte.PRESENT, process.folio_order, Mapped.NONE).astype(np.int8)
    codes[(pte & Pte.SWAPPED) != 0] = Mapped.SWAPPED
    codes[(pte & (Pte.PRESENT | Pte.HUGE)) == Pte.PRESENT | Pte.HUGE] = Mapped.PMD
    codes[(pte & Pte.ZERO) != 0] = Mapped.ZERO
    return codes


def orders_of_world(world: BuiltWorld) -> Orders:
    """The orders of every anonymous mapping as it is now. The world makes no step."""
    found: Orders = {}
    nr = world.kernel.geometry.ptrs_per_pte
    for vma in world.vmas:
        if vma.file is None:
            _add_vma(world.kernel, vma, nr, found)
    return found


def _add_vma(kernel: Kernel, vma: Vma, nr: int, found: Orders) -> None:
    for part in populated_parts(vma):
        base = part.address - (part.index << kernel.geometry.page_shift)
        key = (vma.vm_mm.number, base)
        row = found.setdefault(key, np.full(nr, Mapped.NONE, np.int8))
        place = slice(part.index, part.index + part.count)
        if not pmd_is_table(part.pmd):
            row[place] = Mapped.PMD if part.pmd >> PFN_SHIFT else Mapped.ZERO
            continue
        ptes = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()[place]
        present = (ptes & PRESENT) != 0
        pfns = ptes >> PFN_SHIFT
        codes = np.where(ptes == 0, Mapped.NONE, Mapped.SWAPPED).astype(np.int8)
        codes[present] = Mapped.ZERO
        mapped = present & (pfns != 0)
        heads = kernel.mem.head.view()[pfns[mapped]]
        codes[mapped] = kernel.mem.order.view()[heads]
        row[place] = codes
