# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mapping is for, as bits. Kernel: include/linux/mm.h (VM_*)."""

from __future__ import annotations

from typing import Final

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


VM_UFFD_RWP: Final = 1 << 18
"""Every access is tracked, not stores alone. Kernel: since Linux 7.3, CONFIG_USERFAULTFD_RWP."""


VM_SOFTDIRTY: Final = 1 << 15


VM_ACCOUNT: Final = 1 << 19
"""What could be written to it counts as promised memory."""


VM_NORESERVE: Final = 1 << 20
"""Never counted so: MAP_NORESERVE."""


VM_STACK_INCOMPLETE: Final = 1 << 16


VM_MERGEABLE: Final = 1 << 17


VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP


VM_NO_KHUGEPAGED: Final = VM_SPECIAL | VM_HUGETLB
"""Kernel: include/linux/mm.h, VM_SPECIAL and VM_NO_KHUGEPAGED."""


VM_DEFAULT: Final = VM_READ | VM_WRITE
