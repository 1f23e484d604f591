# SPDX-License-Identifier: GPL-2.0-or-later
"""Worlds to measure on: one process, whole tables of small pages, written as rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.mm.mm_types import Kernel, Mm, PageTable, Vma
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import DIRTY, PRESENT, WRITE, YOUNG, mk_pte, table_pmd
from mthp.mm.rmap import new_anon_folio
from mthp.vectorised.twins import TWINS
from mthp.words.settings import Enabled, Settings

START = 1 << 40
YOUNG_PTE = PRESENT | WRITE | DIRTY | YOUNG
OLD_PTE = PRESENT | WRITE | DIRTY

Keep = Callable[[int], bool]


def everything(_index: int) -> bool:
    """A table without holes."""
    return True


class TableWorld:
    """A kernel with one process of `tables` tables. keep: which of a table's PTEs are populated.

    order: size of the folios that the PTEs map; pte_flags: bits of every PTE.
    """

    def __init__(
        self,
        settings: Settings,
        tables: int,
        *,
        keep: Keep = everything,
        order: int = 0,
        pte_flags: int = YOUNG_PTE,
    ) -> None:
        self.kernel = Kernel(settings, twins=TWINS)
        self.kernel.trace = _forget
        self.mm: Mm = self.kernel.new_mm(1)
        geometry = self.kernel.geometry
        self.addresses = range(START, START + tables * geometry.pmd_size, geometry.pmd_size)
        self.vma: Vma = self.mm.mmap(START, START + tables * geometry.pmd_size)
        self.mm.link_anon_vma(self.vma)
        kept = [i for i in range(geometry.ptrs_per_pte) if keep(i)]
        for address in self.addresses:
            self._fill(address, kept, order, pte_flags)

    def _fill(self, address: int, kept: Sequence[int], order: int, pte_flags: int) -> None:
        """One table; the folios are new frames."""
        mem = self.kernel.mem
        nr = 1 << order
        table = self.table(address)
        pgoff = address >> self.kernel.geometry.page_shift
        for first in range(0, len(kept), nr):
            folio = new_anon_folio(mem, order, index=pgoff + kept[first])
            for k in range(nr):
                table.ptes.raw[kept[first + k]] = mk_pte(folio + k, pte_flags)

    def table(self, address: int) -> PageTable:
        """The table of address, made when it is met first."""
        pmd = pmd_ptr(self.mm, address, create=True)
        assert pmd is not None
        value = pmd.page.pmds.raw[pmd.slot]
        if not value:
            table = self.kernel.new_table()
            pmd.page.pmds.raw[pmd.slot] = table_pmd(table.number)
            return table
        return self.kernel.tables[value >> 16]

    def collapsed(self) -> int:
        """Collapses since the world was made."""
        return sum(
            n for (_, name), n in self.kernel.vmstat.mthp.items() if name == "collapse_alloc"
        )

    def control(self) -> CollapseControl:
        """khugepaged's own collapse_control."""
        return CollapseControl(Caller.KHUGEPAGED)


def _forget(_event: object) -> None:
    """Events cost their making, not their keeping."""


def only(order: int, **knobs: int) -> Settings:
    """Settings with one size enabled, and no holes allowed."""
    sizes = {9: Enabled.NEVER, order: Enabled.ALWAYS}
    return Settings(sizes=sizes, max_ptes_none=0).replace(**knobs)
