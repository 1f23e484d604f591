# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual memory areas and the anon_vma that finds them again.

Kernel: include/linux/mm_types.h (struct vm_area_struct), include/linux/rmap.h (struct anon_vma).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mthp.machine.locks import Hold, Rank, RwSem, WriteMark
from mthp.machine.step import Machine

if TYPE_CHECKING:
    from mthp.mm.mm_struct import Mm

VM_READ: Final = 1 << 0
VM_WRITE: Final = 1 << 1
VM_EXEC: Final = 1 << 2
VM_SHARED: Final = 1 << 3
VM_HUGEPAGE: Final = 1 << 4
VM_NOHUGEPAGE: Final = 1 << 5
VM_LOCKED: Final = 1 << 6
VM_IO: Final = 1 << 7
VM_PFNMAP: Final = 1 << 8
VM_MIXEDMAP: Final = 1 << 9
VM_DONTEXPAND: Final = 1 << 10
VM_HUGETLB: Final = 1 << 11
VM_DROPPABLE: Final = 1 << 12
VM_UFFD_WP: Final = 1 << 13
VM_UFFD_MISSING: Final = 1 << 14
VM_SOFTDIRTY: Final = 1 << 15
VM_STACK_INCOMPLETE: Final = 1 << 16
VM_MERGEABLE: Final = 1 << 17

VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
VM_NO_KHUGEPAGED: Final = VM_SPECIAL | VM_HUGETLB
"""Kernel: include/linux/mm.h, VM_SPECIAL and VM_NO_KHUGEPAGED."""
VM_DEFAULT: Final = VM_READ | VM_WRITE


class AnonVma:
    """The VMAs that may map an anonymous folio. Kernel: struct anon_vma (the root's rwsem)."""

    __slots__ = ("number", "rwsem", "vmas")

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.rwsem = RwSem(machine, f"anon_vma{number}", Rank.ANON_VMA)
        self.vmas: list[Vma] = []


class Vma:
    """A mapping [vm_start, vm_end) of one mm; bytes.

    file: a name for a file mapping, None for anonymous memory. anon_vma: None until the first write.
    vm_lock is written under mmap_lock (write) by vma_start_write() and ends with it.
    """

    __slots__ = (
        "anon_vma",
        "file",
        "name",
        "vm_end",
        "vm_flags",
        "vm_lock",
        "vm_mm",
        "vm_pgoff",
        "vm_start",
    )

    def __init__(
        self,
        mm: Mm,
        vm_start: int,
        vm_end: int,
        vm_flags: int = VM_DEFAULT,
        *,
        file: str | None = None,
        name: str = "",
    ) -> None:
        self.vm_mm = mm
        self.vm_start = vm_start
        self.vm_end = vm_end
        self.vm_flags = vm_flags
        self.vm_pgoff = vm_start >> mm.geometry.page_shift
        self.anon_vma: AnonVma | None = None
        self.file = file
        self.name = name
        self.vm_lock = WriteMark(mm.machine, f"vma{vm_start:x}.vm_lock", self)

    def __repr__(self) -> str:
        return f"Vma({self.vm_start:#x}-{self.vm_end:#x})"


def vma_is_anonymous(vma: Vma) -> bool:
    """Kernel: include/linux/mm.h, vma_is_anonymous()."""
    return vma.file is None


def userfaultfd_armed(vma: Vma) -> bool:
    """Kernel: include/linux/userfaultfd_k.h, userfaultfd_armed()."""
    return vma.vm_flags & (VM_UFFD_WP | VM_UFFD_MISSING) != 0


def linear_page_index(vma: Vma, address: int) -> int:
    """Kernel: include/linux/pagemap.h, linear_page_index()."""
    return ((address - vma.vm_start) >> vma.vm_mm.geometry.page_shift) + vma.vm_pgoff


def vma_start_write(vma: Vma) -> None:
    """Shut out page faults under the VMA lock until mmap_lock is released.

    Caller holds mmap_lock for writing. Waits for readers (a positive word).
    Kernel: mm/mmap_lock.c, __vma_start_write().
    """
    vma.vm_mm.mmap_lock.assert_held()
    vma.vm_lock.mark()
    vma.vm_mm.write_locked_vmas.append(vma)


def anon_vma_lock_write(anon_vma: AnonVma) -> Hold:
    """Kernel: mm/internal.h, anon_vma_lock_write()."""
    return anon_vma.rwsem.write()
