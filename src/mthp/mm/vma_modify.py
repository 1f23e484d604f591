# SPDX-License-Identifier: GPL-2.0-or-later
"""VMAs are split, and merged with their neighbours. Kernel: mm/vma.c.

Apart from vma.py, which takes mappings away.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mthp.machine.hold import Hold
from mthp.mm.huge_memory import vma_adjust_trans_huge
from mthp.mm.mm_types import AnonVma, Mm, Vma, linear_page_index
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.rmap import anon_vma_clone, anon_vma_lock_write, vma_is_fork_child
from mthp.mm.vm_flags import VM_SOFTDIRTY, VM_SPECIAL
from mthp.words.units import Address

VM_STICKY = VM_SOFTDIRTY
"""Flags that do not keep VMAs apart, and that one gets from all that become part of it."""


@dataclass(slots=True)
class VmaMerge:
    """What is to become a part of its neighbours. middle: the VMA that it is in now, if it is; copied_from:
    the one whose pages it is to have. Kernel: struct vma_merge_struct.
    """

    mm: Mm
    start: Address
    end: Address
    vm_flags: int
    pgoff: int
    anon_vma: AnonVma | None = None
    prev: Vma | None = None
    next: Vma | None = None
    middle: Vma | None = None
    copied_from: Vma | None = None


def vma_prepared(vma: Vma) -> AbstractContextManager[Hold | None]:
    """Keep rmap walks out while a VMA changes. Kernel: vma_prepare(), vma_complete()."""
    return nullcontext() if vma.anon_vma is None else anon_vma_lock_write(vma.anon_vma)


def split_vma(vma: Vma, address: Address, *, new_below: bool) -> Vma:
    """Make two VMAs of one; returns the new one. Kernel: mm/vma.c, __split_vma()."""
    mm = vma.vm_mm
    start, end = vma.vm_start, vma.vm_end
    below, above = (start, address), (address, end)
    mine, its = (above, below) if new_below else (below, above)
    new = mm.new_vma(*its, vma.vm_flags, file=vma.file, name=vma.name)
    new.vm_pgoff = linear_page_index(vma, new.vm_start)
    anon_vma_clone(new, vma)
    vma_start_write(vma)
    vma_start_write(new)
    with vma_prepared(vma):
        vma_adjust_trans_huge(vma, start, address)
        mm.vma_set_range(vma, *mine)
        mm.insert_vma(new)
    return new


def _dup_anon_vma(target: Vma, source: Vma | None) -> None:
    """Let rmap walks find a VMA by another one's anon_vma too. Kernel: mm/vma.c, dup_anon_vma()."""
    if source is not None and source.anon_vma is not None and target.anon_vma is None:
        anon_vma_clone(target, source)


def _is_mergeable(merge: VmaMerge, side: Vma) -> bool:
    """Whether a neighbour is of the same kind. Kernel: is_mergeable_vma(), is_mergeable_anon_vma()."""
    source = merge.middle or merge.copied_from
    if (side.vm_flags ^ merge.vm_flags) & ~VM_STICKY or side.file is not None:
        return False
    if side.anon_vma is None and merge.anon_vma is not None:
        return source is None or not vma_is_fork_child(source)
    if side.anon_vma is not None and merge.anon_vma is None:
        return not vma_is_fork_child(side)
    return side.anon_vma is merge.anon_vma


def can_vma_merge_left(merge: VmaMerge) -> bool:
    """Whether the VMA before can take it in. Kernel: mm/vma.c, can_vma_merge_left()."""
    prev = merge.prev
    return (
        prev is not None
        and prev.vm_end == merge.start
        and _is_mergeable(merge, prev)
        and linear_page_index(prev, prev.vm_end) == merge.pgoff
    )


def can_vma_merge_right(merge: VmaMerge, *, merges_left: bool) -> bool:
    """Whether the VMA after can take it in, and the one before too. Kernel: can_vma_merge_right()."""
    after, prev = merge.next, merge.prev
    pages = (merge.end - merge.start) >> merge.mm.geometry.page_shift
    if after is None or after.vm_start != merge.end or after.vm_pgoff != merge.pgoff + pages:
        return False
    if not _is_mergeable(merge, after):
        return False
    if not merges_left or prev is None or prev.anon_vma is None or after.anon_vma is None:
        return True
    return prev.anon_vma is after.anon_vma


def vma_merge_new_range(merge: VmaMerge) -> Vma | None:
    """Let a neighbour grow over a range that is free; returns it, None: neither can.

    Kernel: mm/vma.c, vma_merge_new_range(), vma_expand().
    """
    if merge.vm_flags & VM_SPECIAL:
        return None
    left = can_vma_merge_left(merge)
    right = can_vma_merge_right(merge, merges_left=left)
    target = merge.prev if left else merge.next
    if target is None or not (left or right):
        return None
    vma_start_write(target)
    removed = merge.next if left and right else None
    start = target.vm_start if left else merge.start
    end = merge.next.vm_end if right and merge.next is not None else merge.end
    vm_flags = target.vm_flags | merge.vm_flags & VM_STICKY
    if removed is not None:
        vma_start_write(removed)
        vm_flags |= removed.vm_flags & VM_STICKY
        _dup_anon_vma(target, removed)
    _dup_anon_vma(target, merge.copied_from)
    _commit(target, start, end, (removed,))
    target.vm_flags = vm_flags
    merge.mm.kernel.khugepaged_enter_vma(target, vm_flags)
    return target


def _commit(target: Vma, start: Address, end: Address, removed: tuple[Vma | None, ...]) -> None:
    """Let a VMA have a range, of which others that go had parts. Kernel: mm/vma.c, commit_merge()."""
    mm = target.vm_mm
    with vma_prepared(target):
        vma_adjust_trans_huge(target, start, end)
        for each in removed:
            if each is not None:
                mm.unlink_vma(each)
        mm.vma_set_range(target, start, end)


def vma_merge_existing_range(merge: VmaMerge) -> Vma | None:
    """Let a neighbour take over a range that ends or begins with its VMA; returns it, None: neither can.

    Kernel: mm/vma.c, vma_merge_existing_range().
    """
    mm, middle, prev = merge.mm, merge.middle, merge.prev
    assert middle is not None
    left_side, right_side = merge.start == middle.vm_start, merge.end == middle.vm_end
    if merge.vm_flags & VM_SPECIAL or not (left_side or right_side):
        return None
    merge.next = mm.vma_after(middle) if right_side else None
    left = left_side and can_vma_merge_left(merge)
    right = can_vma_merge_right(merge, merges_left=left)
    target = prev if left else merge.next
    if target is None or not (left or right):
        return None
    whole = left_side and right_side
    vma_start_write(middle)
    vma_start_write(target)
    sticky = (merge.vm_flags | target.vm_flags) & VM_STICKY
    if left and right and merge.next is not None:
        vma_start_write(merge.next)
        sticky |= merge.next.vm_flags & VM_STICKY
        _dup_anon_vma(target, merge.next if merge.next.anon_vma is not None else middle)
        _commit(target, target.vm_start, merge.next.vm_end, (middle, merge.next))
    elif whole:
        _dup_anon_vma(target, middle)
        start, end = min(target.vm_start, merge.start), max(target.vm_end, merge.end)
        _commit(target, start, end, (middle,))
    else:
        _dup_anon_vma(target, middle)
        _move_edge(target, middle, merge.end if left else merge.start, middle_begins=left)
    target.vm_flags |= sticky
    mm.kernel.khugepaged_enter_vma(target, target.vm_flags)
    return target


def _move_edge(target: Vma, middle: Vma, edge: Address, *, middle_begins: bool) -> None:
    """Let two adjacent VMAs meet elsewhere: at an address within middle, which gets smaller.

    Kernel: mm/vma.c, commit_merge(), vmg_adjust_set_range().
    """
    mm = target.vm_mm
    with vma_prepared(target):
        if middle_begins:
            vma_adjust_trans_huge(target, target.vm_start, edge, middle)
            mm.vma_set_range(middle, edge, middle.vm_end)
            mm.vma_set_range(target, target.vm_start, edge)
        else:
            vma_adjust_trans_huge(middle, middle.vm_start, edge)
            mm.vma_set_range(middle, middle.vm_start, edge)
            mm.vma_set_range(target, edge, target.vm_end)


def vma_modify_flags(vma: Vma, start: Address, end: Address, vm_flags: int) -> Vma:
    """Make [start, end) of a VMA one that may have other flags: a neighbour takes it over, or the rest is
    split off. The caller sets the flags.

    Kernel: mm/vma.c, vma_modify_flags(), vma_modify().
    """
    prev = vma if start > vma.vm_start else vma.vm_mm.vma_before(vma)
    merge = VmaMerge(
        vma.vm_mm,
        start,
        end,
        vm_flags,
        linear_page_index(vma, start),
        vma.anon_vma,
        prev,
        middle=vma,
    )
    merged = vma_merge_existing_range(merge)
    if merged is not None:
        return merged
    if vma.vm_start < start:
        split_vma(vma, start, new_below=True)
    if vma.vm_end > end:
        split_vma(vma, end, new_below=False)
    return vma
