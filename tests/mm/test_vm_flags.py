# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mapping is for: one bit a flag, and what keeps khugepaged away."""

from __future__ import annotations

from mthp.mm import vm_flags
from mthp.mm.vm_flags import (
    VM_DEFAULT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_NO_KHUGEPAGED,
    VM_PFNMAP,
    VM_READ,
    VM_SPECIAL,
    VM_WRITE,
)

SETS = {"VM_SPECIAL", "VM_NO_KHUGEPAGED", "VM_DEFAULT"}


def test_every_flag_has_a_bit_of_its_own() -> None:
    bits = [
        value for name, value in vars(vm_flags).items() if name[:3] == "VM_" and name not in SETS
    ]
    assert all(bit.bit_count() == 1 for bit in bits)
    assert len(set(bits)) == len(bits)


def test_special_mappings_and_hugetlb_are_not_khugepageds() -> None:
    """Kernel: include/linux/mm.h, VM_SPECIAL, VM_NO_KHUGEPAGED."""
    assert VM_SPECIAL == VM_IO + VM_DONTEXPAND + VM_PFNMAP + VM_MIXEDMAP
    assert VM_NO_KHUGEPAGED == VM_SPECIAL + VM_HUGETLB
    assert VM_DEFAULT == VM_READ + VM_WRITE
