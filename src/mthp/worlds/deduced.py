# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from a capture about a process: is it with khugepaged, and what has prctl said."""

from __future__ import annotations

import re

import numpy as np

from mthp.image.snapshot import DisableThp, ProcessTables, Pte, Snapshot
from mthp.mm.huge_mm import sysfs_orders
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, MMF_DISABLE_THP_EXCEPT_ADVISED
from mthp.words.settings import Settings, SettingsError
from mthp.worlds.unseen import Assumed

_INIT = 1
_EXCEPT_ADVISED_SINCE = (6, 18)
_MMF = {
    DisableThp.NO: 0,
    DisableThp.COMPLETELY: MMF_DISABLE_THP_COMPLETELY,
    DisableThp.EXCEPT_ADVISED: MMF_DISABLE_THP_EXCEPT_ADVISED,
}


_ADVISED = frozenset({"hg", "nh", "ht"})
"""Codes of mappings of which the settings alone do not say whether they are eligible."""


def _settings(snapshot: Snapshot) -> Settings | None:
    """The settings of a snapshot; None where no kernel has such."""
    try:
        return Settings.from_sysfs(snapshot.sysfs, snapshot.geometry)
    except SettingsError:
        return None


def is_registered(snapshot: Snapshot, process: ProcessTables, assumed: Assumed) -> bool | None:
    """Whether khugepaged has the process on its list; None where nobody tells.

    A PMD-sized fault puts it there, which leaves a folio of that size. Advice on memory in use does, too,
    if a size was enabled then, and not if it was later; a mapping that grew, and a fork from a process
    that is there. Of all these nothing tells.
    Kernel: mm/khugepaged.c, khugepaged_enter_vma() and its callers.
    """
    if assumed.registered is not None:
        return assumed.registered
    if process.deep is not None:
        return process.deep.registered is not None
    return True if _has_folios(process, snapshot.geometry.pmd_order) else None


def _has_folios(process: ProcessTables, order: int) -> bool:
    """Whether anonymous memory of it is in folios of an order or more, as far as that can be seen."""
    found = bool(((process.pte & np.uint16(Pte.HUGE)) != 0).any())
    if process.folio_order is not None:
        anonymous = process.pte & np.uint16(Pte.FILE) == 0
        found |= bool((anonymous & (process.folio_order >= order)).any())
    return found


def enabled_later(snapshot: Snapshot, process: ProcessTables) -> bool:
    """Whether no size was enabled when the process started, nor until khugepaged's thread began, and none of
    its memory is in large folios, as what it touched later would be.

    Enabling registers nobody: such a process is taken not to be on khugepaged's list. The first process
    starts while the kernel itself does, and runs its program afterwards.
    Kernel: mm/khugepaged.c, start_stop_khugepaged().
    """
    began = snapshot.khugepaged_began
    if began is None or not 0 < process.started < began or process.pid == _INIT:
        return False
    return not _has_folios(process, 1)


def is_taken_on(snapshot: Snapshot, process: ProcessTables, assumed: Assumed) -> bool:
    """Whether the process is taken to be on khugepaged's list: as known, else unless enabled_later()."""
    known = is_registered(snapshot, process, assumed)
    return not enabled_later(snapshot, process) if known is None else known


def mm_flags(snapshot: Snapshot, process: ProcessTables) -> int | None:
    """The MMF_* flags that prctl sets; None where the capture does not tell them apart from none.

    status tells PR_SET_THP_DISABLE without its EXCEPT_ADVISED mode. With it, no mapping counts as
    eligible that was not advised, whatever the settings say.
    Kernel: fs/proc/array.c, task_thp_status(); include/linux/huge_mm.h, vma_thp_disabled().
    """
    if process.deep is not None:
        return _MMF[process.deep.disable_thp]
    if process.thp_disabled:
        return MMF_DISABLE_THP_COMPLETELY
    release = re.match(r"(\d{1,9})\.(\d{1,9})", snapshot.kernel)
    if release is not None and (int(release[1]), int(release[2])) < _EXCEPT_ADVISED_SINCE:
        return 0
    settings = _settings(snapshot)
    orders = 0 if settings is None else sysfs_orders(settings, 0)
    least = (orders & -orders) << snapshot.geometry.page_shift
    answers = {
        vma.thp_eligible
        for vma in process.vmas
        if 0 < least <= (vma.end & -least) - vma.start  # it holds an aligned range of that size
        if vma.anonymous and _ADVISED.isdisjoint(vma.flags)
    }
    if not answers - {None}:
        return None
    return 0 if True in answers else MMF_DISABLE_THP_EXCEPT_ADVISED
